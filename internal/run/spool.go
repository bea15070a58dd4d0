package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/dataplane"
)

// maxSpools bounds the runs that share a state folder at one time.
const maxSpools = 64

// openSpool opens the configured spool, or the first one below the state
// folder that no other run writes to: a spool has one writer.
func openSpool(o *Options, b *api.Bundle, svid dataplane.SVIDFunc, collector bool) (*audit.Spool, string, error) {
	opts := audit.FromConfig(b.Config.Spec.Audit)
	opts.Logger, opts.Version = o.Log, o.Version
	opts.Kind, opts.Signer, opts.Collector = audit.KindRun, dataplane.SignerOf(svid), collector
	opts.Config = map[string]string{"policy_version": b.Version, "config": o.Config}
	if opts.Dir != "" {
		s, err := audit.Open(opts)
		if errors.Is(err, audit.ErrInUse) {
			err = fmt.Errorf("%w; give this run another audit.dir, or none: then each run has a spool of its own", err)
		}
		return s, opts.Dir, err
	}
	if err := os.MkdirAll(filepath.Join(o.State, "audit"), 0o700); err != nil {
		return nil, "", fmt.Errorf("make the state folder: %w; name a writable one with --state", err)
	}
	for i := range maxSpools {
		opts.Dir = filepath.Join(o.State, "audit", strconv.Itoa(i))
		s, err := audit.Open(opts)
		if !errors.Is(err, audit.ErrInUse) {
			return s, opts.Dir, err
		}
	}
	return nil, "", fmt.Errorf("all %d spools below %s are in use; give this run its own --state", maxSpools, o.State)
}

// ConfiguredSpool is the spool folder that the documents of a folder name;
// empty: runs take those of the state folder.
func ConfiguredSpool(config string) (string, error) {
	b, err := load(config)
	if err != nil {
		return "", err
	}
	return b.Config.Spec.Audit.Dir, nil
}

// Spools lists the spool folders of a state folder.
func Spools(state string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(state, "audit"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no records below %s yet; start something with attache run, or name another folder with --state", state)
	}
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(state, "audit", e.Name()))
		}
	}
	return dirs, nil
}
