package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// long is a begin of 1 MB, which no spool of ours writes.
func long(epoch string, n uint64, at string) audit.Line {
	text := fmt.Appendf(nil, `{"schema":%q,"type":"begin","id":"%s-%d","epoch":%q,"sequence":%d,"time":%q,"request":{"path":%q}}`,
		audit.SchemaVersion, epoch, n, epoch, n, at, strings.Repeat("/x", 500_000))
	return audit.Line{Epoch: epoch, Sequence: n, JSON: text}
}

// A producer whose requests never end, and are long, does not fill the memory of
// who asks something, and hides nothing unsaid, whatever time its lines say.
func TestLongRequestsWithoutAnEnd(t *testing.T) {
	times := []string{"1970-01-01T00:00:00Z", "2030-01-01T00:00:00Z"}
	if raced {
		times = times[:1]
	}
	for _, at := range times {
		d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "audit.db"), store.Options{QueryTimeout: time.Minute}) // the race detector is slow
		other := newScribe(t, "e0")
		other.now = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
		put(t, d, store.Producer{ID: "pod-b", Kind: "sidecar", Namespace: "two"}, other.begin("victim"), other.event("task.opened", nil))
		for n := range uint64(40) {
			put(t, d, alice, long("e1", n+1, at))
		}
		f, err := d.Facets(t.Context(), store.Query{}, []string{"outcome"}, 5)
		if err != nil || f.Total.Count < 28 || f.Total.Count >= 40 || !f.Partial {
			t.Errorf("%s: %d of 40 requests of 1 MB are looked at, partial %v, %v", at, f.Total.Count, f.Partial, err)
		}
		for _, oldest := range []bool{false, true} {
			n := 0
			for p, e := range d.Pages(t.Context(), store.Query{Limit: 100, Oldest: oldest}) {
				n, err = n+len(p.Rows), e
			}
			if n < 28 || !errors.Is(err, store.ErrOpen) || !strings.Contains(err.Error(), max(at, other.now.Add(-time.Second).Format(time.RFC3339))) {
				t.Errorf("%s: %d rows, and the end does not say up to when some are missing: %v", at, n, err)
			}
		}
		if l, partial, err := d.Groups(t.Context(), store.Query{}, []string{"agent"}, 0); err != nil || !partial || len(l) == 0 {
			t.Errorf("%s: groups: %v, %v", at, partial, err)
		}
		if _, err := d.FirstSeen(t.Context(), store.Query{}, []string{"agent"}, 0); err == nil {
			t.Errorf("%s: something is called new though not all was looked at", at)
		}
		// What no open request can be is answered whole.
		for _, q := range []string{"event:task.opened", "type:event"} {
			l := all(t, d, store.Query{Filter: filter(t, q)})
			g, partial, err := d.Groups(t.Context(), store.Query{Filter: filter(t, q)}, []string{"event"}, 0)
			if len(l) != 1 || err != nil || partial || len(g) != 1 {
				t.Errorf("%s: %q: %d rows, partial %v, %v", at, q, len(l), partial, err)
			}
		}
	}
}

// Begins that are too large to be read at once find their ends all the same.
func TestManyLongHalves(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{QueryTimeout: time.Minute})
		const many = 24
		var ends []audit.Line
		for n := range uint64(many) {
			put(t, d, alice, long("e1", n+1, "2026-03-01T12:00:00Z"))
			text := fmt.Appendf(nil, `{"schema":%q,"type":"end","id":"e1-%d","epoch":"e2","sequence":%d,"begin_epoch":"e1","begin_sequence":%d,"time":"2026-03-01T12:00:01Z","result":{"outcome":"ok"}}`,
				audit.SchemaVersion, n+1, n+1, n+1)
			ends = append(ends, audit.Line{Epoch: "e2", Sequence: n + 1, JSON: text})
		}
		put(t, d, alice, ends...)
		f, err := d.Facets(t.Context(), store.Query{}, []string{"outcome"}, 5)
		if err != nil || f.Total.Count != many || len(f.Facets[0].Values) != 1 || f.Facets[0].Values[0].Value != audit.OutcomeOK {
			t.Errorf("%+v, %v", f, err)
		}
		indexIsWhole(t, d)
	})
}

// A begin and its end are joined, whichever epoch stands first in a batch.
func TestLaterEpochFirst(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		a, b := newScribe(t, "ea"), newScribe(t, "eb")
		begin := a.begin("rec_1")
		put(t, d, alice, b.end("rec_1", "ea", begin.Sequence, audit.OutcomeOK), begin)
		if got := outcomes(t, d, ""); got != "rec_1:end:ok" {
			t.Errorf("got %s", got)
		}
		indexIsWhole(t, d)
	})
}
