package chain

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// State says what is known of the end of an epoch.
type State string

// States of an epoch.
const (
	Open   State = "open"   // more lines may come
	Closed State = "closed" // its producer closed it, signed
	Lost   State = "lost"   // its producer went away without a close
)

// Leaf is the head of one epoch's chain, and what the store has below it.
type Leaf struct {
	Producer string
	Epoch    string
	// From is the lowest sequence that retention has left, 1 before it took any;
	// Last + 1 where it took all. A line below it may be gone, no other.
	From uint64
	Last uint64 // the highest sequence: the line with the hash Head
	Head Hash
	// Missing are the sequences from 1 to Last that never came, as ascending
	// ranges: "4-6,9". What is named here was a gap when the checkpoint was made
	// and nobody's later deletion.
	Missing string
	State   State
}

// maxName bounds the names of producers and epochs, in bytes.
const maxName = 256

// none is written where a leaf has no missing sequences.
const none = "-"

// Text is the leaf's one form, seven fields between spaces:
//
//	epoch from last head missing state producer
//
// Missing is - if there are none, and the producer is quoted as a Go string.
func (l Leaf) Text() string {
	missing := l.Missing
	if missing == "" {
		missing = none
	}
	return l.Epoch + " " + strconv.FormatUint(l.From, 10) + " " + strconv.FormatUint(l.Last, 10) + " " + l.Head.String() +
		" " + missing + " " + string(l.State) + " " + strconv.Quote(l.Producer)
}

// ParseLeaf reads what [Leaf.Text] wrote, and nothing else.
func ParseLeaf(text string) (Leaf, error) {
	part := strings.SplitN(text, " ", 7)
	if len(part) != 7 {
		return Leaf{}, fmt.Errorf("leaf of a checkpoint: has %d fields; must have 7", len(part))
	}
	from, err := strconv.ParseUint(part[1], 10, 64)
	if err != nil {
		return Leaf{}, fmt.Errorf("leaf of a checkpoint: lowest sequence: %w", err)
	}
	last, err := strconv.ParseUint(part[2], 10, 64)
	if err != nil {
		return Leaf{}, fmt.Errorf("leaf of a checkpoint: sequence: %w", err)
	}
	head, err := ParseHash(part[3])
	if err != nil {
		return Leaf{}, fmt.Errorf("leaf of a checkpoint: %w", err)
	}
	producer, err := strconv.Unquote(part[6])
	if err != nil {
		return Leaf{}, fmt.Errorf("leaf of a checkpoint: producer: %w", err)
	}
	l := Leaf{Producer: producer, Epoch: part[0], From: from, Last: last, Head: head, Missing: part[4], State: State(part[5])}
	if l.Missing == none {
		l.Missing = ""
	}
	if err := l.check(); err != nil {
		return Leaf{}, err
	}
	if l.Text() != text {
		return Leaf{}, errors.New("leaf of a checkpoint: is not spelled as it is written")
	}
	return l, nil
}

func (l Leaf) check() error {
	switch {
	case l.Epoch == "" || len(l.Epoch) > maxName || strings.ContainsFunc(l.Epoch, NotInEpoch):
		return fmt.Errorf("leaf of a checkpoint: epoch %q: must be 1 to %d letters, digits, - . or _", l.Epoch, maxName)
	case l.Producer == "" || len(l.Producer) > maxName:
		return fmt.Errorf("leaf of a checkpoint: producer of epoch %s: must have 1 to %d bytes", l.Epoch, maxName)
	case l.Last == 0:
		return fmt.Errorf("leaf of a checkpoint: epoch %s: sequence 0 covers no line", l.Epoch)
	case l.From == 0 || l.From > l.Last+1 || l.Last == math.MaxUint64:
		return fmt.Errorf("leaf of a checkpoint: epoch %s: begins with %d and ends with %d", l.Epoch, l.From, l.Last)
	case l.State != Open && l.State != Closed && l.State != Lost:
		return fmt.Errorf("leaf of a checkpoint: epoch %s: state %q: must be one of open, closed, lost", l.Epoch, l.State)
	}
	gaps, err := ParseRanges(l.Missing)
	if err != nil {
		return fmt.Errorf("leaf of a checkpoint: epoch %s: %w", l.Epoch, err)
	}
	if n := len(gaps); n > 0 && gaps[n-1].To >= l.Last {
		return fmt.Errorf("leaf of a checkpoint: epoch %s: sequence %d is missing and there", l.Epoch, l.Last)
	}
	return nil
}

// NotInEpoch reports whether r cannot stand in the name of an epoch. The store
// takes epochs by it too: one that it took and that no leaf could name would let
// a producer end all checkpoints.
func NotInEpoch(r rune) bool { return notPlain(r) && r != '.' }

func notPlain(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// SortLeaves puts leaves in the order of the tree: by epoch.
func SortLeaves(leaves []Leaf) {
	slices.SortFunc(leaves, func(a, b Leaf) int { return cmp.Compare(a.Epoch, b.Epoch) })
}

// Root is the Merkle tree hash (RFC 6962 section 2.1) over the texts of sorted
// leaves. An epoch that comes twice, or out of order, is an error.
func Root(leaves []Leaf) (Hash, error) {
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for i, l := range leaves {
		if err := l.check(); err != nil {
			return Hash{}, err
		}
		if i > 0 && leaves[i-1].Epoch >= l.Epoch {
			return Hash{}, fmt.Errorf("leaves of a checkpoint: epoch %s comes after %s", l.Epoch, leaves[i-1].Epoch)
		}
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf([]byte(l.Text())), nil); err != nil {
			return Hash{}, fmt.Errorf("leaves of a checkpoint: %w", err)
		}
	}
	if len(leaves) == 0 {
		return Hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return Hash{}, fmt.Errorf("leaves of a checkpoint: %w", err)
	}
	return Hash(root), nil
}
