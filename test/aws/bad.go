package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// fault is something that goes wrong between Attaché and STS, and what the
// user of boto3 must read about it.
type fault struct {
	name   string
	change func(*settings)
	sts    http.Handler
	shows  *regexp.Regexp
}

func faults(closed string) []fault {
	return []fault{
		{name: "sts-down", change: func(s *settings) { s.STSAddr = closed }, shows: regexp.MustCompile(`(?i)\((?:503|ServiceUnavailable|SlowDown)\).*attach`)},
		{name: "sts-throttled", sts: throttled(), shows: regexp.MustCompile(`(?i)\((?:503|ServiceUnavailable|SlowDown)\).*attach`)},
		{name: "sts-slow", sts: silent(), change: func(s *settings) { s.Timeout = "1s" }, shows: regexp.MustCompile(`(?i)\((?:503|ServiceUnavailable|SlowDown)\).*attach`)},
		{name: "sts-garbage", sts: garbage(), shows: regexp.MustCompile(`(?i)\([A-Za-z0-9]+\).*attach`)},
		{name: "wrong-audience", change: func(s *settings) { s.Audience = "someone-else" }, shows: regexp.MustCompile(`(?i)\(AccessDenied\).*attach`)},
		{name: "unknown-key", change: func(s *settings) { s.Key = "other.sock" }, shows: regexp.MustCompile(`(?i)\(AccessDenied\).*attach`)},
	}
}

// throttled answers as STS does under load (AWS STS API reference, Common
// Errors: Throttling, HTTP 400; the XML of the query protocol).
func throttled() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>`)
	})
}

// silent never answers.
func silent() http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// garbage is what a captive portal says.
func garbage() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html><p>Sign in to the network") })
}

const oneGet = `/usr/bin/python3 -c '
import json, os, time, boto3
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(retries={"max_attempts": 0}, read_timeout=30))
start = time.time()
r = {"step": "denied get"}
try:
    s3.get_object(Bucket="alpha", Key="readonly/seed")
except Exception as e:
    r["error"] = "%s: %s" % (type(e).__name__, e)
r["key"] = "%.1f s" % (time.time() - start)
print(json.dumps(r))'`

// bad input: each fault is told to the user in the SDK's own error, nothing is
// half-written, and the record is complete.
func (s *suite) bad(ctx context.Context) []error {
	closed, err := freeAddr()
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, f := range faults(closed) {
		if err := s.tryFault(ctx, f); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		}
	}
	errs = append(errs, s.malformed(ctx)...)
	return append(errs, s.tooLarge(ctx)...)
}

// tryFault runs one boto3 call into the fault.
func (s *suite) tryFault(ctx context.Context, f fault) error {
	config := filepath.Join(s.dir, "config-"+f.name)
	if err := writeConfig(config, s.w.agentConfig(f.change)); err != nil {
		return err
	}
	if f.sts != nil {
		s.w.tap.breakWith(f.sts)
		defer s.w.tap.breakWith(nil)
	}
	r, err := s.agent(ctx, f.name, oneGet, config)
	if err != nil {
		return err
	}
	if len(r.steps) != 1 || !f.shows.MatchString(r.steps[0].Error) {
		said, _ := os.ReadFile(r.out("steps.err"))
		return fmt.Errorf("the user reads %+v %s", r.steps, brief(string(said)))
	}
	fmt.Printf("        %-15s %s: %s\n", f.name, r.steps[0].Key, brief(r.steps[0].Error))
	for _, rec := range r.records {
		if rec.Result == nil || rec.Decision == nil || rec.Steps == nil || rec.Result.Status < 400 || rec.Result.ErrorKind == "" && rec.Decision.Code == "" {
			return fmt.Errorf("%s is incomplete: %+v %+v", describe(rec), rec.Decision, rec.Result)
		}
		if rec.Request.Address != "" {
			return fmt.Errorf("%s was sent to %s without a credential", describe(rec), rec.Request.Address)
		}
	}
	return nil
}

// malformed holds that broken framing reaches nobody and stores nothing.
func (s *suite) malformed(ctx context.Context) []error {
	r, err := s.agent(ctx, "malformed", "/usr/bin/python3 $S/malformed.py", "")
	if err != nil {
		return []error{err}
	}
	var errs []error
	if len(r.steps) != 16 {
		said, _ := os.ReadFile(r.out("steps.err"))
		errs = append(errs, fmt.Errorf("%d steps of 16: %s", len(r.steps), lastLines(string(said), 8)))
	}
	for _, o := range r.steps {
		switch {
		case !o.refused() && o.Error != "":
			errs = append(errs, fmt.Errorf("%s: %s", o.Step, brief(o.Error)))
		case o.refused() && (o.Error == "" || strings.HasPrefix(o.Error, "no answer")):
			errs = append(errs, fmt.Errorf("%s: got through, or no answer: %s", o.Step, brief(o.Error)))
		case o.denied() && !reason.MatchString(o.Error):
			errs = append(errs, fmt.Errorf("%s: the user does not see why: %s", o.Step, brief(o.Error)))
		}
	}
	h, err := s.w.sum(ctx, "alpha", r.prefix()+"malformed")
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // SHA-256 of abc
	if err != nil || h != abc {
		errs = append(errs, fmt.Errorf("the object is not the one good upload any more (%v)", err))
	}
	return errs
}

const manyKeys = `/usr/bin/python3 -c '
import json, os, boto3
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1")
r = {"step": "denied delete of many"}
try:
    s3.delete_objects(Bucket="alpha", Delete={"Objects": [{"Key": "desk/%04d/" % i + "x" * 60} for i in range(40)]})
except Exception as e:
    r["error"] = "%s: %s" % (type(e).__name__, e)
print(json.dumps(r))'`

// tooLarge: a session policy over STS's limit is refused with both figures.
func (s *suite) tooLarge(ctx context.Context) []error {
	before := s.w.tap.asked()
	r, err := s.agent(ctx, "toolarge", manyKeys, "")
	if err != nil {
		return []error{err}
	}
	var errs []error
	if len(r.steps) != 1 || !strings.Contains(r.steps[0].Error, "AccessDenied") || !strings.Contains(strings.ReplaceAll(r.steps[0].Error, ",", ""), "2048") {
		errs = append(errs, fmt.Errorf("a policy over the limit: the user reads %+v", r.steps))
	}
	if n := s.w.tap.asked() - before; n > 0 {
		errs = append(errs, fmt.Errorf("STS was asked %d times", n))
	}
	return errs
}
