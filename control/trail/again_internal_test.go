package trail

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/golang-lru/v2/expirable"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/relay"
)

// Whoever asks on and on is in the records with every refusal, also when one
// comes just as a minute (a shorter one here) is over.
func TestNoRefusalIsLost(t *testing.T) {
	dir := t.TempDir()
	tr, err := Open(Options{Dir: dir, Replica: "attache-control-1"})
	if err != nil {
		t.Fatal(err)
	}
	const minute = 50 * time.Millisecond
	tr.told = expirable.NewLRU(remembered, tr.ended, minute)
	asked := 0
	for began := time.Now(); time.Since(began) < 10*minute; asked++ {
		if err := tr.Relayed(t.Context(), relay.Event{Result: "denied", PodUID: "u", Code: "no_rule"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	said, firsts := 0, 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for l := range bytes.Lines(text) {
			if l[0] == 0 {
				continue
			}
			line, err := audit.ParseLine(l)
			if err != nil {
				t.Fatal(err)
			}
			r, err := line.Record()
			if err != nil {
				t.Fatal(err)
			}
			if r.Type != audit.TypeEvent {
				continue
			}
			n := r.Event.Fields["unrecorded"]
			if n == "" {
				firsts++
				said++
				continue
			}
			more, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			said += more
		}
	}
	if said != asked || firsts < 2 {
		t.Errorf("%d refusals are in the records, of %d; %d minutes", said, asked, firsts)
	}
}
