package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"

	"github.com/attache-dev/attache/internal/run"
)

type cell struct {
	target   string
	scenario scenario
}

// figures holds one row a round and cell.
type figures struct {
	order []cell
	m     map[cell][]row
	fails int

	recording []float64 // CPU of a record, in nanoseconds, a round
}

func (b *bench) measureAll(ts []*target, ss []scenario, o options) *figures {
	f := &figures{m: map[cell][]row{}}
	for _, s := range ss {
		for round := range s.rounds(o) {
			for i := range ts { // a different target goes first in each round
				t := ts[(i+round)%len(ts)]
				if s.h2 && !t.h2 {
					continue
				}
				r, err := b.one(t, s, o)
				if err != nil {
					f.fails++
					fmt.Printf("FAIL   %-10s %-12s %v\n", t.name, s, err)
					continue
				}
				c := cell{t.name, s}
				if f.m[c] == nil {
					f.order = append(f.order, c)
				}
				f.m[c] = append(f.m[c], r)
			}
		}
		fmt.Printf("done   %s\n", s)
	}
	return f
}

// one measures t in s. Connections are opened and warmed before, and closed
// after, the target's accounts are read.
func (b *bench) one(t *target, s scenario, o options) (row, error) {
	ord := t.order
	ord.Path, ord.H2, ord.Conns, ord.Warm, ord.For = s.path, s.h2, s.conns, o.warm, o.dur
	if s.h2 && ord.Host == b.origin {
		if ord.Host = b.originH2; ord.Addr == b.origin {
			ord.Addr = b.originH2
		}
	}
	var before, after usage
	profiled := make(chan error, 1)
	r, err := t.gen.run(ord, func(phase string) (err error) {
		if phase == phaseBegin {
			before, err = b.usage(t)
			if o.profile != "" && t.name == "attache" {
				go func() { profiled <- b.profile(o) }()
			} else {
				profiled <- nil
			}
			return err
		}
		after, err = b.usage(t)
		return err
	})
	if err != nil {
		return row{}, err
	}
	if err := <-profiled; err != nil {
		return row{}, fmt.Errorf("profile: %w", err)
	}
	out := row{Target: t.name, Scenario: s.String(), RPS: float64(r.Requests) / r.Seconds, P50: r.P50, P99: r.P99, RSS: after.rss, dials: after.dials - before.dials}
	out.CPU = float64((after.cpu - before.cpu).Microseconds()) / float64(r.Requests)
	return out, nil
}

// profile takes a CPU profile of the running attache through its admin socket.
func (b *bench) profile(o options) error {
	runs, err := run.Runs(b.state())
	if err != nil || len(runs) != 1 {
		return fmt.Errorf("%d runs: %w", len(runs), err)
	}
	seconds := max(1, int(o.dur.Seconds()))
	resp, err := runs[0].Client().Get(fmt.Sprintf("http://admin/debug/pprof/profile?seconds=%d", seconds))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(o.profile, data, 0o644)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func pick(rs []row, f func(row) float64) []float64 {
	out := make([]float64, 0, len(rs))
	for _, r := range rs {
		out = append(out, f(r))
	}
	return out
}

func (f *figures) rows() []row {
	out := make([]row, 0, len(f.order))
	for _, c := range f.order {
		rs := f.m[c]
		out = append(out, row{Target: c.target, Scenario: c.scenario.String(),
			RPS: median(pick(rs, func(r row) float64 { return r.RPS })), CPU: median(pick(rs, func(r row) float64 { return r.CPU })),
			P50: median(pick(rs, func(r row) float64 { return r.P50 })), P99: median(pick(rs, func(r row) float64 { return r.P99 })),
			RSS:   int64(median(pick(rs, func(r row) float64 { return float64(r.RSS) }))),
			dials: int64(median(pick(rs, func(r row) float64 { return float64(r.dials) })))})
	}
	return out
}

// ratio is a's CPU a request over b's: median, least and greatest over rounds.
func (f *figures) ratio(a, b string, s scenario) (mid, low, high float64, ok bool) {
	ra, rb := f.m[cell{a, s}], f.m[cell{b, s}]
	var v []float64
	for i := range min(len(ra), len(rb)) {
		if rb[i].CPU > 0 {
			v = append(v, ra[i].CPU/rb[i].CPU)
		}
	}
	if len(v) == 0 {
		return 0, 0, 0, false
	}
	return median(v), slices.Min(v), slices.Max(v), true
}

func (f *figures) print() {
	fmt.Printf("\n%-14s %-10s %10s %12s %10s %10s %10s %9s %7s %22s\n", "scenario", "target", "req/s", "cpu ms/1k", "p50 µs", "p99 µs", "added µs", "RSS MiB", "dials", "CPU attache/this")
	rows := f.rows()
	direct := map[string]float64{}
	for _, r := range rows {
		if r.Target == "direct" {
			direct[r.Scenario] = r.P50
		}
	}
	last := ""
	for i, r := range rows {
		if r.Scenario != last {
			fmt.Println()
			last = r.Scenario
		}
		rel := ""
		if mid, low, high, ok := f.ratio("attache", r.Target, f.order[i].scenario); ok && r.Target != "attache" {
			rel = fmt.Sprintf("%.2f (%.2f–%.2f)", mid, low, high)
		}
		added := ""
		if d, ok := direct[r.Scenario]; ok && r.Target != "direct" {
			added = fmt.Sprintf("%.0f", r.P50-d)
		}
		fmt.Printf("%-14s %-10s %10.0f %12.1f %10.0f %10.0f %10s %9.1f %7d %22s\n", r.Scenario, r.Target, r.RPS, r.CPU, r.P50, r.P99, added, float64(r.RSS)/1024, r.dials, rel)
	}
}

// verdict counts measurements that worked and, if asked, checks what this
// release promises.
func (f *figures) verdict(goals bool) bool {
	fmt.Println()
	passed, failed := 0, f.fails
	for _, rs := range f.m {
		passed += len(rs)
	}
	if goals {
		met, missed := f.goals()
		passed, failed = passed+met, failed+missed
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	return failed == 0
}

func (f *figures) goals() (passed, failed int) {
	check := func(what string, got, limit float64, known bool) {
		verdict := "met"
		switch {
		case !known:
			verdict = "not measured"
		case got > limit:
			verdict = "MISSED"
			failed++
		default:
			passed++
		}
		fmt.Printf("goal   %-58s %8.2f  limit %6.2f  %s\n", what, got, limit, verdict)
	}
	s := scenario{"/1k", false, 32}
	mid, _, _, ok := f.ratio("attache", "goproxy", s)
	check("CPU a request over goproxy's, 1k h1 c32", mid, 1.3, ok)
	mid, _, _, ok = f.ratio("attache", "squid", s)
	check("CPU a request over squid's, 1k h1 c32", mid, 1.1, ok)
	big := f.m[cell{"attache", scenario{"/1k", false, 256}}]
	check("RSS at 256 connections, MiB", median(pick(big, func(r row) float64 { return float64(r.RSS) / 1024 })), 40, len(big) > 0)
	steady := f.m[cell{"attache", s}]
	dials := pick(steady, func(r row) float64 { return float64(r.dials) })
	check("upstream dials in the steady state, 1k h1 c32, worst round", slices.Max(append(dials, 0)), 0, len(steady) > 0)
	check("CPU of recording a request: begin, end and chain, µs", median(f.recording)/1000, recordingLimit/1000, len(f.recording) > 0)
	return passed, failed
}
