package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit/chain"
)

// Hash is a value of an epoch's chain.
type Hash = chain.Hash

// DB is an audit store. It is safe for concurrent use. Several processes may
// open one store.
type DB struct {
	o      Options
	engine *engine
	codec  *codec
	layout layout
	views  views
	opens  openRows

	jobs     chan *job
	merge    chan struct{} // has room for one: there may be something to merge
	closing  chan struct{}
	finished chan struct{} // closed when nothing is committed any more
	close    sync.Once
	stopped  sync.WaitGroup
	cancel   context.CancelFunc
}

const defaultQueryTimeout = 10 * time.Second

// Open opens the store at url, sqlite:PATH or postgres://…, and makes or
// migrates its tables unless Options.ReadOnly.
func Open(ctx context.Context, url string, o Options) (*DB, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.QueryTimeout <= 0 {
		o.QueryTimeout = defaultQueryTimeout
	}
	if o.MaxReads <= 0 {
		o.MaxReads = defaultMaxReads
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	e, err := openEngine(ctx, url, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	d := &DB{o: o, engine: e, codec: c, layout: newLayout(), jobs: make(chan *job, 64), merge: make(chan struct{}, 1), closing: make(chan struct{}), finished: make(chan struct{})}
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("audit store %s: %w", redact(url), err), e.close())
	}
	return d, nil
}

func (d *DB) start(ctx context.Context) error {
	if d.o.ReadOnly {
		return d.engine.reading(ctx, func(t *tx) error {
			v, err := d.engine.version(ctx, t)
			switch {
			case err != nil:
				return notADatabase(err)
			case v > schemaVersion:
				return newer(v)
			case v > 0 && v < oldest:
				return older(v)
			case v < schemaVersion:
				return fmt.Errorf("its tables have version %d, this program reads %d: open it once for writing", v, schemaVersion)
			}
			return nil
		})
	}
	if err := d.engine.migrate(ctx); err != nil {
		return err
	}
	ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.stopped.Add(2)
	go d.commits(ctx)
	go d.merges(ctx)
	return nil
}

// Close waits for appends that were begun and closes the store.
func (d *DB) Close() error {
	d.close.Do(func() { close(d.closing) })
	d.stopped.Wait()
	if d.cancel != nil {
		d.cancel()
	}
	return d.engine.close()
}

// reading runs fn on a snapshot, bounded by Options.QueryTimeout.
func (d *DB) reading(ctx context.Context, fn func(context.Context, *tx) error) error {
	q, cancel := context.WithTimeoutCause(ctx, d.o.QueryTimeout, errSlow)
	defer cancel()
	err := d.engine.reading(q, func(t *tx) error { return fn(q, t) })
	if err != nil && q.Err() != nil {
		return fmt.Errorf("audit query after %v: %w", d.o.QueryTimeout, context.Cause(q))
	}
	return notADatabase(err)
}

// errSlow is matched when a question took longer than Options.QueryTimeout; it
// matches context.DeadlineExceeded.
var errSlow = fmt.Errorf("took too long and was cancelled; ask for less time (since:) or a key that has an index: %w", context.DeadlineExceeded)

// views keeps what was read of segments, the least recently used ones first to
// go.
type views struct {
	mu    sync.Mutex // guards what follows
	views map[int64]*view
	used  map[int64]uint64
	clock uint64
}

// maxHeld bounds what is kept of segments, in bytes, about.
const maxHeld = 96 << 20

// of returns the view of a segment.
func (c *views) of(i segmentInfo) *view {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.views == nil {
		c.views, c.used = map[int64]*view{}, map[int64]uint64{}
	}
	c.clock++
	c.used[i.id] = c.clock
	v := c.views[i.id]
	if v == nil {
		v = newView(i)
		c.views[i.id] = v
	}
	return v
}

// trim drops views until those that are kept fit.
func (c *views) trim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var total int64
	held := map[int64]int64{}
	for id, v := range c.views {
		v.mu.Lock()
		held[id] = v.held
		v.mu.Unlock()
		total += held[id]
	}
	for total > maxHeld {
		oldest := int64(-1)
		for id := range c.views {
			if oldest < 0 || c.used[id] < c.used[oldest] {
				oldest = id
			}
		}
		total -= held[oldest]
		delete(c.views, oldest)
		delete(c.used, oldest)
	}
}

// forget drops segments that are no more.
func (c *views) forget(ids []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.views, id)
		delete(c.used, id)
	}
}

// maxSegment bounds what the list of segments may say of one.
const maxSegment = 1 << 24

// segments lists the segments that overlap a time, the one with the newest
// record first.
func (t *tx) segments(ctx context.Context, low, high int64) ([]segmentInfo, error) {
	return t.segmentList(ctx, "WHERE high >= ? AND low < ? ORDER BY high DESC, id DESC", low, high)
}

func (t *tx) segmentList(ctx context.Context, where string, args ...any) ([]segmentInfo, error) {
	var l []segmentInfo
	err := t.each(ctx, func(scan func(...any) error) error {
		var i segmentInfo
		var packed int
		err := scan(&i.id, &i.rows, &i.shapes, &i.buckets, &i.low, &i.high, &i.blow, &i.bhi, &packed, &i.size)
		i.packed = packed != 0
		l = append(l, i)
		if err == nil && (i.rows < 1 || i.rows > maxSegment || i.shapes < 1 || i.shapes > i.rows || i.buckets < 1 || i.buckets > maxSegment || i.low > i.high) {
			err = damaged("segment %d cannot have %d rows, %d shapes and %d buckets", i.id, i.rows, i.shapes, i.buckets)
		}
		return err
	}, "SELECT id, rows, shapes, buckets, low, high, blow, bhigh, packed, size FROM segment "+where, args...)
	return l, err
}

// fetch reads parts within a snapshot. Several goroutines may, while none does
// anything else with t.
func (t *tx) fetch(ctx context.Context, segment int64, name string) ([]byte, error) {
	const q = "SELECT data FROM part WHERE segment = ? AND name = ?"
	// What is not found may be of a segment that was merged since.
	rows, err := t.beside(ctx, q, segment, name)
	if err != nil {
		return nil, err
	}
	raw, found, err := unpackOne(rows)
	if err == nil && !found {
		t.fetching.Lock()
		defer t.fetching.Unlock()
		if rows, err = t.query(ctx, q, segment, name); err == nil {
			raw, _, err = unpackOne(rows)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("part %s of segment %d: %w", name, segment, err)
	}
	return raw, nil
}

// beside asks on another connection than the snapshot's, where several may ask at
// once: for parts and blocks, which never change and whose numbers are never given
// again.
func (t *tx) beside(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	if p := t.e.asides.get(q); p != nil {
		return p.QueryContext(ctx, args...)
	}
	return t.e.aside.QueryContext(ctx, t.e.text(q), args...)
}

// unpackOne unpacks the part in the first row, where the driver has it.
func unpackOne(rows *sql.Rows) (raw []byte, found bool, err error) {
	defer rows.Close() //nolint:errcheck // read to the end, or an error is returned
	if !rows.Next() {
		return nil, false, rows.Err()
	}
	var b sql.RawBytes
	if err := rows.Scan(&b); err != nil {
		return nil, false, err
	}
	raw, err = unpack(b)
	return raw, true, err
}
