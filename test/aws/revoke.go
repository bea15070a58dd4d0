package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
)

// revoked: a run revokes at its end what was minted for it, where the provider
// says how. Without that a session lives on at its issuer, though Attaché has
// forgotten it; it still does that one call.
func (s *suite) revoked(ctx context.Context) []error {
	config := filepath.Join(s.dir, "config-revocation")
	documents := bytes.Replace(s.w.agentConfig(nil), []byte("    noEscapes: true\n"), []byte("    noEscapes: true\n    revocation: {kind: minio}\n"), 1)
	if err := writeConfig(config, documents); err != nil {
		return []error{err}
	}
	c := calls()[0]
	var errs []error
	for _, t := range []struct {
		name, config string
		dead         bool
	}{{"forgotten", "", false}, {"revoked", config, true}} {
		r, err := s.agent(ctx, t.name, script([]call{c}), t.config)
		if err != nil {
			return append(errs, err)
		}
		loot, err := r.loot([]call{c})
		if err != nil {
			return append(errs, err)
		}
		status, body, err := s.w.send(ctx, c, loot[0].Keys)
		dead := status == http.StatusForbidden && strings.Contains(body, "<Code>InvalidAccessKeyId</Code>")
		if err != nil || dead != t.dead || !dead && status != http.StatusOK {
			errs = append(errs, fmt.Errorf("%s after the run: %d %s (%v)", t.name, status, brief(body), err))
		}
	}
	return errs
}
