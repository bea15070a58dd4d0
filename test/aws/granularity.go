package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
)

// granularities holds how far the session of one read reaches, by the rule's
// granularity: never beyond the static policy.
func (s *suite) granularities(ctx context.Context) []error {
	for _, k := range []string{"desk/near/a", "desk/near/b", "desk/far/a"} {
		if err := s.w.store(ctx, "alpha", k, []byte(k)); err != nil {
			return []error{err}
		}
	}
	own := call{name: "its own call", method: "GET", target: "/alpha/desk/near/a"}
	reach := []call{
		own,
		{name: "a key below the same prefix", method: "GET", target: "/alpha/desk/near/b"},
		{name: "a key elsewhere", method: "GET", target: "/alpha/desk/far/a"},
		{name: "another action", method: "PUT", target: "/alpha/desk/near/c", body: "x"},
		{name: "a key outside of the static policy", method: "GET", target: "/alpha/private/seed"},
		{name: "another bucket", method: "GET", target: "/gamma/seed"},
	}
	var errs []error
	for granularity, within := range map[string]int{"request": 1, "prefix": 2, "task": 4, "session": 4} {
		config := filepath.Join(s.dir, "config-"+granularity)
		rule := []byte("credential: {provider: minio, aws: {granularity: " + granularity + "}}")
		if err := writeConfig(config, bytes.Replace(s.w.agentConfig(nil), []byte("credential: {provider: minio}"), rule, 1)); err != nil {
			return append(errs, err)
		}
		r, err := s.agent(ctx, "by-"+granularity, script([]call{own}), config)
		if err != nil {
			return append(errs, err)
		}
		loot, err := r.loot([]call{own})
		if err != nil {
			return append(errs, err)
		}
		for i, c := range reach {
			status, body, err := s.w.send(ctx, c, loot[0].Keys)
			if err != nil || i < within && status != http.StatusOK || i >= within && !refused(status, body) {
				errs = append(errs, fmt.Errorf("granularity %s, %s: %d %s (%v)", granularity, c.name, status, brief(body), err))
			}
		}
		source := map[bool]string{true: "static", false: "derived"}[granularity == "session"]
		errs = append(errs, r.checkJoin(ctx)...)
		if u := r.records[0].Credential; u.ScopeSource != source || u.AWS.Scope != granularity {
			errs = append(errs, fmt.Errorf("granularity %s is recorded as %s, %s", granularity, u.ScopeSource, u.AWS.Scope))
		}
	}
	return errs
}
