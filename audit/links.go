package audit

import "github.com/attache-dev/attache/audit/chain"

// EventDamaged says that earlier lines are not as they were written, or not
// chained to the line before them; it names the first.
const EventDamaged = "spool.damaged"

// links follows the hash chains of epochs, line by line in the order of the
// spool.
type links struct {
	epoch   string
	seq     uint64 // of the last line; 0: none yet
	last    chain.Hash
	chained bool // last is one
}

// link is how a line stands to the one before it.
type link int

const (
	linkNone   link = iota // it is not chained, nor is its epoch
	linkHolds              // it is chained to the line before
	linkOpen               // the line before is not there
	linkBroken             // it is not chained to the line before, which is there
)

// follow takes up the next line.
func (k *links) follow(h head, l framed) link {
	was := *k
	*k = links{h.Epoch, h.Sequence, l.chain, l.chained}
	first := h.Sequence == 1
	if first {
		was = links{h.Epoch, 0, chain.First(h.Epoch), l.chained}
	}
	switch {
	case was.epoch != h.Epoch || was.seq+1 != h.Sequence:
		if !l.chained {
			return linkNone
		}
		return linkOpen
	case !l.chained && !was.chained:
		return linkNone
	case l.chained != was.chained || chain.Next(was.last, l.json) != l.chain:
		return linkBroken
	}
	return linkHolds
}

// head is the chain's value after the last line of an epoch, if that was the
// last one followed.
func (k *links) head(epoch string) (chain.Hash, bool) {
	return k.last, k.chained && k.epoch == epoch && epoch != ""
}

// before is the chain's value that the line with this head follows; empty when
// it is not known.
func (k *links) before(h head) string {
	if !k.chained || k.epoch != h.Epoch || k.seq+1 != h.Sequence {
		return ""
	}
	return k.last.String()
}
