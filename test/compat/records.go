package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/test/compat/upstream"
)

// checkRecords joins the run's records with the upstreams' access logs, one to
// one by id, and holds that no field of a record is missing.
func (r *run) checkRecords() error {
	var errs []error
	sent := map[string]audit.Record{}
	for _, rec := range r.records {
		if _, twice := sent[rec.ID]; twice {
			errs = append(errs, fmt.Errorf("record %s is there twice", rec.ID))
		}
		if missing := missingFields(rec); len(missing) > 0 {
			errs = append(errs, fmt.Errorf("record %s of %s %s lacks %v", rec.ID, rec.Request.Method, rec.Request.Path, missing))
		}
		if wasSent(rec) {
			sent[rec.ID] = rec
		}
	}
	if len(sent) == 0 {
		errs = append(errs, errors.New("no records"))
	}
	return errors.Join(append(errs, r.join(sent)...)...)
}

// wasSent reports whether the call left for an upstream. A caller may go away
// before that, as some gRPC interop cases do on purpose.
func wasSent(rec audit.Record) bool {
	return !isDenied(rec) && (rec.Result == nil || rec.Result.Outcome != audit.OutcomeCanceled || rec.Request.Address != "")
}

// join waits a moment for upstreams that log at the end of a stream.
func (r *run) join(sent map[string]audit.Record) []error {
	var errs []error
	for deadline := time.Now().Add(3 * time.Second); ; {
		errs = r.joinOnce(sent)
		if len(errs) == 0 || time.Now().After(deadline) {
			return errs
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (r *run) joinOnce(sent map[string]audit.Record) []error {
	var errs []error
	seen := map[string]int{}
	for _, e := range r.h.set.Log.Entries() {
		rec, ours := sent[e.ID]
		if !ours {
			continue
		}
		seen[e.ID]++
		// Who went away before the answer knows nothing of its status.
		status := rec.Result.Status == e.Status || rec.Result.Status == 0 || rec.Result.Outcome == audit.OutcomeCanceled
		if !status || e.Path != rec.Request.Path || e.Method != rec.Request.Method {
			errs = append(errs, fmt.Errorf("record %s says %s %s %d, the upstream %s %s %d", e.ID, rec.Request.Method, rec.Request.Path, rec.Result.Status, e.Method, e.Path, e.Status))
		}
	}
	for id, rec := range sent {
		if seen[id] == 0 && rec.Result.Outcome == audit.OutcomeCanceled {
			continue // canceled while it was on the way
		}
		if seen[id] != 1 {
			errs = append(errs, fmt.Errorf("record %s (%s %s%s, %s) is %d times in the upstream's log", id, rec.Request.Method, rec.Request.Host, rec.Request.Path, rec.Result.Outcome, seen[id]))
		}
	}
	return errs
}

// missingFields names what a finished record of a call of ours must have.
func missingFields(rec audit.Record) []string {
	var missing []string
	need := func(ok bool, name string) {
		if !ok {
			missing = append(missing, name)
		}
	}
	q, d, res, w, p, s := rec.Request, rec.Decision, rec.Result, rec.Workload, rec.Process, rec.Steps
	if w == nil || p == nil || d == nil || res == nil || s == nil {
		return []string{"workload, process, decision, result or steps"}
	}
	need(rec.ID != "" && rec.Epoch != "" && rec.Sequence > 0 && !rec.Time.IsZero(), "id, epoch, sequence or time")
	need(w.ID == upstream.Workload && w.RunID != "" && w.PostureDigest != "", "workload")
	need(p.PID > 0 && p.Exe != "" && p.Digest != "", "process")
	need(rec.Owner == "compat-team", "owner")
	need(q.Door != "" && q.Scheme != "" && q.Host != "" && q.Port > 0 && q.Method != "" && q.Path != "" && q.Protocol != "" && q.HTTPVersion != "", "request")
	need(d.Verdict != "" && d.Policy == "compat" && d.Rule != "" && d.Version != "", "decision")
	need(res.Outcome != "", "outcome")
	need(s.Attested > 0 && s.Decided > 0 && s.Ended > 0, "steps")
	if isDenied(rec) {
		need(d.Reason != "" && d.Code != "", "reason")
		return missing
	}
	if !wasSent(rec) {
		return missing
	}
	c := rec.Credential
	need(c != nil && c.Handle != "" && c.Provider != "" && c.Kind != "" && c.ScopeSource != "" && !c.Expires.IsZero() && c.TTLSeconds > 0, "credential")
	if c != nil && !slices.Contains([]string{"openai", "anthropic"}, c.Provider) { // whose scope is the service account
		need(slices.Equal(c.ScopeGranted, []string{"compat:use"}), "scope")
	}
	need(q.Address != "", "address")
	need(s.Begun > 0 && s.Minted > 0 && s.Injected > 0, "steps of a sent call")
	need(res.Status > 0 || res.Outcome == audit.OutcomeCanceled, "status")
	return missing
}

// strays are lines of the access log that no record accounts for.
func strays(entries []upstream.Entry, runs []*run) []error {
	known := map[string]bool{}
	for _, r := range runs {
		for _, rec := range r.records {
			known[rec.ID] = wasSent(rec)
		}
	}
	var errs []error
	for _, e := range entries {
		if e.Host != upstream.CanaryHost && !known[e.ID] {
			errs = append(errs, fmt.Errorf("an upstream got %s %s%s (%d) with id %q, which no record of an allowed call has", e.Method, e.Host, e.Path, e.Status, e.ID))
		}
	}
	return errs
}
