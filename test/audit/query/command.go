package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// sample is a record that is there, and when the newest was.
type sample struct {
	id, handle string
	now        time.Time
}

// commands measures attache audit, each time as a process of its own: what it
// takes to start, to open the store and to read its index anew is in the time. The
// store's files are in the page cache.
func commands(ctx context.Context, o Options, s sample) ([]Answer, error) {
	state, err := os.MkdirTemp("", "attache-commands-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state) //nolint:errcheck // scratch
	day := "since:" + s.now.Add(-24*time.Hour).UTC().Format(time.RFC3339)
	var l []Answer
	for _, args := range [][]string{
		{"search"},
		{"search", "owner:ana", "dest:*.s3.*", "verdict:deny", day},
		{"search", "agent:invoices", "bucket:payments", day},
		{"search", "path:*refund-77*"},
		{"search", "path:*zebra-9*"},
		{"search", "handle:" + s.handle},
		{"show", s.id},
		{"facets", day},
		{"facets"},
		{"facets", "owner:ana"},
		{"facets", "path:*refund*"},
	} {
		a := Answer{Name: "attache audit " + strings.Join(args, " ")}
		args = append(append([]string{"audit"}, args...), "--store", o.URL, "--state", state)
		var times, cpus []time.Duration
		for i := range o.Rounds + 1 {
			var out, told bytes.Buffer
			c := exec.CommandContext(ctx, o.Command, args...) //nolint:gosec // the caller's program
			c.Stdout, c.Stderr = &out, &told
			begin := time.Now()
			if err := c.Run(); err != nil {
				return l, errors.Join(fmt.Errorf("%s: %w: %s", a.Name, err, told.String()))
			}
			if i > 0 { // the first one fills the page cache
				times, cpus = append(times, time.Since(begin)), append(cpus, c.ProcessState.UserTime()+c.ProcessState.SystemTime())
			}
			a.Rows = int64(bytes.Count(out.Bytes(), []byte("\n")))
		}
		slices.Sort(times)
		slices.Sort(cpus)
		a.Warm, a.CPU = times[(len(times)*95+99)/100-1], cpus[len(cpus)/2]
		fmt.Fprintf(o.Out, "%-72s %5d lines  p95 %8.1f ms  cpu %8.1f ms\n", a.Name, a.Rows, ms(a.Warm), ms(a.CPU))
		l = append(l, a)
	}
	return l, nil
}
