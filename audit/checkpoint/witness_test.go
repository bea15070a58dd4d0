package checkpoint_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/checkpoint"
)

func newKey(t testing.TB, name string) (note.Signer, note.Verifier) {
	t.Helper()
	private, public, err := checkpoint.NewKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

// statement makes a checkpoint over nothing.
func statement(t testing.TB, s note.Signer, number uint64, previous chain.Hash, lines uint64) checkpoint.Published {
	t.Helper()
	root, err := chain.Root(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &chain.Checkpoint{Origin: "attache/test", Number: number, Time: time.Unix(int64(number)*60, 0).UTC(), Previous: previous, Root: root, Lines: lines} //nolint:gosec // small
	signed, err := chain.Sign(c, s)
	if err != nil {
		t.Fatal(err)
	}
	return checkpoint.Published{Origin: c.Origin, Number: number, Time: c.Time, Note: signed}
}

func digest(t testing.TB, p checkpoint.Published) chain.Hash {
	t.Helper()
	c, err := chain.ParseUnverified(p.Note)
	if err != nil {
		t.Fatal(err)
	}
	return c.Digest()
}

func TestWitnessSignsOnlyWhatFollows(t *testing.T) {
	signer, key := newKey(t, "attache/test")
	stranger, _ := newKey(t, "attache/test")
	second, secondKey := newKey(t, "witness.example.com")
	dir := t.TempDir()
	serve := func() *checkpoint.Witness {
		return &checkpoint.Witness{Dir: dir, Signer: second, Known: note.VerifierList(key)}
	}
	server := httptest.NewServer(serve().Handler())
	defer server.Close()
	sink := checkpoint.Witnessed{URL: server.URL, Key: secondKey, Client: server.Client()}

	if _, err := sink.Latest(t.Context(), "attache/test"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("latest of nothing: %v", err)
	}
	one := statement(t, signer, 1, chain.Hash{}, 10)
	two := statement(t, signer, 2, digest(t, one), 20)
	three := statement(t, signer, 3, digest(t, two), 30)
	for _, p := range []checkpoint.Published{one, one, two} { // a second time is the same answer
		if err := sink.Put(t.Context(), p); err != nil {
			t.Fatalf("checkpoint %d: %v", p.Number, err)
		}
	}
	forged := statement(t, signer, 2, digest(t, one), 19)
	for name, p := range map[string]checkpoint.Published{
		"rolled back":              one,
		"another with that number": forged,
		"one left out":             statement(t, signer, 4, digest(t, three), 40),
		"after another history":    statement(t, signer, 3, digest(t, forged), 30),
		"begun anew":               statement(t, signer, 1, chain.Hash{}, 5),
		"signed by a stranger":     statement(t, stranger, 3, digest(t, two), 30),
		"not a checkpoint":         {Number: 3, Note: []byte("hello\n")},
	} {
		if err := sink.Put(t.Context(), p); err == nil {
			t.Errorf("%s: was signed", name)
		}
	}
	// Also when it was started anew.
	server.Config.Handler = serve().Handler()
	if err := sink.Put(t.Context(), forged); err == nil {
		t.Error("after a restart it signed what does not follow")
	}
	if err := sink.Put(t.Context(), three); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	b, err := sink.Latest(t.Context(), "attache/test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := chain.Parse(b, key, secondKey)
	if err != nil || c.Number != 3 {
		t.Errorf("latest = %+v, %v; want number 3 with both signatures", c, err)
	}
	if _, err := sink.Latest(t.Context(), "../attache"); err == nil {
		t.Error("an unknown origin has a latest checkpoint")
	}
}

func TestWitnessThatSignsAnotherIsFound(t *testing.T) {
	signer, key := newKey(t, "attache/test")
	second, secondKey := newKey(t, "witness.example.com")
	other, _ := newKey(t, "witness.example.com")
	for name, s := range map[string]note.Signer{"of another key": other, "of that key": second} {
		w := &checkpoint.Witness{Dir: t.TempDir(), Signer: s, Known: note.VerifierList(key)}
		server := httptest.NewServer(w.Handler())
		err := checkpoint.Witnessed{URL: server.URL, Key: secondKey, Client: server.Client()}.Put(t.Context(), statement(t, signer, 1, chain.Hash{}, 1))
		server.Close()
		if (err == nil) != (name == "of that key") {
			t.Errorf("a witness %s: %v", name, err)
		}
	}
}

func TestDirectoryKeepsEachNumberOnce(t *testing.T) {
	signer, _ := newKey(t, "attache/test")
	d := checkpoint.Directory{Path: t.TempDir()}
	one := statement(t, signer, 1, chain.Hash{}, 1)
	for range 2 {
		if err := d.Put(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(t.Context(), statement(t, signer, 1, chain.Hash{}, 2)); err == nil {
		t.Error("another checkpoint took the place of number 1")
	}
}

func TestKeyFile(t *testing.T) {
	path := t.TempDir() + "/sub/key"
	s, public, err := checkpoint.KeyFile(path, "attache/prod")
	if err != nil {
		t.Fatal(err)
	}
	again, publicAgain, err := checkpoint.KeyFile(path, "another name")
	if err != nil || again.KeyHash() != s.KeyHash() || publicAgain != public || again.Name() != "attache/prod" {
		t.Errorf("second reading: %v, %v", again, err)
	}
	v, err := note.NewVerifier(public)
	if err != nil || v.KeyHash() != s.KeyHash() {
		t.Errorf("public form %q is of another key: %v", public, err)
	}
}
