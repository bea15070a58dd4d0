package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
)

// The records of a configured audit.dir are found without --dir, and those of
// the state folder where none is configured.
func TestAuditFindsTheConfiguredSpool(t *testing.T) {
	t.Setenv("ATTACHE_CONFIG", "")
	base := t.TempDir()
	spool := func(id string, path ...string) string {
		dir := filepath.Join(append([]string{base}, path...)...)
		s, err := audit.Open(audit.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Write(&audit.Record{ID: id, Result: &audit.Result{Outcome: audit.OutcomeDenied}}), s.Close()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	documents := func(name, spec string) string {
		dir := filepath.Join(base, name)
		text := "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {" + spec + "}\n"
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	named := documents("named", "audit: {dir: records}")
	plain := documents("plain", "")
	bad := documents("bad", "audit: {dirs: records}")
	spool("rec_configured", "named", "records")
	spool("rec_state", "state", "audit", "0")
	other := spool("rec_other", "elsewhere")

	for _, tt := range []struct {
		name, env string
		args      []string
		want      string
	}{
		{"configured", "", []string{"--config", named}, "rec_configured"},
		{"by the environment", named, nil, "rec_configured"},
		{"the flag wins", plain, []string{"-c", named}, "rec_configured"},
		{"--dir wins", named, []string{"--dir", other}, "rec_other"},
		{"none configured", "", []string{"--config", plain}, "rec_state"},
		{"no documents", "", nil, "rec_state"},
	} {
		for _, command := range []string{"search", "show"} {
			t.Run(tt.name+" "+command, func(t *testing.T) {
				t.Setenv("ATTACHE_CONFIG", tt.env)
				args := append([]string{"audit", command, "-o", "json", "--state", filepath.Join(base, "state")}, tt.args...)
				if command == "show" {
					args = append(args, tt.want)
				}
				c, _ := root()
				var out bytes.Buffer
				c.SetOut(&out)
				c.SetArgs(args)
				if err := c.Execute(); err != nil {
					t.Fatal(err)
				}
				if got := out.String(); strings.Count(got, `"id"`) != 1 || !strings.Contains(got, tt.want) {
					t.Errorf("got %s, want %s alone", got, tt.want)
				}
			})
		}
	}
	c, _ := root()
	c.SetArgs([]string{"audit", "verify", "--config", bad})
	var f failure
	if err := c.Execute(); !errors.As(err, &f) || f.status != 2 || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("documents with a mistake: got %v", err)
	}
}
