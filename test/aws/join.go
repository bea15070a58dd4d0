package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// checkJoin holds that each record of a call that left joins exactly one line
// of MinIO's audit log, by record id, session and request id; and that no
// line of a session of ours lacks its record.
func (r *run) checkJoin(ctx context.Context) []error {
	deadline := time.NewTimer(10 * time.Second) // MinIO posts its lines in the background
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		errs := r.joinOnce()
		if len(errs) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return errs
		case <-ctx.Done():
			return append(errs, ctx.Err())
		}
	}
}

func (r *run) joinOnce() []error {
	lines, unreadable := r.s.w.log.all()
	if unreadable > 0 {
		return []error{fmt.Errorf("%d lines of MinIO's audit log cannot be read", unreadable)}
	}
	byRecord := map[string][]line{}
	for _, l := range lines {
		byRecord[l.record()] = append(byRecord[l.record()], l)
	}
	sessions := map[string]session{}
	for _, s := range r.s.w.tap.minted() {
		sessions[s.Handle] = s
	}
	var errs []error
	sent := 0
	for _, rec := range r.records {
		if rec.Result == nil || rec.Result.Outcome == audit.OutcomeDenied {
			if n := len(byRecord[rec.ID]); n > 0 {
				errs = append(errs, fmt.Errorf("%s was denied and is %d times in MinIO's log", describe(rec), n))
			}
			continue
		}
		sent++
		if err := joins(rec, byRecord[rec.ID], sessions); err != nil {
			errs = append(errs, err)
		}
	}
	if sent == 0 {
		errs = append(errs, fmt.Errorf("no record of a call that was sent"))
	}
	return errs
}

// joins compares a record with the lines that name it.
func joins(rec audit.Record, lines []line, sessions map[string]session) error {
	if len(lines) != 1 {
		return fmt.Errorf("%s is %d times in MinIO's log", describe(rec), len(lines))
	}
	l, c := lines[0], rec.Credential
	if c == nil || c.AWS == nil {
		return fmt.Errorf("%s has no credential of AWS", describe(rec))
	}
	s, ok := sessions[c.Handle]
	switch {
	case !ok:
		return fmt.Errorf("%s: STS minted no session named %s", describe(rec), c.Handle)
	case s.Keys.AccessKeyID != l.AccessKey && !l.anonymous():
		return fmt.Errorf("%s: MinIO saw access key %s, session %s has %s", describe(rec), l.AccessKey, c.Handle, s.Keys.AccessKeyID)
	case c.PublicID != s.Keys.AccessKeyID:
		return fmt.Errorf("%s names access key %q, session %s has %s", describe(rec), c.PublicID, c.Handle, s.Keys.AccessKeyID)
	case rec.Result.UpstreamRequestID == "" || rec.Result.UpstreamRequestID != l.RequestID:
		return fmt.Errorf("%s has request id %q, MinIO's line %q", describe(rec), rec.Result.UpstreamRequestID, l.RequestID)
	case rec.Result.Status/100 != l.API.StatusCode/100: // MinIO logs 200 for some of its 204
		return fmt.Errorf("%s has status %d, MinIO's line %d", describe(rec), rec.Result.Status, l.API.StatusCode)
	}
	return nil
}

// checkRecords holds that no field of a record is missing.
func (r *run) checkRecords() []error {
	var errs []error
	seen := map[string]bool{}
	denied := 0
	for _, rec := range r.records {
		if seen[rec.ID] {
			errs = append(errs, fmt.Errorf("%s is there twice", describe(rec)))
		}
		seen[rec.ID] = true
		if missing := missing(rec); len(missing) > 0 {
			errs = append(errs, fmt.Errorf("%s lacks %v", describe(rec), missing))
		}
		if rec.Result != nil && rec.Result.Outcome == audit.OutcomeDenied {
			denied++
		}
	}
	if want := len(slices.DeleteFunc(slices.Clone(r.steps), func(o outcome) bool { return !o.denied() })); denied < want {
		errs = append(errs, fmt.Errorf("%d records of denials for %d denied steps", denied, want))
	}
	return errs
}

// missing names what a finished record of a call must have.
func missing(rec audit.Record) []string {
	var out []string
	need := func(ok bool, name string) {
		if !ok {
			out = append(out, name)
		}
	}
	if rec.Workload == nil || rec.Process == nil || rec.Decision == nil || rec.Result == nil || rec.Steps == nil {
		return []string{"workload, process, decision, result or steps"}
	}
	need(rec.ID != "" && rec.Epoch != "" && rec.Sequence > 0 && !rec.Time.IsZero(), "id, epoch, sequence or time")
	need(rec.Workload.ID == "spiffe://attache.local/agent/aws" && rec.Owner == "aws-team", "workload or owner")
	need(rec.Process.PID > 0 && rec.Process.Exe != "", "process")
	need(rec.Request.Door != "" && rec.Request.Method != "" && rec.Request.Path != "" && rec.Request.Host != "", "request")
	need(rec.Decision.Policy == "aws" && rec.Decision.Rule == "objects", "decision")
	if rec.Result.Outcome == audit.OutcomeDenied {
		need(rec.Decision.Code != "" && rec.Decision.Reason != "", "code or reason of the denial")
		return out
	}
	c := rec.Credential
	if c == nil || c.AWS == nil {
		return append(out, "credential")
	}
	need(c.Handle != "" && c.Provider == "minio" && c.Kind == "aws-session" && !c.Expires.IsZero() && c.TTLSeconds > 0, "credential")
	need(c.PublicID != "" && (c.Session == "" || strings.HasSuffix(c.Session, "/"+c.Handle)), "public id, or the handle in the session")
	need(c.AWS.Service == "s3" && c.AWS.Operation != "" && c.AWS.Region == region && c.AWS.Scope == "request", "service, operation, region or scope")
	need(len(c.AWS.Actions) > 0 && len(c.AWS.Resources) > 0 && c.ScopeSource == "derived" && len(c.ScopeAsked) > 0, "actions, resources or asked scope")
	need(rec.Result.Status > 0 && rec.Request.Address != "", "status or address")
	return out
}

func describe(rec audit.Record) string {
	return fmt.Sprintf("record %s (%s %s)", rec.ID, rec.Request.Method, rec.Request.Path)
}
