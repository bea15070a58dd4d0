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

// A producer whose requests never end, and are long, does not fill the memory
// of who asks something.
func TestLongRequestsWithoutAnEnd(t *testing.T) {
	d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "audit.db"), store.Options{QueryTimeout: time.Minute}) // the race detector is slow
	path := strings.Repeat("/x", 500_000)                                                                    // no spool of ours writes such a line
	for n := range uint64(70) {
		text := fmt.Appendf(nil, `{"schema":%q,"type":"begin","id":"r%d","epoch":"e1","sequence":%d,"time":"2026-03-01T12:00:%02dZ","request":{"path":%q}}`, audit.SchemaVersion, n, n+1, n%60, path)
		put(t, d, alice, audit.Line{Epoch: "e1", Sequence: n + 1, JSON: text})
	}
	f, err := d.Facets(t.Context(), store.Query{}, []string{"outcome"}, 5)
	if err != nil || f.Total.Count < 60 || f.Total.Count >= 70 {
		t.Errorf("%d of 70 requests of 1 MB are looked at, %v", f.Total.Count, err)
	}
	p, err := d.Search(t.Context(), store.Query{})
	if err != nil || f.Partial != true || !p.Partial && p.Next == "" {
		t.Errorf("that not all were looked at is not said: %v, %+v, %v", f.Partial, p.Until, err)
	}
	n := 0
	for p, err = range d.Pages(t.Context(), store.Query{Limit: 30}) {
		n += len(p.Rows)
	}
	if n < 60 || !errors.Is(err, store.ErrOpen) || !strings.Contains(err.Error(), "until:") {
		t.Errorf("%d rows, and the end does not say that there are more: %v", n, err)
	}
}
