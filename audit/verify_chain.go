package audit

import (
	"strconv"

	"github.com/attache-dev/attache/audit/chain"
)

// anchor is the chain's value at the end of a segment that was deleted, as the
// record of the deletion tells it.
type anchor struct{ head string }

// anchored is a chained line whose predecessor is not there.
type anchored struct {
	json  []byte
	chain chain.Hash
	at    Problem
}

// opened is the link of an epoch to the one before it.
type opened struct {
	epoch, previous, head string
	at                    Problem
}

// chain checks the line's link to the one before it.
func (v *verifier) chain(e *epochState, h head, l framed, off int64) {
	if h.Sequence == e.First {
		e.Chained = l.chained
	}
	v.before = v.links.before(h)
	switch v.links.follow(h, l) {
	case linkNone, linkHolds:
	case linkOpen:
		v.loose[lineRef{h.Epoch, h.Sequence}] = anchored{append([]byte(nil), l.json...), l.chain, v.at(ProblemChain, off, "")}
	case linkBroken:
		v.problem(ProblemChain, off, "sequence %d of epoch %s is not chained to the line before it: one of both was changed", h.Sequence, h.Epoch)
	}
	e.Head = ""
	if l.chained {
		e.Head = l.chain.String()
	}
}

// anchor remembers where a deleted segment ended.
func (v *verifier) anchor(f map[string]string) {
	seq, err := strconv.ParseUint(f["sequence"], 10, 64)
	if err == nil && f["head"] != "" {
		v.anchors[lineRef{f["epoch"], seq}] = anchor{f["head"]}
	}
}

// ends reads what the first and the last record of an epoch say of it.
func (v *verifier) ends(e *epochState, r *Record, off int64) {
	f := r.Event.Fields
	switch r.Type {
	case TypeEpochOpen:
		e.Producer = f["producer"]
		if !e.Chained && e.Producer != "" {
			v.problem(ProblemChain, off, "epoch %s was written with a chain and has none", e.ID)
		}
		if f["previous_head"] != "" {
			v.opens = append(v.opens, opened{e.ID, f["previous_epoch"], f["previous_head"], v.at(ProblemLink, off, "")})
		}
	case TypeEpochEnd:
		v.closing(e, r, off)
	}
}

// closing checks the end of an epoch: where it says that it stands, and who
// says so.
func (v *verifier) closing(e *epochState, r *Record, off int64) {
	f := r.Event.Fields
	if f["head"] == "" { // of before the chain
		return
	}
	key, cert, err := VerifyClose(r)
	if err != nil {
		v.problem(ProblemSignature, off, "end of epoch %s: %v", e.ID, err)
		return
	}
	if f["last"] != utoa(r.Sequence) || v.before != "" && f["head"] != v.before {
		v.problem(ProblemSignature, off, "end of epoch %s stands behind other lines than it says", e.ID)
		return
	}
	switch {
	case key == nil:
	case cert != nil && len(cert.URIs) == 1:
		e.SignedBy = cert.URIs[0].String()
	default:
		e.SignedBy = f["key_id"]
	}
}

// judgeLinks weighs what hangs on lines that are elsewhere, once all are read.
func (v *verifier) judgeLinks() {
	for ref, l := range v.loose {
		a, ok := v.anchors[lineRef{ref.epoch, ref.seq - 1}]
		if !ok {
			continue // the gap is told as one, or a recorded deletion explains it
		}
		prev, err := chain.ParseHash(a.head)
		if err != nil || chain.Next(prev, l.json) != l.chain {
			l.at.Text = "sequence " + utoa(ref.seq) + " of epoch " + ref.epoch + " is not chained to the segment that was deleted before it"
			v.add(l.at)
		}
	}
	for _, o := range v.opens {
		before := v.epochs[o.previous]
		if before == nil || !before.Chained {
			continue // it went with its segments
		}
		if before.Head != o.head {
			o.at.Text = "epoch " + o.epoch + " follows another end of epoch " + o.previous + " than the one that is there: lines were added or cut"
			v.add(o.at)
		}
	}
}
