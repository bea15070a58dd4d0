package chain_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit/chain"
)

type key struct {
	signer   note.Signer
	verifier note.Verifier
}

func newKey(t testing.TB, name string) key {
	t.Helper()
	s, v, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(s)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(v)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, verifier}
}

func leaves() []chain.Leaf {
	l := []chain.Leaf{
		{Producer: "pod-b", Epoch: "b1", From: 3, Last: 7, Missing: "2,4-5", Head: chain.First("x"), State: chain.Open},
		{Producer: "control/attache 0", Epoch: "a1", From: 1, Last: 1, Head: chain.First("y"), State: chain.Closed},
		{Producer: "pod-c", Epoch: "c1", From: 10, Last: 9, Head: chain.First("z"), State: chain.Lost},
	}
	chain.SortLeaves(l)
	return l
}

func checkpoint(t testing.TB, number uint64, previous chain.Hash) *chain.Checkpoint {
	t.Helper()
	root, err := chain.Root(leaves())
	if err != nil {
		t.Fatal(err)
	}
	return &chain.Checkpoint{
		Origin: "attache/prod", Number: number, Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Previous: previous, Leaves: 3, Root: root, Lines: 17,
	}
}

func TestRootIsRFC6962(t *testing.T) {
	l := leaves()
	leaf := func(x chain.Leaf) []byte {
		h := sha256.Sum256(append([]byte{0}, x.Text()...))
		return h[:]
	}
	node := func(a, b []byte) []byte {
		h := sha256.Sum256(bytes.Join([][]byte{{1}, a, b}, nil))
		return h[:]
	}
	want := node(node(leaf(l[0]), leaf(l[1])), leaf(l[2]))
	got, err := chain.Root(l)
	if err != nil || !bytes.Equal(got[:], want) {
		t.Errorf("Root = %x, %v; want %x", got, err, want)
	}
	empty := sha256.Sum256(nil)
	if got, err := chain.Root(nil); err != nil || got != chain.Hash(empty) {
		t.Errorf("Root of nothing = %v, %v", got, err)
	}
}

func TestRootChangesWithEachField(t *testing.T) {
	base, err := chain.Root(leaves())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]chain.Leaf) []chain.Leaf{
		"producer": func(l []chain.Leaf) []chain.Leaf { l[1].Producer = "pod-x"; return l },
		"epoch":    func(l []chain.Leaf) []chain.Leaf { l[1].Epoch = "b2"; return l },
		"from":     func(l []chain.Leaf) []chain.Leaf { l[1].From--; return l },
		"missing":  func(l []chain.Leaf) []chain.Leaf { l[1].Missing = "4-5"; return l },
		"last":     func(l []chain.Leaf) []chain.Leaf { l[1].Last++; return l },
		"head":     func(l []chain.Leaf) []chain.Leaf { l[1].Head[31]++; return l },
		"state":    func(l []chain.Leaf) []chain.Leaf { l[1].State = chain.Lost; return l },
		"removed":  func(l []chain.Leaf) []chain.Leaf { return l[:2] },
	} {
		if got, err := chain.Root(change(leaves())); err != nil || got == base {
			t.Errorf("%s: root is the same (%v)", name, err)
		}
	}
	for name, bad := range map[string]func([]chain.Leaf) []chain.Leaf{
		"twice":         func(l []chain.Leaf) []chain.Leaf { l[1].Epoch = l[0].Epoch; return l },
		"out of order":  func(l []chain.Leaf) []chain.Leaf { l[0], l[1] = l[1], l[0]; return l },
		"beyond itself": func(l []chain.Leaf) []chain.Leaf { l[0].From = 3; return l },
		"from nothing":  func(l []chain.Leaf) []chain.Leaf { l[0].From = 0; return l },
		"last missing":  func(l []chain.Leaf) []chain.Leaf { l[1].Missing = "4-7"; return l },
		"odd missing":   func(l []chain.Leaf) []chain.Leaf { l[1].Missing = "4-5,2"; return l },
		"no line":       func(l []chain.Leaf) []chain.Leaf { l[0].Last = 0; return l },
		"no producer":   func(l []chain.Leaf) []chain.Leaf { l[0].Producer = ""; return l },
		"space in name": func(l []chain.Leaf) []chain.Leaf { l[0].Epoch = "a 1"; return l },
		"odd state":     func(l []chain.Leaf) []chain.Leaf { l[0].State = "fine"; return l },
	} {
		if _, err := chain.Root(bad(leaves())); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestLeafTextIsOneToOne(t *testing.T) {
	for _, l := range leaves() {
		got, err := chain.ParseLeaf(l.Text())
		if err != nil || got != l {
			t.Errorf("ParseLeaf(%q) = %+v, %v", l.Text(), got, err)
		}
	}
	text := leaves()[0].Text()
	for _, bad := range []string{"", text + " ", " " + text, strings.Replace(text, " 1 ", " 01 ", 1), strings.Replace(text, " 1 ", " 0 ", 1), strings.Replace(text, " - ", "  ", 1),
		strings.Replace(text, "closed", "done", 1), strings.Replace(text, `"control/attache 0"`, "`control/attache 0`", 1)} {
		if _, err := chain.ParseLeaf(bad); err == nil {
			t.Errorf("ParseLeaf(%q) was taken", bad)
		}
	}
}

func TestCheckpointsAreChainedAndSigned(t *testing.T) {
	control, witness, stranger := newKey(t, "attache/prod"), newKey(t, "witness.example.com"), newKey(t, "attache/prod")
	first := checkpoint(t, 1, chain.Hash{})
	signed, err := chain.Sign(first, control.signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := chain.Parse(signed, control.verifier)
	if err != nil || *got != *first {
		t.Fatalf("Parse = %+v, %v", got, err)
	}
	if second := checkpoint(t, 2, first.Digest()); second.Digest() == first.Digest() {
		t.Error("two checkpoints have one digest")
	}
	if _, err := chain.Parse(signed, stranger.verifier); !errors.Is(err, chain.ErrUnsigned) {
		t.Errorf("another key of the same name: %v", err)
	}
	if _, err := chain.Parse(signed, control.verifier, witness.verifier); !errors.Is(err, chain.ErrUnsigned) {
		t.Errorf("without the second signature: %v", err)
	}
	if _, err := chain.Parse(signed); err == nil {
		t.Error("was taken without a key")
	}
	both, err := chain.Cosign(signed, note.VerifierList(control.verifier), witness.signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err = chain.Parse(both, control.verifier, witness.verifier)
	if err != nil || got.Digest() != first.Digest() {
		t.Errorf("cosigned: %+v, %v", got, err)
	}
	if _, err := chain.Cosign(signed, note.VerifierList(stranger.verifier), witness.signer); err == nil {
		t.Error("a witness signed what no known key had signed")
	}
}

func TestEveryByteOfACheckpointCounts(t *testing.T) {
	control := newKey(t, "attache/prod")
	want := checkpoint(t, 2, chain.First("one before"))
	signed, err := chain.Sign(want, control.signer)
	if err != nil {
		t.Fatal(err)
	}
	for i := range signed {
		for _, flip := range []byte{1, 0x20, 0x80} {
			changed := bytes.Clone(signed)
			changed[i] ^= flip
			// The last base64 digit of the signature has bits that say nothing.
			if c, err := chain.Parse(changed, control.verifier); err == nil && (*c != *want || i < len(signed)-4) {
				t.Errorf("byte %d (%q) changed to %q was not seen", i, signed[i], changed[i])
			}
		}
		if _, err := chain.Parse(signed[:i], control.verifier); err == nil {
			t.Errorf("cut to %d bytes was not seen", i)
		}
	}
}

func TestSignRefusesWhatCannotBeRead(t *testing.T) {
	control := newKey(t, "attache/prod")
	for name, change := range map[string]func(*chain.Checkpoint){
		"number 0":           func(c *chain.Checkpoint) { c.Number = 0 },
		"first has previous": func(c *chain.Checkpoint) { c.Previous[0] = 1 },
		"no origin":          func(c *chain.Checkpoint) { c.Origin = "" },
		"line in origin":     func(c *chain.Checkpoint) { c.Origin = "a\nnumber 9" },
	} {
		c := checkpoint(t, 1, chain.Hash{})
		change(c)
		if _, err := chain.Sign(c, control.signer); err == nil {
			t.Errorf("%s: was signed", name)
		}
	}
	if _, err := chain.Sign(checkpoint(t, 2, chain.Hash{}), control.signer); err == nil {
		t.Error("a second checkpoint without a previous one was signed")
	}
	if _, err := chain.Sign(checkpoint(t, 1, chain.Hash{})); err == nil {
		t.Error("was signed without a key")
	}
}

func FuzzParseLeaf(f *testing.F) {
	for _, l := range leaves() {
		f.Add(l.Text())
	}
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := chain.ParseLeaf(text); err == nil && l.Text() != text {
			t.Errorf("%q was read as %q", text, l.Text())
		}
	})
}

// anyKey accepts every signature, so that the fuzzer reaches the text.
type anyKey struct{ note.Verifier }

func (anyKey) Verify(_, _ []byte) bool { return true }

func FuzzParseCheckpoint(f *testing.F) {
	control := newKey(f, "attache/prod")
	signed, err := chain.Sign(checkpoint(f, 2, chain.First("p")), control.signer)
	if err != nil {
		f.Fatal(err)
	}
	text, signature, _ := bytes.Cut(signed, []byte("\n\n"))
	f.Add(string(text) + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := chain.Parse([]byte(text+"\n"+string(signature)), anyKey{control.verifier})
		if err == nil && c.Text() != text {
			t.Errorf("%q was read as %q", text, c.Text())
		}
	})
}
