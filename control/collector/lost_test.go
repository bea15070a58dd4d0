package collector_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
)

func (m *memory) Heads(context.Context) (out []store.Head, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.heads {
		out = append(out, h)
	}
	return out, m.fail
}

func (m *memory) State(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state[name], m.fail
}

func (m *memory) PutState(_ context.Context, name string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		m.state = map[string][]byte{}
	}
	m.state[name] = value
	return m.fail
}

// search is a rig with a search for lost producers, whose clock and pods a test
// sets.
type search struct {
	*rig
	lost *collector.Lost

	mu       sync.Mutex
	now      time.Time
	pods     map[string]bool
	attested []store.Producer
	unknown  error
}

func searching(t *testing.T, change ...func(*collector.Config)) *search {
	t.Helper()
	s := &search{now: time.Now(), pods: map[string]bool{}}
	s.rig = start(t, append(change, func(c *collector.Config) { c.Now = s.clock })...)
	s.lost = s.fresh()
	s.sweep()
	return s
}

// fresh is the search after a restart.
func (s *search) fresh() *collector.Lost {
	return &collector.Lost{
		Collector: s.Collector, Store: s.store,
		Pods: func(context.Context) (map[string]bool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			out := map[string]bool{}
			for k, v := range s.pods {
				out[k] = v
			}
			return out, s.unknown
		},
		Attested: func(context.Context, time.Time) ([]store.Producer, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.attested, nil
		},
		Opening: func(_ context.Context, epoch string) (string, string, error) {
			l, ok := s.store.lines[epoch][1]
			if !ok {
				return "", "", nil
			}
			r, err := l.Record()
			if err != nil || r.Event == nil {
				return "", "", err
			}
			return r.Event.Fields["previous_epoch"], r.Event.Fields["previous_head"], nil
		},
	}
}

func (s *search) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *search) sweep() {
	s.t.Helper()
	if err := s.lost.Sweep(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// after moves the clock and looks.
func (s *search) after(d time.Duration) {
	s.t.Helper()
	s.mu.Lock()
	s.now = s.now.Add(d)
	s.mu.Unlock()
	s.sweep()
}

func (s *search) pod(uid string, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[uid] = there
}

func TestPodIsDeletedWithoutAnEnd(t *testing.T) {
	s := searching(t)
	s.pod(uid, true)
	e := begin("e1")
	s.must(s.rig.pod("team", "agent", uid), e.lines(7)...)
	s.after(time.Hour)
	s.pod(uid, false)
	s.after(time.Second)
	s.after(50 * time.Second)
	if n := s.told(audit.EventProducerLost); len(n) != 0 {
		t.Fatalf("within the grace: %v", n)
	}
	s.after(20 * time.Second)
	s.after(time.Hour) // once
	told := s.told(audit.EventProducerLost)
	if len(told) != 1 || told[0]["producer"] != uid || told[0]["epoch"] != "e1" || told[0]["last"] != "7" || told[0]["missing"] != "8..?" || told[0]["namespace"] != "team" {
		t.Fatalf("told %v", told)
	}
	if s.metric("attache_collector_lost_producers_total") != 1 {
		t.Error("not counted")
	}
	// A collector that starts anew knows that it was recorded.
	s.lost = s.fresh()
	s.sweep()
	s.after(time.Hour)
	if n := s.told(audit.EventProducerLost); len(n) != 1 {
		t.Fatalf("after a restart: %v", n)
	}

	// The kubelet was only cut off: lines come, and the correction is seen.
	s.must(s.rig.pod("team", "agent", uid), e.lines(3)...)
	s.sweep()
	back := s.told("producer.returned")
	if len(back) != 1 || back[0]["epoch"] != "e1" || back[0]["from"] != "8" || back[0]["to"] != "10" || back[0]["ended"] != "false" {
		t.Fatalf("returned %v", back)
	}
	// Nor is the correction recorded again after a restart.
	s.lost = s.fresh()
	s.sweep()
	if back := s.told("producer.returned"); len(back) != 1 {
		t.Fatalf("returned again %v", back)
	}
	// And it goes away again, without an end.
	s.after(time.Second)
	s.after(2 * time.Minute)
	if told := s.told(audit.EventProducerLost); len(told) != 2 || told[1]["missing"] != "11..?" {
		t.Errorf("told %v", told)
	}
}

func TestWhatEndedIsNotLost(t *testing.T) {
	s := searching(t)
	c := s.rig.pod("team", "agent", uid)
	e := begin("e1")
	s.must(c, append(e.lines(3), e.line(map[string]any{"type": "epoch.close", "event": map[string]any{"name": "epoch.close"}}))...)
	s.after(time.Second)
	s.after(time.Hour)
	s.lost = s.fresh()
	s.sweep()
	s.after(time.Hour)
	if n := s.told(audit.EventProducerLost); len(n) != 0 {
		t.Errorf("told %v", n)
	}
}

// A sidecar that was killed and went on has lost nothing: its next epoch says
// where the one before ended. Where that is not what came, something is lost.
func TestKilledSidecarWentOn(t *testing.T) {
	for name, c := range map[string]struct {
		cut  int
		want int
	}{"all of it came": {0, 1}, "its last line did not": {1, 2}} {
		t.Run(name, func(t *testing.T) {
			s := searching(t)
			client := s.rig.pod("team", "agent", uid)
			s.pod(uid, true)
			e := begin("e1")
			lines := e.lines(5)
			s.must(client, lines[:5-c.cut]...)
			next := begin("e2")
			s.must(client, next.line(map[string]any{"type": "epoch.open", "event": map[string]any{
				"name": "epoch.open", "fields": map[string]string{"producer": uid, "previous_epoch": "e1", "previous_head": e.head.String()},
			}}))
			s.pod(uid, false)
			s.after(time.Second)
			s.after(time.Hour)
			if n := s.told(audit.EventProducerLost); len(n) != c.want {
				t.Errorf("told %v", n)
			}
		})
	}
}

// The collector was down for all of a pod's life: the control plane attested
// the pod, and that record came.
func TestPodThatNeverSentALine(t *testing.T) {
	s := searching(t)
	control := s.rig.pod("attache-system", "attache-control", "control/c-1")
	s.pod("control/c-1", true)
	s.must(control, begin("c1").line(map[string]any{"event": map[string]any{"name": "identity.issued", "fields": map[string]string{
		"kind": "x509", "pod_uid": uid, "pod": "writer-1", "namespace": "team",
	}}}))
	s.after(time.Second)
	s.after(time.Hour)
	told := s.told(audit.EventProducerLost)
	if len(told) != 1 || told[0]["producer"] != uid || told[0]["pod"] != "writer-1" || told[0]["missing"] != "1..?" || told[0]["epoch"] != "" {
		t.Fatalf("told %v", told)
	}
	// Another, of which the store tells after a restart.
	s.attested = []store.Producer{{ID: uid, Kind: "sidecar"}, {ID: "u2", Kind: "sidecar", Pod: "writer-2"}}
	s.lost = s.fresh()
	s.sweep()
	s.after(time.Hour)
	if told := s.told(audit.EventProducerLost); len(told) != 2 || told[1]["pod"] != "writer-2" {
		t.Fatalf("told %v", told)
	}
	s.must(s.rig.pod("team", "agent", uid), begin("e1").lines(1)...)
	s.sweep()
	if back := s.told("producer.returned"); len(back) != 1 || back[0]["producer"] != uid {
		t.Errorf("returned %v", back)
	}
}

// While nobody knows which pods there are, nobody is given up; and a loss that
// could not be recorded is recorded later.
func TestSearchThatFails(t *testing.T) {
	s := searching(t)
	s.must(s.rig.pod("team", "agent", uid), begin("e1").lines(1)...)
	s.unknown = errors.New("caches are not synced")
	s.now = s.now.Add(time.Hour)
	if err := s.lost.Sweep(t.Context()); err == nil {
		t.Error("went on")
	}
	s.unknown = nil
	s.sweep()
	s.store.broken(fmt.Errorf("down"))
	s.now = s.now.Add(2 * time.Minute)
	if err := s.lost.Sweep(t.Context()); err == nil {
		t.Error("went on without the store")
	}
	s.store.broken(nil)
	s.sweep()
	if n := s.told(audit.EventProducerLost); len(n) != 1 {
		t.Errorf("told %v", n)
	}
}

// A search that runs for years knows of those that are there, and not of all
// that ever were lost.
func TestLostProducersAreForgotten(t *testing.T) {
	s := searching(t)
	const pods = 30
	var first *epoch
	for i := range pods {
		id := fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)
		e := begin("e-" + id)
		if i == 0 {
			first = e
		}
		s.must(s.rig.pod("team", "agent", id), e.lines(2)...)
		s.after(time.Second)
		s.after(2 * time.Minute)
	}
	s.after(time.Second)
	if n := len(s.told(audit.EventProducerLost)); n != pods {
		t.Fatalf("%d are lost", n)
	}
	for _, id := range []string{"u-1", "u-2"} { // attested, and never heard of
		s.attested = append(s.attested, store.Producer{ID: id, Kind: "sidecar"})
	}
	s.after(6 * time.Minute)
	s.after(2 * time.Minute)
	s.attested = nil
	for range 3 {
		s.after(25 * time.Hour)
	}
	if n := len(s.told(audit.EventProducerLost)); n != pods+2 {
		t.Errorf("%d are lost", n)
	}
	if n := collector.Remembered(s.lost); n != 0 {
		t.Errorf("%d things are remembered", n)
	}
	// What comes after all is still seen, by this search and by one that starts.
	s.must(s.rig.pod("team", "agent", "00000000-0000-4000-8000-000000000000"), first.lines(1)...)
	s.sweep()
	if back := s.told("producer.returned"); len(back) != 1 || back[0]["from"] != "3" {
		t.Errorf("returned %v", back)
	}
	s.lost = s.fresh()
	s.sweep()
	s.after(10 * time.Minute)
	s.after(10 * time.Minute)
	if n := len(s.told(audit.EventProducerLost)); n != pods+3 {
		t.Errorf("%d are lost", n)
	}
}
