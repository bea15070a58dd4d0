package ui

import (
	"bufio"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// A browser whose connection broke within a page of rows goes on behind the
// last that it has.
func TestLiveGoesOnBehindEachRow(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "ada", "a")))
	h.as(Person{Subject: "ada"})
	end, err := h.db.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"rec_one", "rec_two", "rec_three", "rec_four"}
	for _, id := range want[:3] {
		fill(t, h.db, sample(id, "a", h.clock.t), sample(id+"_b", "b", h.clock.t))
	}
	fill(t, h.db, sample(want[3], "a", h.clock.t))
	// follow returns the ids of the events behind one, and the records that they show.
	follow := func(last string) (ids, records []string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.srv.URL+"/live/events?q=type:request&after="+string(end), nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		res, err := h.c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		for in := bufio.NewScanner(res.Body); in.Scan(); {
			if id, ok := strings.CutPrefix(in.Text(), "id: "); ok {
				ids = append(ids, id)
			}
			for _, id := range want {
				if strings.Contains(in.Text(), "/record/"+id+`"`) && !slices.Contains(records, id) {
					records = append(records, id)
				}
			}
			if in.Text() == "" && slices.Contains(records, want[3]) {
				return ids, records
			}
		}
		t.Fatalf("the stream ended after %q", records)
		return nil, nil
	}
	ids, records := follow("")
	if !slices.Equal(records, want) || len(ids) != len(want) {
		t.Fatalf("%d events show %q", len(ids), records)
	}
	for i, id := range ids[:3] {
		if _, got := follow(id); !slices.Equal(got, want[i+1:]) {
			t.Errorf("behind %s: %q, want %q", want[i], got, want[i+1:])
		}
	}
}
