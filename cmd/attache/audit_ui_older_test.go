package main

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/reads"
)

// closing is the output of a page that is closed once it says its link.
type closing struct {
	bytes.Buffer
	stop func()
}

func (c *closing) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("http://127.0.0.1")) {
		c.stop()
	}
	return c.Buffer.Write(p)
}

func opened(t *testing.T, state string) (told string, err error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &closing{stop: stop}
	var e bytes.Buffer
	c, _ := root()
	c.SetOut(out)
	c.SetErr(&e)
	c.SetArgs([]string{"audit", "ui", "--state", state})
	err = c.ExecuteContext(ctx)
	if err == nil && !strings.Contains(out.String(), "http://127.0.0.1") {
		t.Errorf("no link: %s", out.String())
	}
	return e.String(), err
}

// The page's own store of an older version is set aside, and made anew.
func TestReviewStoreOfAnOlderVersion(t *testing.T) {
	state, _ := written(t, 2)
	file := filepath.Join(state, "review", "records.db")
	old := func() {
		t.Helper()
		db, err := sql.Open("sqlite", "file:"+file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), "UPDATE meta SET version = 1"); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if told, err := opened(t, state); err != nil || strings.Contains(told, "older") {
		t.Fatalf("%v %s", err, told)
	}
	old()
	if told, err := opened(t, state); err != nil || !strings.Contains(told, file+".v1") {
		t.Fatalf("%v %s", err, told)
	}
	if _, err := os.Stat(file + ".v1"); err != nil {
		t.Error(err)
	}
	db, err := store.Open(t.Context(), "sqlite:"+file, store.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if p, err := db.Search(t.Context(), store.Query{}); err != nil || len(p.Rows) != 4 {
		t.Errorf("%d records in the new store, %v", len(p.Rows), err)
	}
	// What was set aside is not overwritten.
	old()
	if _, err := opened(t, state); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second one: %v", err)
	}
}

// The page of a laptop does not show a control plane's store unrecorded.
func TestNoReviewPageInAPod(t *testing.T) {
	state, url := written(t, 1)
	t.Setenv(reads.Env, filepath.Join(t.TempDir(), "s"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &closing{stop: stop}
	c, _ := root()
	c.SetOut(out)
	c.SetErr(out)
	c.SetArgs([]string{"audit", "ui", "--state", state, "--store", url})
	if err := c.ExecuteContext(ctx); err == nil || !strings.Contains(err.Error(), reads.Env) || out.Len() != 0 {
		t.Errorf("%v %s", err, out.String())
	}
}
