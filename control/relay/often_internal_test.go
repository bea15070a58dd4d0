package relay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/proxy/upstream"
)

// told is what a relay recorded.
type told struct {
	mu   sync.Mutex // guards list, err
	list []Event
	err  error
}

func (r *told) record(_ context.Context, e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.list = append(r.list, e)
	}
	return r.err
}

func (r *told) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *told) events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// refusals is how many the recorded events stand for.
func (r *told) refusals() (n int) {
	for _, e := range r.events() {
		n += 1 + e.Unrecorded
	}
	return n
}

func counting(t *testing.T, r *told) *Server {
	t.Helper()
	s, err := New(Config{
		Bundle: func(string) (*xds.Bundle, bool) { return nil, false }, Secrets: struct{ broker.Secrets }{},
		Client:   func([]string, []byte) *http.Client { return nil },
		Upstream: &upstream.Pool{}, Record: r.record, Namespace: "attache-system", Rate: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// calls makes n calls of a pod, as ServeHTTP begins them, and returns how many
// were refused.
func calls(s *Server, pod string, n int) (refused int) {
	for range n {
		c := &call{Event: Event{Time: s.c.Now(), PodUID: pod, Namespace: "team"}}
		f, tell := s.often(c)
		if f != nil {
			refused++
		}
		if tell {
			s.record(context.Background(), denied(c, f))
		}
	}
	return refused
}

// The refusals at the end of a burst are recorded though the pod is quiet from
// then on: a minute after, or when the relay ends.
func TestEveryRefusalIsTold(t *testing.T) {
	r := &told{}
	s := counting(t, r) // its memory of attestations ends with the process, not with a bubble
	synctest.Test(t, func(t *testing.T) {
		stop := s.Sweep(t.Context())
		want := calls(s, "one", 100_000)
		if len(r.events()) != 1 || want < 99_000 {
			t.Fatalf("%d refusals, %d records", want, len(r.events()))
		}
		last := time.Now()
		time.Sleep(tellAgain)
		synctest.Wait()
		if l := r.events(); len(l) != 2 || r.refusals() != want || !l[1].Counted || l[1].Code != "rate_limited" || l[1].Result != resultDenied || l[1].Namespace != "team" || l[1].PodUID != "one" || !l[1].Time.Equal(last) {
			t.Fatalf("a minute later: %+v, want %d in all", l, want)
		}
		time.Sleep(2 * tellAgain)
		synctest.Wait()
		if len(r.events()) != 2 {
			t.Errorf("nothing happened, and %+v", r.events()[2:])
		}
		want += calls(s, "one", 10) + calls(s, "two", 20)
		recorded := len(r.events())
		stop()
		if r.refusals() != want || len(r.events()) != recorded+2 {
			t.Errorf("at the end %d refusals are recorded of %d: %+v", r.refusals(), want, r.events())
		}
	})
}

// A number is not lost when it cannot be recorded, nor with the pod.
func TestNoRefusalIsLost(t *testing.T) {
	r := &told{err: errors.New("the disk is full")}
	s := counting(t, r)
	synctest.Test(t, func(t *testing.T) {
		stop := s.Sweep(t.Context())
		want := calls(s, "one", 20)
		time.Sleep(tellAgain + time.Second)
		synctest.Wait()
		want += calls(s, "one", 80)
		time.Sleep(tellAgain)
		synctest.Wait()
		for i := range rememberedPod { // and "one" is forgotten
			calls(s, "pod-"+strconv.Itoa(i), 1)
		}
		time.Sleep(tellAgain)
		synctest.Wait()
		r.fail(nil)
		time.Sleep(tellAgain)
		synctest.Wait()
		if r.refusals() != want || len(r.events()) != 1 {
			t.Errorf("%d refusals are recorded of %d: %+v", r.refusals(), want, r.events())
		}
		stop()
		if len(r.events()) != 1 || len(s.left) != 0 {
			t.Errorf("at the end: %+v, %+v", r.events(), s.left)
		}
	})
}

// shared is a log that is read while it is written.
type shared struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// What is beyond all bounds is lost, but not in silence: it is counted at once,
// and logged a minute later and at the end.
func TestLostRefusalsAreTold(t *testing.T) {
	r := &told{}
	s := counting(t, r)
	synctest.Test(t, func(t *testing.T) {
		out := &shared{}
		s.c.Log = slog.New(slog.NewTextHandler(out, nil))
		logged := func(when string, want ...string) {
			t.Helper()
			var got []string
			for _, m := range regexp.MustCompile(`refusals are lost.* refusals=(\d+)`).FindAllStringSubmatch(out.String(), -1) {
				got = append(got, m[1])
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %v are logged, want %v", when, got, want)
			}
		}
		beyond := func(n int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for len(s.left) < rememberedPod {
				s.left = append(s.left, Event{})
			}
			s.giveBack(Event{PodUID: "nobody knows it", Unrecorded: n - 1})
		}
		stop := s.Sweep(t.Context())
		beyond(3)
		beyond(4)
		if n := testutil.ToFloat64(s.c.Metrics.lost); n != 7 {
			t.Errorf("%v are counted", n)
		}
		logged("at once")
		time.Sleep(tellAgain)
		synctest.Wait()
		logged("a minute later", "7")
		time.Sleep(tellAgain)
		synctest.Wait()
		logged("when none is lost", "7")
		beyond(1)
		stop()
		logged("at the end", "7", "1")
	})
}
