// Package query measures the record store: how fast it takes records, what a
// record costs on disk, and how fast it answers the questions that the review
// pages and the command ask.
package query

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// Options of [Run]. URL and Records are required.
type Options struct {
	URL     string // an empty store
	Records int
	Rounds  int // of all questions, warm and again cold; default 20
	// Files lists the store's files, to drop them from the page cache; nil: the
	// SQLite file of URL.
	Files func() ([]string, error)
	// Reuse says that the store has these records already.
	Reuse bool
	// Command is the program attache, to measure its commands too; empty: they are not.
	Command string
	Out     io.Writer
}

// Goals of the full measurement.
const (
	GoalQuery  = 300 * time.Millisecond // p95 of each question
	GoalIngest = 20_000                 // records a second into SQLite
	GoalBytes  = 1024                   // a record
)

// Answer is one question's times.
type Answer struct {
	Name       string
	Rows       int64 // of the answer, or counted
	Warm, Cold time.Duration
	CPU        time.Duration // of the process, warm, median: it depends less on what else the machine does
}

// Report is what Run measured. Times are p95.
type Report struct {
	Records  int
	Ingest   float64 // records a second
	Bytes    float64 // a record
	Segments int
	Answers  []Answer
}

// Summary tells the report in one line.
func (r *Report) Summary() string {
	var worst Answer
	for _, a := range r.Answers {
		if max(a.Warm, a.Cold) > max(worst.Warm, worst.Cold) {
			worst = a
		}
	}
	return fmt.Sprintf("%d records: ingest %.0f records/s, %.0f bytes a record, %d questions, the slowest %q: p95 %.1f ms warm, %.1f ms cold",
		r.Records, r.Ingest, r.Bytes, len(r.Answers), worst.Name, ms(worst.Warm), ms(worst.Cold))
}

// Check compares the report with the goals.
func (r *Report) Check(sqlite bool) error {
	var errs []error
	if sqlite && r.Ingest < GoalIngest {
		errs = append(errs, fmt.Errorf("ingest of %.0f records/s, want %d", r.Ingest, GoalIngest))
	}
	if r.Bytes > GoalBytes {
		errs = append(errs, fmt.Errorf("%.0f bytes a record, want at most %d", r.Bytes, GoalBytes))
	}
	for _, a := range r.Answers {
		if a.Warm > GoalQuery || a.Cold > GoalQuery {
			errs = append(errs, fmt.Errorf("%s: p95 %.1f ms warm, %.1f ms cold, want %v", a.Name, ms(a.Warm), ms(a.Cold), GoalQuery))
		}
	}
	return errors.Join(errs...)
}

// question is something that is asked of the store.
type question struct {
	name string
	ask  func(context.Context, *store.DB) (int64, error)
}

// Run fills a store and asks it.
func Run(ctx context.Context, o Options) (Report, error) {
	r := Report{Records: o.Records}
	if o.Rounds == 0 {
		o.Rounds = 20
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if path, ok := strings.CutPrefix(o.URL, "sqlite:"); ok && o.Files == nil {
		o.Files = func() ([]string, error) { return filepath.Glob(path + "*") }
	}
	d, err := store.Open(ctx, o.URL, store.Options{QueryTimeout: time.Minute})
	if err != nil {
		return r, err
	}
	if !o.Reuse {
		if r.Ingest, err = ingest(ctx, d, o); err != nil {
			return r, errors.Join(err, d.Close())
		}
	}
	if err := d.Settle(ctx); err != nil {
		return r, errors.Join(err, d.Close())
	}
	size, err := d.Size(ctx)
	if err != nil {
		return r, errors.Join(err, d.Close())
	}
	r.Bytes = float64(size) / float64(o.Records)
	fmt.Fprintf(o.Out, "ingest %.0f records/s, %.0f bytes a record, %.2f GB\n", r.Ingest, r.Bytes, float64(size)/1e9)
	qs, names, err := questions(ctx, d)
	if err != nil {
		return r, errors.Join(err, d.Close())
	}
	if err := d.Close(); err != nil {
		return r, err
	}
	for _, q := range qs {
		a := Answer{Name: q.name}
		if a.Rows, a.Cold, _, err = measure(ctx, o, q, true); err != nil {
			return r, fmt.Errorf("%s: %w", q.name, err)
		}
		if _, a.Warm, a.CPU, err = measure(ctx, o, q, false); err != nil {
			return r, fmt.Errorf("%s: %w", q.name, err)
		}
		fmt.Fprintf(o.Out, "%-44s %9d rows  warm p95 %8.1f ms  cold p95 %8.1f ms  cpu %8.1f ms\n", a.Name, a.Rows, ms(a.Warm), ms(a.Cold), ms(a.CPU))
		r.Answers = append(r.Answers, a)
	}
	if o.Command == "" {
		return r, nil
	}
	l, err := commands(ctx, o, names)
	r.Answers = append(r.Answers, l...)
	return r, err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// measure asks a question again and again. Cold: each time of a store that was
// just opened, whose files are not in the page cache.
func measure(ctx context.Context, o Options, q question, cold bool) (rows int64, p95, cpu time.Duration, err error) {
	var d *store.DB
	defer func() {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	rounds := o.Rounds
	if !cold {
		rounds++ // the first one fills the caches
	}
	var times, cpus []time.Duration
	for i := range rounds {
		if cold || d == nil {
			if d != nil {
				if err := d.Close(); err != nil {
					return 0, 0, 0, err
				}
				d = nil
			}
			if cold {
				if err := drop(o.Files); err != nil {
					return 0, 0, 0, err
				}
			}
			if d, err = store.Open(ctx, o.URL, store.Options{ReadOnly: true, QueryTimeout: time.Minute}); err != nil {
				return 0, 0, 0, err
			}
		}
		begin, used := time.Now(), cpuTime()
		if rows, err = q.ask(ctx, d); err != nil {
			return 0, 0, 0, err
		}
		if cold || i > 0 {
			times, cpus = append(times, time.Since(begin)), append(cpus, cpuTime()-used)
		}
	}
	slices.Sort(times)
	slices.Sort(cpus)
	return rows, times[(len(times)*95+99)/100-1], cpus[len(cpus)/2], nil
}

// cpuTime is what the process has used.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// drop takes a store's files out of the page cache.
func drop(files func() ([]string, error)) error {
	if files == nil {
		return nil
	}
	l, err := files()
	if err != nil {
		return err
	}
	for _, name := range l {
		f, err := os.Open(name) //nolint:gosec // the measurement's own files
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close()) //nolint:gosec // a descriptor
		if err != nil {
			return fmt.Errorf("drop %s from the page cache: %w", name, err)
		}
	}
	return nil
}

// chunk is how many records are made before they are stored, so that making
// them is not in the time.
const chunk = 50_000

// ingest stores a fleet's records, several producers at once, and returns the
// rate. The time to make them is left out.
func ingest(ctx context.Context, d *store.DB, o Options) (float64, error) {
	so := seed.Options{Records: o.Records}
	if o.Records < 1_000_000 {
		so.MaxAge = 30 * 24 * time.Hour // few records would come one by one
	}
	f := seed.New(so)
	var took, used time.Duration
	done := 0
	for more := true; more; {
		var l []*seed.Batch
		lines := 0
		for lines < 2*chunk {
			b := f.Next()
			if b == nil {
				more = false
				break
			}
			l = append(l, b)
			lines += len(b.Lines)
		}
		runtime.GC()
		begin, cpu := time.Now(), cpuTime()
		if err := appendAll(ctx, d, l); err != nil {
			return 0, err
		}
		took += time.Since(begin)
		used += cpuTime() - cpu
		if done++; done%20 == 0 {
			fmt.Fprintf(o.Out, "  %d lines, %.1f s\n", done*2*chunk, took.Seconds())
		}
	}
	begin := time.Now()
	if err := d.Settle(ctx); err != nil {
		return 0, err
	}
	took += time.Since(begin) // merging is part of the work
	fmt.Fprintf(o.Out, "%.1f µs of CPU a record\n", float64(used.Microseconds())/float64(o.Records))
	return float64(o.Records) / took.Seconds(), nil
}

// appendAll stores batches from as many goroutines as a small fleet has producers
// that ship at one time; those of one producer stay in order.
func appendAll(ctx context.Context, d *store.DB, l []*seed.Batch) error {
	const workers = 32
	queues := make([][]*seed.Batch, workers)
	for _, b := range l {
		n := int(crc32.ChecksumIEEE([]byte(b.Producer.ID)) % workers)
		queues[n] = append(queues[n], b)
	}
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i, q := range queues {
		wg.Go(func() {
			for _, b := range q {
				if _, err := d.Append(ctx, b.Producer, b.Lines); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// questions are those that the p95 list names. Some ask for what the store
// happens to hold.
func questions(ctx context.Context, d *store.DB) ([]question, sample, error) {
	ext, err := d.Search(ctx, store.Query{Limit: 1})
	if err != nil || len(ext.Rows) == 0 {
		return nil, sample{}, errors.Join(errors.New("the store has no record"), err)
	}
	now := ext.Rows[0].Time.Add(time.Second)
	parse := func(q string) (audit.Filter, error) { return audit.ParseFilter(q, now) }
	some, err := parse("host:*.s3.* verdict:inject since:15d")
	if err != nil {
		return nil, sample{}, err
	}
	p, err := d.Search(ctx, store.Query{Filter: some, Limit: 1, Oldest: true})
	if err != nil || len(p.Rows) == 0 {
		return nil, sample{}, errors.Join(errors.New("the store has no call to S3"), err)
	}
	r := p.Rows[0]
	var l []question
	add := func(name string, q string, ask func(context.Context, *store.DB, store.Query) (int64, error)) {
		f, e := parse(q)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, e))
			return
		}
		l = append(l, question{name, func(ctx context.Context, d *store.DB) (int64, error) { return ask(ctx, d, store.Query{Filter: f}) }})
	}
	search := func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		p, err := d.Search(ctx, q)
		if p.Partial {
			err = errors.Join(err, errors.New("the answer is partial"))
		}
		return int64(len(p.Rows)), err
	}
	facets := func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		f, err := d.Facets(ctx, q, nil, 10)
		return f.Total.Count, err
	}
	histogram := func(width time.Duration) func(context.Context, *store.DB, store.Query) (int64, error) {
		return func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
			h, err := d.Histogram(ctx, q, width)
			var n int64
			for _, b := range h {
				n += b.Count
			}
			return n, err
		}
	}
	add("first page", "", search)
	add("facets, unfiltered", "", facets)
	add("facets, owner:ana", "owner:ana", facets)
	add("facets, since:24h", "since:24h", facets)
	add("facets, path:*refund*", "path:*refund*", facets)
	add("histogram 30 days by 6h, unfiltered", "", histogram(6*time.Hour))
	add("histogram 30 days by 6h, verdict:deny", "verdict:deny", histogram(6*time.Hour))
	add("histogram 30 days by 1h, owner:ana", "owner:ana", histogram(time.Hour))
	add("first seen: agent × host", "", func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		g, err := d.FirstSeen(ctx, q, []string{"agent", "host"}, 100)
		return int64(len(g)), err
	})
	add("substring path, frequent: path:*invoices*", "path:*invoices*", search)
	add("substring path, rare: path:*refund-77*", "path:*refund-77*", search)
	add("substring path, nothing: path:*zebra-9*", "path:*zebra-9*", search)
	add("rare: event and one agent", "agent:agent-399 event:task.opened", search)
	add("rare: status:503 of one host", "status:503 host:"+seed.Host(140), search)
	add("frequent: verdict:inject", "verdict:inject", search)
	add("owner:ana dest:*.s3.* verdict:deny since:24h", "owner:ana dest:*.s3.* verdict:deny since:24h", search)
	add("agent:invoices bucket:payments, yesterday", "agent:invoices bucket:payments since:48h until:24h", search)
	add("by handle", "handle:"+r.Credential.Handle, search)
	add("by task", "task:"+r.Task.ID, search)
	add("by trace", "trace:"+r.Request.TraceID, search)
	add("one record by id", "", func(ctx context.Context, d *store.DB, _ store.Query) (int64, error) {
		_, refs, err := d.Get(ctx, r.ID)
		return int64(len(refs)), err
	})
	add("related to a person", "", func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		p, err := d.Related(ctx, seed.Person(17), q)
		return int64(len(p.Rows)), err
	})
	add("reach of an agent: host × method × operation", "agent:invoices", func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		g, partial, err := d.Groups(ctx, q, []string{"host", "method", "operation", "rule", "verdict"}, 0)
		if partial {
			err = errors.Join(err, errors.New("the answer is partial"))
		}
		return int64(len(g)), err
	})
	end, e := d.End(ctx)
	if e != nil {
		return nil, sample{}, e
	}
	add("live tail, nothing new", "", func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		p, err := d.Tail(ctx, q, end)
		return int64(len(p.Rows)), err
	})
	deep, e := d.Search(ctx, store.Query{Filter: mustUntil(now), Limit: 1})
	if e != nil || len(deep.Rows) == 0 {
		return nil, sample{}, errors.Join(errors.New("no deep page"), e)
	}
	add("deep page, behind half of all", "", func(ctx context.Context, d *store.DB, q store.Query) (int64, error) {
		q.After = deep.Rows[0].Cursor
		return search(ctx, d, q)
	})
	return l, sample{r.ID, r.Credential.Handle, now}, err
}

// mustUntil matches what is older than 15 days.
func mustUntil(now time.Time) audit.Filter {
	f, err := audit.ParseFilter("until:15d", now)
	if err != nil {
		panic(fmt.Sprintf("query: until:15d: %v", err)) // a constant
	}
	return f
}
