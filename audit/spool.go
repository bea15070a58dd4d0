package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/chain"
)

// ErrFull is matched when there is no room for a record: the spool has reached
// its bound or the disk is full. No record, no call.
var ErrFull = errors.New("no room for the audit record")

// ErrUnavailable is matched when a record cannot be written for another
// reason, such as a failing disk. No record, no call.
var ErrUnavailable = errors.New("audit spool is unavailable")

// ErrClosed is matched by every use of a spool after Close.
var ErrClosed = errors.New("audit spool is closed")

// ErrEnded is matched by an error of Begin after which the record is there,
// begun and ended as canceled: the caller must not write another.
var ErrEnded = errors.New("audit record was begun and ended")

// ErrInUse is matched by Open when another process writes to the directory.
var ErrInUse = errors.New("audit spool is in use")

// Spool is a directory of segments that one process appends records to. It is
// safe for concurrent use.
type Spool struct {
	opts     Options
	redactor *Redactor
	epoch    string
	lock     *os.File
	stats    counters

	mu        sync.Mutex // guards the fields below
	seq       uint64     // of the last line
	head      chain.Hash // over all lines of the epoch
	file      *os.File   // the segment being written
	cur       *segment
	closed    []*segment // oldest first, all but cur
	total     int64      // bytes of all segments
	reserved  int64      // bytes promised to ends
	alloc     int64      // length that the disk has promised for cur
	noAlloc   bool       // the file system cannot promise
	torn      bool       // cur may hold part of a line behind cur.size
	missing   ranges     // segments deleted to make room
	batch     []byte     // lines to be written next; between calls, those of ends
	ends      []batchedEnd
	flusher   *time.Timer // writes ends that found no company
	flushing  bool        // flusher is set
	open      *ticket     // requests without an end, newest first
	pending   []pendingLine
	pendErr   error    // why pending is not written
	wrote     uint64   // sequence of the last line written
	durable   Position // what is on the disk
	watchers  []chan struct{}
	acks      []waiter // wait for the collector, ascending
	shippedTo int64    // every sink has the segments below
	shipped   ranges   // segments deleted after that
	fullErr   error    // why the last record was refused
	failed    error    // a sync failed: what is on disk is no longer known
	rescan    time.Time
	isClosed  bool
	isSettled bool // and all of it is on the disk

	// What the syncer has to do; guarded by mu too.
	dirty   bool
	retired []*os.File // former segments, not yet synced
	newFile bool       // the directory has an entry that is not synced
	waiters []waiter

	wake   chan struct{} // something is dirty
	urgent chan struct{} // somebody waits for the sync
	stop   chan struct{}
	tasks  sync.WaitGroup
}

// pendingLine is a line that could not be written yet. Its sequence number is
// taken, so nothing may be written before it.
type pendingLine struct {
	line []byte
	of   *ticket // nil unless it is an end
}

// batchedEnd is an end that waits in Spool.batch. Its sequence number is taken.
type batchedEnd struct {
	to int // where its line ends in the batch
	of *ticket
}

// ticket is one begun request.
type ticket struct {
	spool      *Spool
	id         string
	seq        uint64
	seg        *segment
	ended      bool    // guarded by Spool.mu
	next, prev *ticket // guarded by Spool.mu
}

// Ticket is the promise to end a begun request. The zero Ticket belongs to
// none. It is safe for concurrent use.
type Ticket struct{ t *ticket }

// Extra is what became known after the begin. Its non-zero fields replace
// those of the begin when a reader joins both.
type Extra struct {
	Request  *Request  // e.g. Address, Removed
	Decision *Decision // e.g. a refusal after the begin
	Unsafe   []string
}

// Open opens the spool in opts.Dir, creating it if needed, ends what an earlier
// process left unfinished with outcome unknown, and starts a new epoch. It
// matches ErrInUse while another process has the spool, and ErrFull when not
// even the epoch's first record has room. The caller closes the spool.
func Open(opts Options) (*Spool, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	redactor, err := NewRedactor(opts.Redact)
	if err != nil {
		return nil, err
	}
	if err := makeDir(opts.Dir); err != nil {
		return nil, err
	}
	epoch := randomHex()
	s := &Spool{
		opts: opts, redactor: redactor, epoch: epoch, head: chain.First(epoch), rescan: time.Now(),
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if s.lock, err = acquireLock(opts.Dir); err != nil {
		return nil, err
	}
	if s.opts.Producer == "" {
		s.opts.Producer = s.ownProducer()
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.release())
	}
	if err := s.syncOnce(); err != nil {
		return nil, errors.Join(err, s.release())
	}
	s.tasks.Go(s.syncLoop)
	s.tasks.Go(s.heartbeatLoop)
	return s, nil
}

// lockPatience is how long Open waits for a lock that a reader may hold.
const lockPatience = 300 * time.Millisecond

func acquireLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return nil, fmt.Errorf("open audit lock: %w", err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		got, err := tryLock(f, false)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock audit directory: %w", err), f.Close())
		}
		if got {
			break
		}
		if time.Now().After(deadline) {
			holder := make([]byte, maxWord)
			n, _ := f.ReadAt(holder, 0)
			return nil, errors.Join(fmt.Errorf("audit directory %s: %w by %s; give this process its own audit.dir",
				dir, ErrInUse, clamp(string(holder[:n]), maxWord)), f.Close())
		}
		<-time.After(lockPatience / 20)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte("pid "+strconv.Itoa(os.Getpid())), 0) // a courtesy to the reader of the error above
	}
	return f, nil
}

// release closes the files.
func (s *Spool) release() error {
	var errs []error
	for _, f := range s.retired {
		errs = append(errs, f.Close())
	}
	s.retired = nil
	if s.file != nil {
		// Give the promised blocks behind the last line back.
		errs = append(errs, s.file.Truncate(s.cur.size), s.file.Close())
		s.file = nil
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Close ends what is still open with outcome unknown, writes the epoch's last
// record, signed if there is a signer, syncs and closes the spool. Its files
// can still be followed. It is idempotent.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.isClosed {
		s.mu.Unlock()
		return nil
	}
	left := 0
	for t := s.open; t != nil; t = s.open {
		left++
		if err := s.endLocked(t, unknownBody("shutdown")); err != nil {
			break // retried below, once
		}
	}
	if s.flusher != nil {
		s.flusher.Stop()
	}
	err := s.flushEnds()
	if err == nil {
		err = s.flushPending()
	}
	if err == nil {
		err = s.system(TypeEpochEnd, &Event{Name: TypeEpochEnd, Fields: s.closeFields(s.stats.fields("left_open", strconv.Itoa(left)))})
	}
	s.isClosed = true
	for _, w := range s.acks {
		w.ch <- ErrClosed
	}
	s.acks = nil
	s.mu.Unlock()

	close(s.stop)
	s.tasks.Wait()
	err = errors.Join(err, s.syncOnce())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isSettled = true
	for _, ch := range s.watchers {
		notify(ch)
	}
	return errors.Join(err, s.release())
}

// Epoch is the random id of this start of the spool.
func (s *Spool) Epoch() string { return s.epoch }

// Begin writes the intent of a request. It fills r's Schema, Type, ID (if
// empty), Epoch, Sequence and Time (if zero). When it returns without error,
// the line is in the kernel and survives the death of the process, with
// v1alpha1.DurabilityPower it is on the disk, with
// v1alpha1.DurabilityCollector the collector has it too, and the space of its
// end is reserved. On error, which matches ErrFull, ErrUnavailable, ErrClosed or the
// context's, the call must not be made. If it also matches ErrEnded, the
// request has its finished record already; otherwise it has none. r is not
// kept.
func (s *Spool) Begin(ctx context.Context, r *Record) (Ticket, error) {
	return s.BeginDurable(ctx, r, s.opts.Durability)
}

// BeginDurable is Begin with the durability that a rule asks for.
func (s *Spool) BeginDurable(ctx context.Context, r *Record, d v1alpha1.Durability) (Ticket, error) {
	if err := ctx.Err(); err != nil {
		return Ticket{}, err
	}
	if d == v1alpha1.DurabilityCollector && !s.opts.Collector {
		return Ticket{}, fmt.Errorf("durability collector: no collector is configured, see audit.sinks: %w", ErrUnavailable)
	}
	if err := s.prepare(r, TypeBegin); err != nil {
		return Ticket{}, err
	}
	buf := getBuffer()
	defer putBuffer(buf)
	*buf = r.appendBody((*buf)[:0])

	s.mu.Lock()
	if err := s.put(begins, r, *buf); err != nil {
		s.mu.Unlock()
		s.stats.refused.Add(1)
		return Ticket{}, err
	}
	t := &ticket{spool: s, id: r.ID, seq: r.Sequence, seg: s.cur, next: s.open}
	if s.open != nil {
		s.open.prev = t
	}
	s.open = t
	s.cur.open++
	s.reserved += endReserve
	var answered <-chan error
	switch d {
	case v1alpha1.DurabilityPower:
		answered = s.waitSync()
	case v1alpha1.DurabilityCollector:
		answered = s.waitCollector()
	case v1alpha1.DurabilityProcess:
	}
	s.mu.Unlock()
	s.stats.begun.Add(1)
	if answered == nil {
		return Ticket{t}, nil
	}
	var err error
	if d == v1alpha1.DurabilityCollector {
		err = s.awaitCollector(ctx, answered)
	} else {
		select {
		case err = <-answered:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		return Ticket{t}, nil
	}
	// The line is there, though nobody will make the call: say so.
	return Ticket{}, errors.Join(err, ErrEnded, Ticket{t}.End(&Result{Outcome: OutcomeCanceled, ErrorKind: "audit"}, nil, nil, nil))
}

// ID returns the record id; it is what is carried upstream.
func (t Ticket) ID() string {
	if t.t == nil {
		return ""
	}
	return t.t.id
}

// End writes the outcome of the request, at most Options.EndDelay later. Only
// the first call counts; later ones return nil. The space is reserved, so that an error, which matches
// ErrUnavailable or ErrClosed, says that the disk fails: the line is then kept
// in memory, tried again, and no request begins before it is written. use,
// steps and extra may be nil.
func (t Ticket) End(res *Result, use *Use, steps *Steps, extra *Extra) error {
	if t.t == nil {
		return fmt.Errorf("end of a request that was not begun: %w", ErrUnavailable)
	}
	r := Record{Time: time.Now(), Result: res, Credential: use, Steps: steps}
	if res == nil {
		r.Result = &Result{Outcome: OutcomeUnknown}
	}
	if extra != nil {
		r.Request, r.Decision, r.Unsafe = extra.Request, extra.Decision, extra.Unsafe
	}
	t.t.spool.redactor.redact(&r)
	buf := getBuffer()
	defer putBuffer(buf)
	*buf = r.appendBody((*buf)[:0])
	if len(*buf) > endReserve-maxEndHead {
		*buf = r.minimal().appendBody((*buf)[:0])
	}
	s := t.t.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.t.ended {
		return nil
	}
	if s.isClosed {
		return ErrClosed
	}
	return s.endLocked(t.t, *buf)
}

// maxEndHead bounds the head and the trailer of an end line.
const maxEndHead = 512

// endLocked writes the end of t and takes it off the list.
func (s *Spool) endLocked(t *ticket, body []byte) error {
	t.ended = true
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		s.open = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	s.stats.ended.Add(1)
	h := Record{Schema: SchemaVersion, Type: TypeEnd, ID: t.id, BeginEpoch: s.epoch, BeginSequence: t.seq}
	return s.putEnd(&h, body, t)
}

// unknownBody is the end of a request whose outcome nobody saw.
func unknownBody(why string) []byte {
	r := Record{Time: time.Now(), Result: &Result{Outcome: OutcomeUnknown, ErrorKind: why}}
	return r.appendBody(nil)
}

// minimalText and minimalWord bound the texts of a minimal end; six times that
// when escaped.
const (
	minimalText = 48
	minimalWord = 24
)

// minimal keeps of an end what must not be lost, in bounded space.
func (r *Record) minimal() *Record {
	m := &Record{Time: r.Time, Steps: r.Steps, Truncated: true}
	res := *r.Result
	for _, p := range []*string{&res.Outcome, &res.GRPCStatus, &res.ErrorKind, &res.UpstreamRequestID} {
		*p = clamp(*p, minimalText)
	}
	m.Result = &res
	if u := r.Credential; u != nil {
		c := *u
		c.ScopeAsked, c.ScopeGranted, c.Session = nil, nil, ""
		for _, p := range []*string{&c.Provider, &c.Kind, &c.ScopeSource} {
			*p = clamp(*p, minimalText)
		}
		c.PublicID = clamp(c.PublicID, minimalWord)
		if c.AWS != nil {
			c.AWS = &AWSUse{Service: clamp(c.AWS.Service, minimalWord), Scope: clamp(c.AWS.Scope, minimalWord)}
		}
		m.Credential = &c
	}
	if r.Request != nil && r.Request.Address != "" {
		m.Request = &Request{Address: clamp(r.Request.Address, minimalText)}
	}
	return m
}

// Deny writes a request that ends at once, refused by us, as one line.
// Result's outcome is set to OutcomeDenied if r has none.
func (s *Spool) Deny(r *Record) error {
	if r.Result == nil {
		r.Result = &Result{Outcome: OutcomeDenied}
	}
	if err := s.Write(r); err != nil {
		return err
	}
	s.stats.denied.Add(1)
	return nil
}

// Write writes a whole record as one line: a request with its Result, or an
// Event. It fills r as Begin does.
func (s *Spool) Write(r *Record) error {
	typ := TypeEnd
	switch {
	case r.Event != nil:
		typ = TypeEvent
	case r.Result == nil:
		return fmt.Errorf("audit record without result: begin it instead: %w", ErrUnavailable)
	}
	if err := s.prepare(r, typ); err != nil {
		return err
	}
	buf := getBuffer()
	defer putBuffer(buf)
	*buf = r.appendBody((*buf)[:0])
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.put(wholes, r, *buf); err != nil {
		s.stats.refused.Add(1)
		return err
	}
	if typ == TypeEvent {
		s.stats.events.Add(1)
	} else {
		s.stats.whole.Add(1)
	}
	return nil
}

// Event writes something that is not a request. When it returns without error,
// the line is in the kernel.
func (s *Spool) Event(name string, fields map[string]string) error {
	return s.Write(&Record{Event: &Event{Name: name, Fields: fields}})
}

// prepare fills what the caller need not.
func (s *Spool) prepare(r *Record, typ string) error {
	r.Schema, r.Type, r.Epoch, r.BeginEpoch, r.BeginSequence = SchemaVersion, typ, s.epoch, "", 0
	if r.ID == "" {
		r.ID = NewID()
	} else if !validID(r.ID) {
		return fmt.Errorf("audit record id %q: must be 1 to %d letters, digits, - or _: %w", clamp(r.ID, maxWord), maxWord, ErrUnavailable)
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	s.redactor.redact(r)
	return nil
}

// NewID returns a record id: "rec_" and 128 random bits in hex.
func NewID() string { return "rec_" + randomHex() }

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	return hex.EncodeToString(b[:])
}

func validID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= maxWord
}

//nolint:gochecknoglobals // a pool of scratch space holds no state
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) } //nolint:forcetypeassert // only these are put

func putBuffer(b *[]byte) {
	if cap(*b) <= 1<<16 { // one giant record must not keep its memory
		buffers.Put(b)
	}
}

// counters of a spool since Open.
type counters struct {
	begun, ended, unknown, whole, denied, events, refused                           atomic.Uint64
	bytes, syncs, syncErrors, writeErrors, rotations, dropped, released, heartbeats atomic.Uint64
	syncNanos                                                                       atomic.Int64
}

// Stats is a snapshot for metrics.
type Stats struct {
	Begun       uint64 // begin lines
	Ended       uint64 // end lines of this epoch's begins
	Unknown     uint64 // ends written for an earlier epoch's begins
	Whole       uint64 // requests in one line
	Denied      uint64 // of these, refusals
	Events      uint64
	Heartbeats  uint64
	Refused     uint64 // records that had no room or could not be written
	Bytes       uint64 // written
	Syncs       uint64
	SyncErrors  uint64
	SyncTime    time.Duration // spent in Syncs
	WriteErrors uint64
	Rotations   uint64
	Dropped     uint64 // segments deleted to make room
	Released    uint64 // segments deleted after every sink had them

	Open     int64 // requests without an end
	Pending  int64 // lines kept in memory because the disk refuses them
	Size     int64 // bytes of all segments
	Reserved int64 // bytes promised to ends
	MaxBytes int64
	Segments int64
}

// Stats returns the current figures.
func (s *Spool) Stats() Stats {
	c := &s.stats
	st := Stats{
		Begun: c.begun.Load(), Ended: c.ended.Load(), Unknown: c.unknown.Load(), Whole: c.whole.Load(),
		Denied: c.denied.Load(), Events: c.events.Load(), Heartbeats: c.heartbeats.Load(), Refused: c.refused.Load(),
		Bytes: c.bytes.Load(), Syncs: c.syncs.Load(), SyncErrors: c.syncErrors.Load(), SyncTime: time.Duration(c.syncNanos.Load()),
		WriteErrors: c.writeErrors.Load(), Rotations: c.rotations.Load(), Dropped: c.dropped.Load(), Released: c.released.Load(), MaxBytes: s.opts.MaxBytes,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Open = s.reserved/endReserve - int64(len(s.pending)+len(s.ends))
	st.Pending, st.Size, st.Reserved = int64(len(s.pending)), s.total, s.reserved
	st.Segments = int64(len(s.closed)) + 1
	return st
}

// fields tells the figures of an epoch in its heartbeats and last record.
func (c *counters) fields(more ...string) map[string]string {
	m := map[string]string{
		"begun": utoa(c.begun.Load()), "ended": utoa(c.ended.Load()), "whole": utoa(c.whole.Load()),
		"refused": utoa(c.refused.Load()), "events": utoa(c.events.Load()),
	}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }

// Healthy returns nil when a request could begin now, else why not.
func (s *Spool) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return ErrClosed
	case s.failed != nil:
		return s.failed
	case s.pendErr != nil:
		return s.pendErr
	case errors.Is(s.fullErr, ErrFull):
		// Nobody may try while the answer is no, so look for ourselves.
		s.fullErr = s.makeRoom(begins, endReserve)
	}
	return s.fullErr
}
