package main

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// linked is the output of a page, and its address once that is said.
type linked chan string

func (l linked) Write(p []byte) (int, error) {
	if at := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).Find(p); at != nil {
		l <- string(at)
	}
	return len(p), nil
}

// Failed log-ins that were only counted are recorded when the page ends, though
// nobody asks for anything any more.
func TestReviewPageTellsAllRefusals(t *testing.T) {
	state, _ := written(t, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, ended := make(linked, 1), make(chan error, 1)
	c, _ := root()
	c.SetOut(out)
	c.SetErr(&bytes.Buffer{})
	c.SetArgs([]string{"audit", "ui", "--state", state})
	go func() { ended <- c.ExecuteContext(ctx) }()
	var at string
	select {
	case at = <-out:
	case err := <-ended:
		t.Fatal(err)
	}
	const refused = 200
	for range refused {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/login/finish?token=guess", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusUnauthorized {
			t.Fatalf("a wrong link: %d, %v", res.StatusCode, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if records, told := failedLogins(t, filepath.Join(state, "audit", "review")); told != refused || records == refused {
		t.Errorf("%d records tell of %d refusals, want %d", records, told, refused)
	}
}

// failedLogins counts records of a spool, and what they stand for.
func failedLogins(t *testing.T, dir string) (records, told int) {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "records.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ImportSpool(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	p, err := db.Search(t.Context(), store.Query{Limit: store.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Rows {
		if r.Event != nil && r.Event.Name == audit.EventLoginFailed {
			more, _ := strconv.Atoi(r.Event.Fields["unrecorded"]) // "": 0
			records, told = records+1, told+1+more
		}
	}
	return records, told
}
