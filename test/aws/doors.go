package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/test/leak"
)

// doorClient is a client that fetches its keys at a door, and how the records
// know that it did.
type doorClient struct {
	client
	door    string
	through func(audit.Record) bool
}

func doorClients(short bool) []doorClient {
	path := func(want string) func(audit.Record) bool {
		return func(rec audit.Record) bool { return rec.Request.Door == "aws" && rec.Request.Path == want }
	}
	below := func(folder string) func(audit.Record) bool { // the role's name follows
		return func(rec audit.Record) bool {
			name, ok := strings.CutPrefix(rec.Request.Path, folder)
			return rec.Request.Door == "aws" && ok && name != ""
		}
	}
	sts := func(rec audit.Record) bool {
		return strings.HasPrefix(rec.Request.Host, "sts.") && strings.HasPrefix(rec.Decision.Reason, "sts:AssumeRoleWithWebIdentity")
	}
	var out []doorClient
	for _, c := range clients(false) {
		c.plain = true // there are no keys in the environment to sign a planted call with
		switch c.name {
		case "boto3":
			out = append(out, doorClient{c, "container", path("/v1/credentials")})
		case "aws-sdk-go-v2":
			out = append(out, doorClient{c, "imds", below("/latest/meta-data/iam/security-credentials/")})
		case "@aws-sdk/client-s3":
			out = append(out, doorClient{c, "webIdentity", sts})
		}
	}
	if short {
		return out[:1]
	}
	return out
}

// doors lets clients fetch their keys instead of finding them in the
// environment, and then do all that they do with those.
func (s *suite) doors(ctx context.Context) []error {
	var errs []error
	for _, c := range doorClients(s.short) {
		start := time.Now()
		dir := filepath.Join(s.dir, "door-"+c.door)
		r := &run{s: s, client: c.client, dir: dir, config: filepath.Join(dir, "config")}
		documents := bytes.Replace(s.w.agentConfig(nil), []byte("    noEscapes: true\n"), []byte("    noEscapes: true\n    doors: ["+c.door+"]\n"), 1)
		err := writeConfig(r.config, documents)
		if err == nil {
			err = r.do(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.door, err))
			continue
		}
		s.report(fmt.Sprintf("%s door: %s: %d steps", c.door, c.name, len(r.steps)), start, slices.Concat(r.checkSteps(), r.checkObjects(ctx), r.checkDoor(c)))
	}
	return errs
}

// checkDoor holds that the keys came by the door, that they are worth nothing,
// and that what signed the calls in their place was not seen.
func (r *run) checkDoor(c doorClient) []error {
	var errs []error
	fetched, signed := 0, 0
	for _, rec := range r.records {
		switch {
		case c.through(rec):
			fetched++
			if rec.Decision.Verdict != "allow" || rec.Credential != nil {
				errs = append(errs, fmt.Errorf("the door's record is %+v with %+v", rec.Decision, rec.Credential))
			}
		case rec.Credential != nil:
			signed++
		}
	}
	if fetched == 0 || signed == 0 {
		errs = append(errs, fmt.Errorf("%d records of the door and %d of calls that were signed anew, want some of each", fetched, signed))
	}
	places, err := r.places()
	if err != nil {
		return append(errs, err)
	}
	secrets := r.s.w.tap.secrets()
	if len(secrets) == 0 {
		errs = append(errs, errors.New("the tap learned no secret: nothing to search for"))
	}
	for _, f := range leak.Search(places, secrets) {
		errs = append(errs, fmt.Errorf("%s is in %s (%s)", f.Secret, f.Place, f.Form))
	}
	return errs
}
