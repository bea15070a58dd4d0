package ship

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
)

// MaxAside bounds the file of lines that a sink refused for good, in bytes. When
// it is full nothing is passed by any more: the spool fills, and calls are
// refused.
const MaxAside = 4 << 20

// asideEvery bounds how often refused lines are recorded in the spool: that
// record is shipped, too, and may be refused.
const asideEvery = time.Minute

// Options of [Start].
type Options struct {
	// Collector names the sink whose acknowledgement v1alpha1.DurabilityCollector
	// waits for; empty: there is none.
	Collector string
	// MinWait and MaxWait bound the wait after an error; see [Config].
	MinWait, MaxWait time.Duration
	Log              *slog.Logger
}

// Group ships one spool to several sinks, each at its own pace.
type Group struct {
	spool    *audit.Spool
	log      *slog.Logger
	sources  []*SpoolSource
	shippers []*Shipper
	cancel   context.CancelFunc
	done     sync.WaitGroup

	mu    sync.Mutex      // guards known
	known map[string]bool // segments with damage
}

// sinkName keeps names fit for files and labels.
var sinkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// keeper is a sink that keeps something between processes: with the spool.
type keeper interface {
	UseState(dir string) error
}

// Start ships the lines of s until [Group.Close]. Segments that every sink has
// taken are given to [audit.Spool.SetShipped].
func Start(s *audit.Spool, sinks []Sink, o Options) (*Group, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := &Group{spool: s, log: o.Log}
	seen := map[string]bool{}
	for _, sink := range sinks {
		name := sink.Name()
		if !sinkName.MatchString(name) || seen[name] {
			return nil, errors.Join(fmt.Errorf("sink %q: its name must be unique, of letters, digits, - and _", name), g.closeSources())
		}
		seen[name] = true
		if k, ok := sink.(keeper); ok {
			if err := k.UseState(s.Dir()); err != nil {
				return nil, errors.Join(fmt.Errorf("sink %q: %w", name, err), g.closeSources())
			}
		}
		src, err := FromSpool(s, name, g.damaged)
		if err != nil {
			return nil, errors.Join(err, g.closeSources())
		}
		c := Config{Source: src, Sink: sink, Aside: (&aside{spool: s, sink: name}).take, Committed: g.committed, MinWait: o.MinWait, MaxWait: o.MaxWait, Log: o.Log}
		if name == o.Collector {
			c.Answered = s.Answer
		}
		g.sources, g.shippers = append(g.sources, src), append(g.shippers, New(c))
	}
	g.committed()
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for _, sh := range g.shippers {
		g.done.Go(func() { _ = sh.Run(ctx) }) // ended by Close
	}
	return g, nil
}

// committed tells the spool what every sink has.
func (g *Group) committed() {
	if len(g.sources) == 0 {
		return
	}
	below := g.sources[0].Committed().Segment
	for _, src := range g.sources[1:] {
		below = min(below, src.Committed().Segment)
	}
	g.spool.SetShipped(below)
}

// damaged tells of lines that cannot be shipped since they cannot be read.
func (g *Group) damaged(d audit.Damage) {
	g.mu.Lock()
	known := g.known[d.Segment] // each sink comes past it
	if g.known == nil {
		g.known = map[string]bool{}
	}
	g.known[d.Segment] = true
	g.mu.Unlock()
	if known {
		return
	}
	err := g.spool.Event(audit.EventDamaged, map[string]string{"segment": d.Segment, "offset": strconv.FormatInt(d.Offset, 10), "lines": strconv.Itoa(d.Lines)})
	if err != nil && !errors.Is(err, audit.ErrClosed) {
		g.log.Error("damage of the spool is not recorded", "error", err)
	}
	g.log.Error("damaged audit lines are left out; attache audit verify says more", "segment", d.Segment, "offset", d.Offset, "lines", d.Lines, "bytes", d.Bytes)
}

// Close waits until everything is delivered, which is once the spool is closed,
// or ctx ends. It says what is left; the next start with this spool goes on
// with it.
func (g *Group) Close(ctx context.Context) error {
	for _, s := range g.shippers {
		s.Hurry()
	}
	delivered := make(chan struct{})
	go func() {
		g.done.Wait()
		close(delivered)
	}()
	select {
	case <-delivered:
	case <-ctx.Done():
	}
	g.cancel()
	<-delivered
	var errs []error
	for _, st := range g.Status() {
		if st.LagLines > 0 {
			errs = append(errs, fmt.Errorf("%d records are not delivered to sink %s yet and stay in %s: %s", st.LagLines, st.Sink, g.spool.Dir(), st.Error))
		}
	}
	return errors.Join(append(errs, g.closeSources())...)
}

func (g *Group) closeSources() error {
	var errs []error
	for _, s := range g.sources {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// Status returns the present figures of each sink, in their order.
func (g *Group) Status() []Status {
	l := make([]Status, len(g.shippers))
	for i, s := range g.shippers {
		l[i] = s.Status()
	}
	return l
}

// aside keeps lines that a sink refused for good.
type aside struct {
	spool *audit.Spool
	sink  string
	told  time.Time
	count int // refused since
}

// take implements Config.Aside.
func (a *aside) take(b Batch, r *RejectedError) error {
	path := filepath.Join(a.spool.Dir(), "sink-"+a.sink+".rejected")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("set refused records aside: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var text []byte
	for _, l := range b.Lines {
		text = l.AppendTo(text)
	}
	if fi.Size()+int64(len(text)) > MaxAside {
		return fmt.Errorf("%s is full of records that the receiver refused (%s): look at them, then move the file away", path, r.Reason)
	}
	if _, err := f.Write(text); err != nil {
		return fmt.Errorf("set refused records aside: %w", errors.Join(err, f.Truncate(fi.Size())))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("set refused records aside: %w", err)
	}
	a.count += r.Count
	if time.Since(a.told) < asideEvery {
		return nil
	}
	err = a.spool.Event(audit.EventShipRejected, map[string]string{
		"sink": a.sink, "records": strconv.Itoa(a.count), "reason": r.Reason, "epoch": b.Lines[0].Epoch,
		"from": strconv.FormatUint(b.Lines[0].Sequence, 10), "to": strconv.FormatUint(b.Lines[len(b.Lines)-1].Sequence, 10),
	})
	if err == nil {
		a.told, a.count = time.Now(), 0
	}
	return nil // the spool may be closed, or full: the file has them
}
