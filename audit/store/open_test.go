package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// begins makes a chunk of begins in a namespace.
func begins(s *scribe, namespace string, from, until int) []audit.Line {
	var l []audit.Line
	for n := from; n < until; n++ {
		l = append(l, s.line(audit.Record{Type: audit.TypeBegin, ID: fmt.Sprintf("rec_%s_%d", namespace, n), Workload: &audit.Workload{Namespace: namespace},
			Request: &audit.Request{Method: "GET", Host: "api.example.com", Path: fmt.Sprintf("/%d", n)}}))
	}
	return l
}

// What is open is counted as it stands, question after question: rows are kept
// between questions, but neither what has ended since nor how a lost producer's
// requests count.
func TestOpenRequestsOfEachQuestion(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		count := func(query string, namespaces []string) map[string]int64 {
			t.Helper()
			f, err := d.Facets(t.Context(), store.Query{Filter: filter(t, query), Namespaces: namespaces}, []string{"outcome"}, 10)
			if err != nil || f.Partial {
				t.Fatalf("partial %v, %v", f.Partial, err)
			}
			m := map[string]int64{}
			for _, v := range f.Facets[0].Values {
				m[v.Value] = v.Count.Count
			}
			return m
		}
		want := func(query string, namespaces []string, open, unknown, ok int64) {
			t.Helper()
			for range 2 { // the second time with rows that were kept
				m := count(query, namespaces)
				if m[audit.OutcomeOpen] != open || m[audit.OutcomeUnknown] != unknown || m[audit.OutcomeOK] != ok {
					t.Errorf("%q in %q: %v; want %d open, %d unknown, %d ok", query, namespaces, m, open, unknown, ok)
				}
			}
		}
		a, b := newScribe(t, "a1"), newScribe(t, "b1")
		one, two := store.Producer{ID: "pod-a", Kind: "sidecar", Namespace: "one"}, store.Producer{ID: "pod-b", Kind: "sidecar", Namespace: "Two"}
		put(t, d, one, begins(a, "one", 0, 10)...)
		put(t, d, two, begins(b, "Two", 0, 5)...)
		want("", nil, 15, 0, 0)
		want("", []string{"two"}, 5, 0, 0)
		want("", []string{"one", "no%one", "_"}, 10, 0, 0)
		want("", []string{"o"}, 0, 0, 0)
		want("", []string{}, 0, 0, 0)
		put(t, d, one, a.end("rec_one_3", "a1", 4, audit.OutcomeOK))
		want("", nil, 14, 0, 1)
		put(t, d, one, begins(a, "one", 10, 12)...)
		want("", nil, 16, 0, 1)
		// The producer begins anew: what it left open is unknown from now on.
		again := newScribe(t, "a2")
		again.now = a.now.Add(time.Minute)
		put(t, d, one, begins(again, "one", 20, 21)...)
		want("", nil, 6, 11, 1)
		want("", []string{"one"}, 1, 11, 1)
		put(t, d, one, a.end("rec_one_4", "a1", 5, audit.OutcomeOK))
		want("", nil, 6, 10, 2)
		indexIsWhole(t, d)
	})
}

// A namespace that leaves many requests open hides nobody else's.
func TestOpenRequestsDoNotCrowdOut(t *testing.T) {
	const many = 20_100 // more than a question looks at
	both(t, func(t *testing.T, url string) {
		if raced {
			t.Skip("the race detector is slow")
		}
		d := open(t, url, store.Options{QueryTimeout: time.Minute})
		quiet, loud := newScribe(t, "quiet"), newScribe(t, "loud")
		put(t, d, store.Producer{ID: "pod-a", Kind: "sidecar", Namespace: "quiet"}, begins(quiet, "quiet", 0, 3)...)
		loud.now = quiet.now.Add(time.Hour)
		for n := 0; n < many; n += 1000 {
			put(t, d, store.Producer{ID: "pod-b", Kind: "sidecar", Namespace: "loud"}, begins(loud, "loud", n, min(n+1000, many))...)
		}
		f, err := d.Facets(t.Context(), store.Query{Namespaces: []string{"quiet"}}, []string{"outcome"}, 5)
		if err != nil || f.Total.Count != 3 || f.Partial {
			t.Errorf("its own three requests: %d, partial %v, %v", f.Total.Count, f.Partial, err)
		}
		n := 0
		for p, e := range d.Pages(t.Context(), store.Query{Namespaces: []string{"quiet"}, Limit: 100}) {
			n, err = n+len(p.Rows), e
		}
		if n != 3 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
		for range 2 {
			if f, err = d.Facets(t.Context(), store.Query{}, []string{"outcome"}, 5); err != nil || f.Total.Count != 20_000 || !f.Partial {
				t.Errorf("all: %d, partial %v, %v", f.Total.Count, f.Partial, err)
			}
		}
		for _, err = range d.Pages(t.Context(), store.Query{}) {
		}
		if !errors.Is(err, store.ErrOpen) {
			t.Errorf("the end of all pages: %v", err)
		}
	})
}
