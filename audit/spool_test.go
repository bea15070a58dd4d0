package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/api/v1alpha1"
)

func mustOpen(t testing.TB, o Options) *Spool {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // tests that care close it themselves
	return s
}

func mustBegin(t testing.TB, s *Spool) (Ticket, *Record) {
	t.Helper()
	r := sample()
	tk, err := s.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return tk, r
}

func ok200() *Result { return &Result{Outcome: OutcomeOK, Status: 200} }

func mustEnd(t testing.TB, tk Ticket) {
	t.Helper()
	if err := tk.End(ok200(), nil, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func requests(t testing.TB, dir string) map[string]Record {
	t.Helper()
	m := map[string]Record{}
	err := Read(dir, mustFilter(t, "type:request"), func(r Record) bool {
		if _, twice := m[r.ID]; twice {
			t.Errorf("record %s comes twice", r.ID)
		}
		m[r.ID] = r
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func events(t testing.TB, dir, query string) []Record {
	t.Helper()
	var l []Record
	if err := Read(dir, mustFilter(t, query), func(r Record) bool { l = append(l, r); return true }); err != nil {
		t.Fatal(err)
	}
	return l
}

func mustFilter(t testing.TB, q string) Filter {
	t.Helper()
	f, err := ParseFilter(q, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func mustVerify(t testing.TB, dir string) Report {
	t.Helper()
	rep, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func wantWhole(t testing.TB, dir string) Report {
	t.Helper()
	rep := mustVerify(t, dir)
	if !rep.OK() {
		t.Errorf("spool is not whole:\n%s", rep.String())
	}
	return rep
}

// snapshot copies the spool as a power cut at this moment would leave it to the
// next process.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(n)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestBeginAndEndBecomeOneRecord(t *testing.T) {
	s := mustOpen(t, Options{Version: "v1.2.3", Config: map[string]string{"policy": "abc"}})
	dir := s.opts.Dir
	tk, r := mustBegin(t, s)
	if got := requests(t, dir)[r.ID]; got.Result == nil || got.Result.Outcome != OutcomeOpen || got.Type != TypeBegin {
		t.Errorf("before the end: %+v, want an open begin", got.Result)
	}
	use := &Use{Handle: "cred_1", Provider: "p", Kind: "bearer", TTLSeconds: 300}
	extra := &Extra{Request: &Request{Address: "127.0.0.1:8443", Removed: []string{"authorization"}}}
	if err := tk.End(ok200(), use, &Steps{Ended: 900}, extra); err != nil {
		t.Fatal(err)
	}
	if err := tk.End(&Result{Outcome: OutcomeError}, nil, nil, nil); err != nil {
		t.Errorf("second end: %v, want nil", err)
	}
	denied := sample()
	if err := s.Deny(denied); err != nil {
		t.Fatal(err)
	}
	if err := s.Event("task.closed", map[string]string{"handle": "cred_1"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all := requests(t, dir)
	got := all[r.ID]
	if len(all) != 2 || all[denied.ID].Result.Outcome != OutcomeDenied {
		t.Errorf("%d requests, denied %+v; want 2, one of them denied", len(all), all[denied.ID].Result)
	}
	if got.Type != TypeEnd || got.BeginSequence != r.Sequence || got.Sequence != r.Sequence+1 || !got.Time.Equal(r.Time) {
		t.Errorf("joined head %+v", got)
	}
	if got.Result.Outcome != OutcomeOK || got.Credential.Handle != "cred_1" || got.Workload.ID != r.Workload.ID ||
		got.Request.Address != "127.0.0.1:8443" || got.Request.Host != "api.example.com" ||
		got.Steps.Attested != 12 || got.Steps.Ended != 900 {
		t.Errorf("joined record lacks a part: %s", got.AppendJSON(nil))
	}
	if found, err := Find(dir, "cred_1"); err != nil || len(found) != 2 {
		t.Errorf("Find by handle: %d records, %v; want use and event", len(found), err)
	}
	if _, err := Find(dir, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Find nobody: %v", err)
	}
	rep := wantWhole(t, dir)
	if rep.Requests != 2 || rep.Finished != 2 || len(rep.Epochs) != 1 || !rep.Epochs[0].Closed {
		t.Errorf("report %+v", rep)
	}
	open := events(t, dir, "type:epoch")
	if len(open) != 2 || open[0].Event.Fields["version"] != "v1.2.3" || open[0].Event.Fields["policy"] != "abc" ||
		open[0].Event.Fields["pid"] == "" || open[1].Type != TypeEpochEnd {
		t.Errorf("epoch records: %+v", open)
	}
}

func TestModesAndLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, Options{Dir: dir})
	for name, want := range map[string]os.FileMode{".": 0o700, "lock": 0o600, segmentName(1): 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %o", name, fi.Mode(), err, want)
		}
	}
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "pid") {
		t.Errorf("second writer: %v, want ErrInUse with the pid", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(t.Context(), sample()); !errors.Is(err, ErrClosed) {
		t.Errorf("begin after close: %v", err)
	}
	again := mustOpen(t, Options{Dir: dir})
	if rep := wantWhole(t, dir); len(rep.Epochs) != 2 || !rep.Running {
		t.Errorf("second epoch: %+v", rep)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no dir": {}, "small max": {Dir: "x", MaxBytes: 1}, "big segment": {Dir: "x", MaxBytes: 1 << 20, SegmentBytes: 1 << 20},
		"on full": {Dir: "x", OnFull: "drop"}, "durability": {Dir: "x", Durability: "paper"},
	} {
		if _, err := Open(o); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: file}); err == nil {
		t.Error("opened a file as a directory")
	}
}

func TestIDs(t *testing.T) {
	s := mustOpen(t, Options{})
	for _, id := range []string{"a b", "x\n", strings.Repeat("x", 65), "é"} {
		if _, err := s.Begin(t.Context(), &Record{ID: id}); err == nil {
			t.Errorf("id %q taken", id)
		}
	}
	r := &Record{ID: "rec_own-1"}
	if tk, err := s.Begin(t.Context(), r); err != nil || tk.ID() != "rec_own-1" {
		t.Errorf("own id: %v", err)
	}
}

func TestFullRefusesAndEndsStillFit(t *testing.T) {
	s := mustOpen(t, Options{MaxBytes: 128 << 10, SegmentBytes: 16 << 10})
	dir := s.opts.Dir
	var open []Ticket
	var err error
	for i := 0; ; i++ {
		var tk Ticket
		if tk, err = s.Begin(t.Context(), sample()); err != nil {
			break
		}
		if s.total+s.reserved > 128<<10-systemReserve || !s.noAlloc && s.alloc < s.cur.size+s.reserved {
			t.Fatalf("begin %d: %d bytes + %d reserved, %d of %d promised", i, s.total, s.reserved, s.alloc, s.cur.size)
		}
		if i%2 == 0 {
			mustEnd(t, tk)
		} else {
			open = append(open, tk)
		}
		if i > 10000 {
			t.Fatal("the bound is not kept")
		}
	}
	if !errors.Is(err, ErrFull) || len(open) < 5 {
		t.Fatalf("%v with %d open; want ErrFull", err, len(open))
	}
	if err := s.Deny(sample()); err == nil {
		for err == nil {
			err = s.Deny(sample()) // a denial is smaller than a begin with its end
		}
	}
	if err := s.Healthy(); !errors.Is(err, ErrFull) {
		t.Errorf("Healthy: %v, want ErrFull", err)
	}
	big := strings.Repeat("\x00", 300)
	for _, tk := range open { // the largest end there is
		err := tk.End(&Result{Outcome: big, GRPCStatus: big, ErrorKind: big, UpstreamRequestID: big, Status: 1 << 62, BytesUp: 1 << 62, BytesDown: 1 << 62},
			&Use{Handle: "cred_x", Provider: big, Kind: big, ScopeAsked: []string{big, big}, ScopeSource: big, Expires: time.Now(), TTLSeconds: 1 << 62},
			&Steps{1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62}, &Extra{Request: &Request{Address: big, Path: big}, Unsafe: []string{big}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, dir)
	if st := s.Stats(); st.Size > 128<<10 || rep.Open != 0 || rep.Finished != rep.Requests || st.Refused == 0 {
		t.Errorf("size %d, report %+v", st.Size, rep)
	}
	r := requests(t, dir)[open[0].ID()]
	if !r.Truncated || r.Credential.Handle != "cred_x" || r.Result.Status != 1<<62 {
		t.Errorf("cut end: %s", r.AppendJSON(nil))
	}
	longest := full(func(string) string { return strings.Repeat("\x00", 3000) })
	if n := len(longest.minimal().appendBody(nil)); n > endReserve-maxEndHead {
		t.Errorf("a minimal end can have %d bytes, beyond the reserve", n)
	}
	if n := len((&Record{Schema: SchemaVersion, Type: TypeEnd, ID: strings.Repeat("x", 64), Epoch: randomHex(), BeginEpoch: randomHex(), Sequence: 1 << 63, BeginSequence: 1 << 63}).appendHead(nil)); n+trailer > maxEndHead {
		t.Errorf("a head has %d bytes", n)
	}
}

func TestSpaceComesBackWhenSegmentsAreMovedAway(t *testing.T) {
	s := mustOpen(t, Options{MaxBytes: 64 << 10, SegmentBytes: 8 << 10})
	s.rescan = time.Time{}
	var err error
	for err == nil {
		err = s.Deny(sample())
	}
	if err := os.Remove(s.path(2)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.rescan = time.Time{}
	s.mu.Unlock()
	if err := s.Deny(sample()); err != nil {
		t.Errorf("after a segment was moved away: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep := mustVerify(t, s.opts.Dir)
	kinds := map[string]int{}
	for _, p := range rep.Problems {
		kinds[p.Kind]++
	}
	if kinds[ProblemMissing] != 1 || kinds[ProblemGap] != 1 {
		t.Errorf("problems %v, want the missing segment and its gap", kinds)
	}
	if l := events(t, s.opts.Dir, "event:spool.removed"); len(l) != 1 || l[0].Event.Fields["segments"] != "2" {
		t.Errorf("removed: %v", l)
	}
}

func TestOverwriteDropsOldestEnded(t *testing.T) {
	o := Options{Dir: t.TempDir(), MaxBytes: 64 << 10, SegmentBytes: 8 << 10, OnFull: OnFullOverwrite}
	s := mustOpen(t, o)
	pinned, r := mustBegin(t, s)
	for range 300 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if _, err := os.Stat(s.path(1)); err != nil {
		t.Errorf("the segment of an open request was dropped: %v", err)
	}
	mustEnd(t, pinned)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := requests(t, o.Dir)[r.ID]; got.Result == nil || got.Result.Outcome != OutcomeOK {
		t.Errorf("long request: %+v", got.Result)
	}
	rep := wantWhole(t, o.Dir)
	if rep.Dropped == "" || s.Stats().Dropped == 0 || s.Stats().Size > o.MaxBytes {
		t.Errorf("dropped %q, stats %+v", rep.Dropped, s.Stats())
	}
	s = mustOpen(t, o) // and the next epoch goes on so
	for range 300 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep = wantWhole(t, o.Dir)
	numbers, err := listSegments(o.Dir)
	if err != nil || numbers[0] == 1 {
		t.Fatalf("segments %v, %v", numbers, err)
	}
	// A deletion that the spool did not record is not excused by those it did.
	if err := os.Remove(filepath.Join(o.Dir, segmentName(numbers[0]))); err != nil {
		t.Fatal(err)
	}
	if rep = mustVerify(t, o.Dir); rep.OK() {
		t.Error("an unrecorded deletion passes for a recorded one")
	}
}

// disk is a fault hook whose answers can be set.
type disk struct {
	mu   sync.Mutex
	errs map[string]error
	part int // bytes written before a write fails
	n    map[string]int
	at   map[string]func()
}

func (d *disk) hook(op string, n int) (int, error) {
	d.mu.Lock()
	f, err, part := d.at[op], d.errs[op], d.part
	if d.n == nil {
		d.n = map[string]int{}
	}
	d.n[op]++
	d.mu.Unlock()
	if f != nil {
		f()
	}
	return min(n, part), err
}

func (d *disk) set(op string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.errs == nil {
		d.errs = map[string]error{}
	}
	d.errs[op] = err
}

func TestDiskFailures(t *testing.T) {
	for _, tc := range []struct {
		name string
		ops  []string
		err  error
		want error
	}{
		{"write ENOSPC", []string{"write"}, unix.ENOSPC, ErrFull},
		{"write EFBIG", []string{"write"}, unix.EFBIG, ErrFull},
		{"write EIO", []string{"write"}, unix.EIO, ErrUnavailable},
		{"write EROFS", []string{"write"}, unix.EROFS, ErrUnavailable},
		{"write and truncate EIO", []string{"write", "truncate"}, unix.EIO, ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &disk{part: 1000}
			s := mustOpen(t, Options{fault: d.hook})
			open, r := mustBegin(t, s)
			for _, op := range tc.ops {
				d.set(op, tc.err)
			}
			if _, err := s.Begin(t.Context(), sample()); !errors.Is(err, tc.want) || !errors.Is(err, tc.err) {
				t.Errorf("begin: %v, want %v", err, tc.want)
			}
			if err := open.End(ok200(), nil, nil, nil); !errors.Is(err, tc.want) {
				t.Errorf("end: %v, want %v", err, tc.want)
			}
			if err := s.Healthy(); !errors.Is(err, tc.want) {
				t.Errorf("Healthy: %v, want %v", err, tc.want)
			}
			if st := s.Stats(); st.Pending != 1 || st.Open != 0 {
				t.Errorf("stats %+v, want the end pending", st)
			}
			for _, op := range tc.ops {
				d.set(op, nil)
			}
			s.mu.Lock()
			err := s.flushPending()
			size := s.cur.size
			s.mu.Unlock()
			if fi, serr := os.Stat(s.path(1)); err != nil || serr != nil || fi.Size() != size {
				t.Errorf("%v, %v: file has %d bytes, want %d: a torn line is left behind", err, serr, fi.Size(), size)
			}
			tk, _ := mustBegin(t, s)
			mustEnd(t, tk)
			if err := s.Healthy(); err != nil {
				t.Errorf("Healthy after repair: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			rep := wantWhole(t, s.opts.Dir)
			if got := requests(t, s.opts.Dir)[r.ID]; rep.Requests != 2 || got.Result.Outcome != OutcomeOK {
				t.Errorf("%d requests, outcome %v; want 2 and the pending end written", rep.Requests, got.Result)
			}
		})
	}
}

func TestPendingEndIsWrittenWithoutAnotherRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s, err := Open(Options{Dir: t.TempDir(), fault: d.hook})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() //nolint:errcheck // checked by Verify
		tk, _ := mustBegin(t, s)
		d.set("write", unix.EIO)
		if err := tk.End(ok200(), nil, nil, nil); err == nil {
			t.Error("end on a failing disk: nil")
		}
		d.set("write", nil)
		time.Sleep(2 * pendingRetry)
		synctest.Wait()
		if st := s.Stats(); st.Pending != 0 || s.Healthy() != nil {
			t.Errorf("pending %d, %v", st.Pending, s.Healthy())
		}
	})
}

func TestReservationFailureRefuses(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook, SegmentBytes: 16 << 10})
	d.set("allocate", unix.ENOSPC)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		var tk Ticket
		if tk, err = s.Begin(t.Context(), sample()); err == nil {
			mustEnd(t, tk)
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("after %d: %v, want ErrFull: the disk did not promise the end's room", n, err)
	}
	wantWhole(t, s.opts.Dir)
}

func TestFailedSyncStaysFailed(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook})
	d.set("sync", unix.EIO)
	if _, err := s.BeginDurable(t.Context(), sample(), v1alpha1.DurabilityPower); !errors.Is(err, ErrUnavailable) {
		t.Errorf("begin with a failing sync: %v", err)
	}
	d.set("sync", nil)
	if _, err := s.Begin(t.Context(), sample()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("begin after a failed sync: %v; the kernel forgets lost pages", err)
	}
	if s.Healthy() == nil {
		t.Error("healthy after a failed sync")
	}
}

func TestDeletedSegmentIsNoticed(t *testing.T) {
	s := mustOpen(t, Options{})
	if err := os.Remove(s.path(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginDurable(t.Context(), sample(), v1alpha1.DurabilityPower); !errors.Is(err, ErrUnavailable) {
		t.Errorf("begin into a deleted file: %v", err)
	}
}

// TestPowerWaitsForTheDisk fails when a begin with durability power returns
// before its sync.
func TestPowerWaitsForTheDisk(t *testing.T) {
	gate := make(chan struct{})
	var armed, syncs atomic.Int32
	d := &disk{at: map[string]func(){"sync": func() {
		if armed.Load() == 1 {
			syncs.Add(1)
			<-gate
		}
	}}}
	s := mustOpen(t, Options{fault: d.hook, Durability: v1alpha1.DurabilityPower})
	armed.Store(1)
	const callers = 50
	done := make(chan error, callers)
	for range callers {
		go func() {
			tk, err := s.Begin(context.Background(), sample())
			if err == nil {
				err = tk.End(ok200(), nil, nil, nil)
			}
			done <- err
		}()
	}
	for s.Stats().Begun < callers {
		select {
		case err := <-done:
			t.Fatalf("begin returned before the sync: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := sample()
	go func() { _, err := s.Begin(ctx, cancelled); done <- err }()
	for s.Stats().Begun < callers+1 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, ErrEnded) {
		t.Errorf("cancelled begin: %v", err)
	}
	armed.Store(2)
	close(gate)
	for range callers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := s.Stats().Syncs; n > 10 {
		t.Errorf("%d syncs for %d callers at once", n, callers)
	}
	if got := requests(t, s.opts.Dir)[cancelled.ID]; got.Result.Outcome != OutcomeCanceled {
		t.Errorf("cancelled begin has outcome %q", got.Result.Outcome)
	}
}

func TestSyncedWithin50ms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		d := &disk{at: map[string]func(){"sync": func() { last = time.Now() }}}
		s, err := Open(Options{Dir: t.TempDir(), fault: d.hook})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		begun := time.Now()
		tk, _ := mustBegin(t, s)
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		s.mu.Lock()
		got := last.Sub(begun)
		s.mu.Unlock()
		if got <= 0 || got > 50*time.Millisecond {
			t.Errorf("synced after %v", got)
		}
		mustEnd(t, tk)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		tk, _ := mustBegin(t, s)
		time.Sleep(95 * time.Second)
		synctest.Wait()
		mustEnd(t, tk)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		l := events(t, s.opts.Dir, "type:heartbeat")
		if len(l) != 3 || l[0].Event.Fields["open"] != "1" {
			t.Errorf("%d heartbeats in 95 s, first %+v; want 3 that count one open", len(l), l)
		}
	})
}

func TestRecovery(t *testing.T) {
	s := mustOpen(t, Options{SegmentBytes: 8 << 10})
	var left []*Record
	for i := range 60 {
		tk, r := mustBegin(t, s)
		if i%3 == 0 {
			left = append(left, r)
		} else {
			mustEnd(t, tk)
		}
	}
	dir := snapshot(t, s.opts.Dir)
	n := s.cur.number
	path := filepath.Join(dir, segmentName(n))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	torn := `{"schema":"attache.audit/v1","type":"end","id":"rec_torn` + strings.Repeat("x", 100_000)
	if _, err := f.WriteString(torn); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	rep := mustVerify(t, dir)
	if rep.Open != 20 || rep.Problems[0].Kind != ProblemTruncated {
		t.Errorf("before recovery: %s", rep.String())
	}
	for id, r := range requests(t, dir) {
		if r.Type == TypeBegin && r.Result.Outcome != OutcomeUnknown {
			t.Errorf("%s of a dead process: %s, want unknown", id, r.Result.Outcome)
		}
	}
	again, err := Open(Options{Dir: dir, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	crashed := snapshot(t, dir) // a second crash must not double anything
	for _, d := range []string{dir, crashed} {
		if d == crashed {
			again = mustOpen(t, Options{Dir: d})
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		rep = wantWhole(t, d)
		if rep.Requests != 60 || rep.Finished != 60 || rep.Unknown != 20 || rep.Cut != 1 {
			t.Errorf("after recovery: %s", rep.String())
		}
		all := requests(t, d)
		for _, r := range left {
			got := all[r.ID]
			if got.Result.Outcome != OutcomeUnknown || got.BeginEpoch != s.epoch || got.Epoch == s.epoch || got.Request.Host != r.Request.Host {
				t.Errorf("unfinished %s: %s", r.ID, got.AppendJSON(nil))
			}
		}
		cut := events(t, d, "event:spool.tail_cut")
		if len(cut) != 1 || cut[0].Event.Fields["bytes"] != fmt.Sprint(len(torn)) {
			t.Errorf("cut tail: %v", cut)
		}
	}
}

func TestCloseEndsWhatIsOpen(t *testing.T) {
	s := mustOpen(t, Options{})
	tk, r := mustBegin(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tk.End(ok200(), nil, nil, nil); err != nil {
		t.Errorf("end after close: %v; the record is ended", err)
	}
	got := requests(t, s.opts.Dir)[r.ID]
	if got.Result.Outcome != OutcomeUnknown || got.Result.ErrorKind != "shutdown" || got.Type != TypeEnd {
		t.Errorf("%+v", got.Result)
	}
	wantWhole(t, s.opts.Dir)
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	s := mustOpen(t, Options{SegmentBytes: 64 << 10})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				r := sample()
				tk, err := s.Begin(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				var ends sync.WaitGroup
				for range 2 { // exactly one counts
					ends.Go(func() { _ = tk.End(ok200(), nil, nil, nil) })
				}
				ends.Wait()
				if i%10 == 0 {
					if err := s.Event("x", nil); err != nil {
						t.Error(err)
					}
				}
				_ = s.Stats()
				_ = s.Healthy()
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := wantWhole(t, s.opts.Dir); rep.Requests != 400 || rep.Finished != 400 || rep.Segments < 3 {
		t.Errorf("%s", rep.String())
	}
}

// TestPendingEndComesFirst fails when a begin overtakes an end that the disk
// had refused: the sequence would run backwards.
func TestPendingEndComesFirst(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook})
	tk, _ := mustBegin(t, s)
	d.set("write", unix.EIO)
	if err := tk.End(ok200(), nil, nil, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("end on a failing disk: %v", err)
	}
	d.set("write", nil)
	next, _ := mustBegin(t, s)
	mustEnd(t, next)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, s.opts.Dir)
}

// TestPowerSyncsEverySegment fails when a begin with durability power leaves
// earlier segments, or the names of new ones, to chance.
func TestPowerSyncsEverySegment(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook, SegmentBytes: 8 << 10, SyncEvery: time.Hour})
	for range 40 {
		if err := s.Deny(sample()); err != nil {
			t.Fatal(err)
		}
	}
	count := func(op string) int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.n[op]
	}
	files, dirs := count("sync"), count("sync directory")
	if _, err := s.BeginDurable(t.Context(), sample(), v1alpha1.DurabilityPower); err != nil {
		t.Fatal(err)
	}
	rotations := int(s.Stats().Rotations) //nolint:gosec // a few
	if got := count("sync") - files; got != rotations+1 || rotations < 3 {
		t.Errorf("%d files synced after %d rotations", got, rotations)
	}
	if count("sync directory") == dirs {
		t.Error("the directory with new segments was not synced")
	}
}

func TestTornTailIsCutFromTheFile(t *testing.T) {
	s := mustOpen(t, Options{})
	dir := snapshot(t, s.opts.Dir)
	path := filepath.Join(dir, segmentName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, make([]byte, 100_000)...), 0o600); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, Options{Dir: dir})
	if fi, err := os.Stat(path); err != nil || fi.Size() != again.Stats().Size {
		t.Errorf("%v: file has %d bytes, want %d", err, fi.Size(), again.Stats().Size)
	}
}
