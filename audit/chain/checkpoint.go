package chain

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// header is the first line of a checkpoint.
const header = "attache.audit.checkpoint/v1"

// Checkpoint is a statement over every line that a store holds: which heads
// moved since the checkpoint before, and by Previous all of those before it.
// Whoever keeps the latest one outside the store can tell whether anything that
// it covers was removed or changed since.
type Checkpoint struct {
	Origin   string    // which store, such as attache/prod
	Number   uint64    // from 1, without a gap
	Time     time.Time // UTC, to the second
	Previous Hash      // [Checkpoint.Digest] of the one before; zero for the first
	Leaves   uint64    // how many heads moved since
	Root     Hash      // [Root] over them
	Lines    uint64    // lines covered, of all epochs, since the first checkpoint
}

// Text is the checkpoint's one form, the signed text of its note:
//
//	attache.audit.checkpoint/v1
//	origin attache/prod
//	number 17
//	time 2026-03-01T12:00:00Z
//	previous RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o
//	leaves 3 47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU
//	lines 20412
func (c *Checkpoint) Text() string {
	return header + "\norigin " + c.Origin +
		"\nnumber " + strconv.FormatUint(c.Number, 10) +
		"\ntime " + c.Time.UTC().Format(time.RFC3339) +
		"\nprevious " + c.Previous.String() +
		"\nleaves " + strconv.FormatUint(c.Leaves, 10) + " " + c.Root.String() +
		"\nlines " + strconv.FormatUint(c.Lines, 10) + "\n"
}

// Digest identifies a checkpoint: SHA-256 over its text. Signatures are outside
// of it, so that a second signer's does not change it.
func (c *Checkpoint) Digest() Hash { return sha256.Sum256([]byte(c.Text())) }

// Sign returns c as a signed note (C2SP signed-note), which is text.
func Sign(c *Checkpoint, signers ...note.Signer) ([]byte, error) {
	if len(signers) == 0 {
		return nil, errors.New("sign a checkpoint: there is no key")
	}
	if _, err := parse(c.Text()); err != nil {
		return nil, err
	}
	b, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign a checkpoint: %w", err)
	}
	return b, nil
}

// Cosign adds signatures to a signed note that one of known has signed.
func Cosign(signed []byte, known note.Verifiers, signers ...note.Signer) ([]byte, error) {
	n, err := note.Open(signed, known)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if _, err := parse(n.Text); err != nil {
		return nil, err
	}
	b, err := note.Sign(n, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign a checkpoint: %w", err)
	}
	return b, nil
}

// ErrUnsigned is matched when none of the wanted keys has signed.
var ErrUnsigned = errors.New("checkpoint is not signed by a known key")

// Parse reads a signed note. It must bear a good signature of every key in
// keys; at least one is needed. Each key is in the note package's verifier
// form, name+hash+key.
func Parse(signed []byte, keys ...note.Verifier) (*Checkpoint, error) {
	if len(keys) == 0 {
		return nil, errors.New("checkpoint: no key to check it with")
	}
	n, err := note.Open(signed, note.VerifierList(keys...))
	if err != nil {
		var un *note.UnverifiedNoteError
		if errors.As(err, &un) {
			return nil, fmt.Errorf("%w: wants %s", ErrUnsigned, names(keys))
		}
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	for _, k := range keys {
		if !signedBy(n, k) {
			return nil, fmt.Errorf("%w: wants %s too", ErrUnsigned, k.Name())
		}
	}
	return parse(n.Text)
}

// ParseUnverified reads a signed note without a look at its signatures: for
// whoever made it, and for places that only sort them.
func ParseUnverified(signed []byte) (*Checkpoint, error) {
	text, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return nil, errors.New("checkpoint: is no signed note")
	}
	return parse(text + "\n")
}

func signedBy(n *note.Note, k note.Verifier) bool {
	for _, s := range n.Sigs {
		if s.Name == k.Name() && s.Hash == k.KeyHash() {
			return true
		}
	}
	return false
}

func names(keys []note.Verifier) string {
	var l []string
	for _, k := range keys {
		l = append(l, k.Name())
	}
	return strings.Join(l, ", ")
}

// parse reads what Text wrote, and nothing else.
func parse(text string) (*Checkpoint, error) {
	bad := func(what string, err error) (*Checkpoint, error) {
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %s: %w", what, err)
		}
		return nil, fmt.Errorf("checkpoint: %s", what)
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 8 || lines[0] != header {
		return bad("is not of the form "+header, nil)
	}
	var value [6]string
	for i, key := range []string{"origin", "number", "time", "previous", "leaves", "lines"} {
		v, ok := strings.CutPrefix(lines[i+1], key+" ")
		if !ok {
			return bad("line "+strconv.Itoa(i+2)+" is not "+key, nil)
		}
		value[i] = v
	}
	c := &Checkpoint{Origin: value[0]}
	if c.Origin == "" || len(c.Origin) > maxName || strings.ContainsFunc(c.Origin, func(r rune) bool { return notPlain(r) && r != '/' && r != '.' && r != ':' }) {
		return bad(fmt.Sprintf("origin %q: must be 1 to %d letters, digits, or one of - _ . : /", c.Origin, maxName), nil)
	}
	var err error
	if c.Number, err = strconv.ParseUint(value[1], 10, 64); err != nil || c.Number == 0 {
		return bad("number", err)
	}
	if c.Time, err = time.Parse(time.RFC3339, value[2]); err != nil {
		return bad("time", err)
	}
	if c.Previous, err = ParseHash(value[3]); err != nil {
		return bad("previous", err)
	}
	if (c.Previous == Hash{}) != (c.Number == 1) {
		return bad("previous: only the first checkpoint has none", nil)
	}
	count, root, _ := strings.Cut(value[4], " ")
	if c.Leaves, err = strconv.ParseUint(count, 10, 64); err != nil {
		return bad("leaves", err)
	}
	if c.Root, err = ParseHash(root); err != nil {
		return bad("leaves", err)
	}
	if c.Lines, err = strconv.ParseUint(value[5], 10, 64); err != nil {
		return bad("lines", err)
	}
	if c.Text() != text {
		return bad("is not spelled as it is written", nil)
	}
	return c, nil
}
