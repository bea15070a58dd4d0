// Package collector takes the audit records of the cluster's producers, the
// sidecars and the replicas of the control plane, into the record store.
//
// It speaks OpenTelemetry's protocol for logs, over gRPC and HTTP, to whoever
// presents the X.509-SVID of a pod, and reads of a log record its body, the
// line of a spool byte for byte, and the three attributes that frame it.
//
// # What it holds a producer to
//
// An epoch, one start of a producer, belongs to the peer that sent its first
// line. Another that sends lines of it is refused, recorded and counted: it
// forges. Within an epoch each line's hash must be that over the line before
// it. A line that came already is acknowledged again if it is the same, and is
// a forgery if it is not. Lines that are missing are recorded as a gap, and
// what comes after them is taken: a loss is shown, and nothing is lost for it.
//
// Lines are acknowledged once the store has committed them. A producer keeps
// what was not.
package collector

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/expirable"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/peer"
)

// Bounds of what a producer may send.
const (
	maxMessage = 4 << 20 // of one export, decompressed
	maxLines   = 4096    // of one export
	maxLine    = 1 << 20 // of JSON
	maxEpoch   = 64

	// DefaultRate is how many lines a second a producer may send on average,
	// DefaultBurst at once: what a sidecar that was cut off for an hour at 100
	// requests a second has delivered within minutes.
	DefaultRate  = 4000
	DefaultBurst = 20000

	// perLine is how many bytes of an export count as one line, at least: lines
	// are about 1 KiB, and who sends long ones gets fewer of them.
	perLine = 4 << 10

	// An epoch is a start of a producer, and costs more than a line: everything
	// that looks at all producers looks at it. One that starts anew each second,
	// after an hour without a collector, is heard all the same.
	epochsRate  = 1 // a second
	epochsBurst = 256

	// What is found of a producer is recorded each by itself up to this: who
	// leaves out every other line must not fill the spool of the findings.
	findingsRate  = 1 // a second
	findingsBurst = 100

	remembered = 1 << 16 // producers and epochs in memory
	// tellAgain is how often a producer's repeated offence is recorded anew.
	tellAgain = time.Minute
)

// Store keeps the lines: *store.DB.
type Store interface {
	// Append commits lines of one epoch, in ascending order.
	Append(ctx context.Context, p store.Producer, lines []audit.Line) (store.Ack, error)
	// Head is what it has of an epoch; store.ErrNotFound if nothing.
	Head(ctx context.Context, epoch string) (store.Head, error)
}

// Config of a [Collector]. Store and Record are required.
type Config struct {
	Store Store
	// Record keeps what the collector itself has to say: gaps, forgeries, lost
	// producers.
	Record func(context.Context, *audit.Record) error
	// Peer is who calls. Default: peer.PeerPod.
	Peer func(context.Context) (peer.Pod, error)
	// Authorities are the trust domain's, which verify the signature of an
	// epoch's close. nil: no close is taken for signed.
	Authorities func() (*x509.CertPool, error)
	// Namespace of the control plane, whose replicas are producers too.
	Namespace string
	// PodName is what a pod with this uid is called, for people to read; empty if
	// that is not known (yet). It is asked for each export, and must not wait for
	// the cluster. nil: it never is.
	PodName func(ctx context.Context, namespace, uid string) string
	// Rate and Burst bound the lines of one producer; defaults as above.
	Rate     float64
	Burst    int
	Registry prometheus.Registerer
	Log      *slog.Logger
	Now      func() time.Time
}

// Collector takes lines. It is safe for concurrent use.
type Collector struct {
	Config
	metrics *metrics
	told    *expirable.LRU[string, struct{}]
	epochs  *lru.Cache[string, store.Head]
	limits  *lru.Cache[string, *rate.Limiter]
	starts  *lru.Cache[string, *rate.Limiter] // of epochs
	finds   *lru.Cache[string, *rate.Limiter] // of findings

	mu    sync.Mutex // guards all below
	busy  map[string]*turn
	watch func(store.Producer, []line) // of the lost producers; nil: nobody asks
}

// watched makes f be told of all lines that are stored from now on.
func (c *Collector) watched(f func(store.Producer, []line)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch = f
}

// turn lets one export of a producer at a time reach the store.
type turn struct {
	sync.Mutex
	waiting int
}

// New returns a Collector.
func New(c Config) (*Collector, error) {
	if c.Store == nil || c.Record == nil {
		return nil, errors.New("collector: Store and Record are required")
	}
	if c.Peer == nil {
		c.Peer = peer.PeerPod
	}
	if c.Rate <= 0 {
		c.Rate = DefaultRate
	}
	if c.Burst <= 0 {
		c.Burst = DefaultBurst
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	out := &Collector{Config: c, metrics: newMetrics(c.Registry), busy: map[string]*turn{}, told: expirable.NewLRU[string, struct{}](remembered, nil, tellAgain)}
	var err, err2, err3, err4 error
	out.epochs, err = lru.New[string, store.Head](remembered)
	out.limits, err2 = lru.New[string, *rate.Limiter](remembered)
	out.starts, err3 = lru.New[string, *rate.Limiter](remembered)
	out.finds, err4 = lru.New[string, *rate.Limiter](remembered)
	return out, errors.Join(err, err2, err3, err4)
}

// errBusy is a producer that sends too much.
type errBusy struct{ after time.Duration }

// Error implements error.
func (e errBusy) Error() string {
	return fmt.Sprintf("this producer sends too many lines; again in %s", e.after)
}

// limited takes n lines from a producer's allowance.
func (c *Collector) limited(id string, n int) error {
	return c.allowed(c.limits, id, n, c.Rate, c.Burst)
}

func (c *Collector) allowed(of *lru.Cache[string, *rate.Limiter], id string, n int, perSecond float64, burst int) error {
	r := limiter(of, id, perSecond, burst).ReserveN(c.Now(), min(n, burst))
	if d := r.DelayFrom(c.Now()); d > 0 {
		r.CancelAt(c.Now())
		c.metrics.limited.Inc()
		return errBusy{d}
	}
	return nil
}

func limiter(of *lru.Cache[string, *rate.Limiter], id string, perSecond float64, burst int) *rate.Limiter {
	l, ok := of.Get(id)
	if !ok {
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		if old, had, _ := of.PeekOrAdd(id, l); had {
			l = old
		}
	}
	return l
}

// refused says how many lines of an export were not taken, and why.
type refused struct {
	lines int
	why   string
}

func (r *refused) add(n int, why string) {
	r.lines += n
	if r.why == "" {
		r.why = why
	}
}

// Deliver is [Collector.take] for lines of this process's own spool.
func (c *Collector) Deliver(ctx context.Context, p store.Producer, lines []audit.Line) error {
	list := make([]line, 0, len(lines))
	for _, l := range lines {
		h, err := headOf(l.JSON)
		if err != nil {
			return err
		}
		list = append(list, line{l, h})
	}
	no, err := c.take(ctx, p, list)
	if err == nil && no.lines > 0 {
		err = &RefusedError{no.lines, no.why}
	}
	return err
}

// RefusedError is of lines that were not taken and never will be.
type RefusedError struct {
	Lines  int
	Reason string
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%d lines are refused: %s", e.Lines, e.Reason)
}

// take stores the lines of an authenticated producer. An error means that
// none counts and that all may be sent again.
func (c *Collector) take(ctx context.Context, p store.Producer, lines []line) (refused, error) {
	defer c.lock(p.ID)()
	var no refused
	for _, of := range byEpoch(lines) {
		if err := c.takeEpoch(ctx, p, of, &no); err != nil {
			return no, err
		}
	}
	return no, nil
}

// lock makes the exports of one producer come one after the other: a
// repetition of one that is under way must see what that one has stored.
func (c *Collector) lock(id string) func() {
	c.mu.Lock()
	t := c.busy[id]
	if t == nil {
		t = &turn{}
		c.busy[id] = t
	}
	t.waiting++
	c.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(c.busy, id)
		}
	}
}

// byEpoch keeps the order of epochs and sorts the lines of each.
func byEpoch(lines []line) [][]line {
	at := map[string]int{}
	var out [][]line
	for _, l := range lines {
		i, ok := at[l.Epoch]
		if !ok {
			i = len(out)
			at[l.Epoch] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], l)
	}
	for _, of := range out {
		slices.SortStableFunc(of, func(a, b line) int {
			switch {
			case a.Sequence < b.Sequence:
				return -1
			case a.Sequence > b.Sequence:
				return 1
			}
			return 0
		})
	}
	return out
}

// known returns what is there of an epoch; the zero Head if nothing. fresh asks
// the store: another collector may have gone on.
func (c *Collector) known(ctx context.Context, epoch string, fresh bool) (store.Head, error) {
	if k, ok := c.epochs.Get(epoch); ok && !fresh {
		return k, nil
	}
	k, err := c.Store.Head(ctx, epoch)
	if errors.Is(err, store.ErrNotFound) {
		return store.Head{}, nil
	} else if err != nil {
		c.metrics.storeErrors.Inc()
		return store.Head{}, fmt.Errorf("read an epoch: %w", err)
	}
	c.epochs.Add(epoch, k)
	return k, nil
}

// takeEpoch stores lines of one epoch.
func (c *Collector) takeEpoch(ctx context.Context, p store.Producer, of []line, no *refused) error {
	epoch := of[0].Epoch
	k, err := c.known(ctx, epoch, false)
	if err == nil && of[0].Sequence != k.Last+1 {
		k, err = c.known(ctx, epoch, true)
	}
	if err != nil {
		return err
	}
	if why := inAnothersName(p, k, of); why != "" {
		c.forged(ctx, audit.EventProducerRejected, "name", p, of, why, no)
		return nil
	}
	if k.Last == 0 {
		if err := c.allowed(c.starts, p.ID, 1, epochsRate, epochsBurst); err != nil {
			return err
		}
	}
	good, why := unbroken(k, epoch, of)
	if len(good) < len(of) {
		c.forged(ctx, audit.EventProducerForged, "chain", p, of[len(good):], why, no)
	}
	if len(good) == 0 {
		return nil
	}
	plain := make([]audit.Line, len(good))
	for i := range good {
		plain[i] = good[i].Line
	}
	ack, err := c.Store.Append(ctx, p, plain)
	switch {
	case errors.Is(err, store.ErrForged):
		c.epochs.Remove(epoch)
		c.forged(ctx, audit.EventProducerForged, "chain", p, good, err.Error(), no)
		return nil
	case errors.Is(err, store.ErrBadLine):
		no.add(len(good), err.Error())
		return nil
	case err != nil:
		c.epochs.Remove(epoch)
		c.metrics.storeErrors.Inc()
		return fmt.Errorf("store lines: %w", err)
	}
	c.stored(ctx, p, k, good, ack)
	return nil
}

// stored notes what has been committed, and tells of what is missing.
func (c *Collector) stored(ctx context.Context, p store.Producer, k store.Head, good []line, ack store.Ack) {
	c.metrics.lines.WithLabelValues("stored").Add(float64(ack.Stored))
	c.metrics.lines.WithLabelValues("repeated").Add(float64(ack.Duplicates))
	for _, g := range ack.Gaps {
		c.metrics.gaps.Inc()
		c.tell(ctx, audit.EventProducerGap, p, g.Epoch, map[string]string{
			"from": strconv.FormatUint(g.From, 10), "to": strconv.FormatUint(g.To, 10), "lines": strconv.FormatUint(g.To-g.From+1, 10),
		})
	}
	var fresh []line
	before := k
	for _, l := range good {
		if l.Sequence <= k.Last {
			continue
		}
		if l.head.Type == audit.TypeEpochEnd {
			k.Closed = true
			c.closed(ctx, p, before, l)
		}
		k.Last, k.Hash, k.Chained = l.Sequence, l.Chain, l.Chained
		before = k
		fresh = append(fresh, l)
		if t, err := time.Parse(time.RFC3339Nano, l.head.Time); err == nil {
			c.metrics.lag.Observe(max(0, c.Now().Sub(t).Seconds()))
		}
	}
	k.Producer, k.Epoch = p, good[0].Epoch
	c.epochs.Add(k.Epoch, k)
	c.mu.Lock()
	watch := c.watch
	c.mu.Unlock()
	if watch != nil && len(fresh) > 0 {
		watch(p, fresh)
	}
}

// inAnothersName says what shows that lines are not the peer's own: the epoch
// is another's, or a line names another producer or workload.
func inAnothersName(p store.Producer, k store.Head, of []line) string {
	if k.Last > 0 && k.Producer.ID != p.ID {
		return "the epoch belongs to another producer"
	}
	for i := range of {
		h := &of[i].head
		if h.Type == audit.TypeEpochOpen && h.Event != nil {
			if named := h.Event.Fields["producer"]; named != "" && named != p.ID {
				return "the epoch's first line names another producer"
			}
		}
		if p.Kind == audit.KindSidecar {
			if why := h.beyond(p); why != "" {
				return why
			}
		}
	}
	return ""
}

// beyond says what of a sidecar's line is not the sidecar's to say. Who may read
// a record goes by the namespaces in it, and what the control plane did is told
// by the control plane alone.
func (h *head) beyond(p store.Producer) string {
	if w := h.Workload; w != nil {
		if w.ID != "" && w.ID != p.Workload {
			return "a line names another workload than its producer's"
		}
		if w.Namespace != "" && w.Namespace != p.Namespace {
			return "a line names another namespace than its producer's"
		}
	}
	if h.Change != nil {
		return "a line tells of a change, which only the control plane sees"
	}
	if h.Event == nil {
		return ""
	}
	if ns := h.Event.Fields["namespace"]; ns != "" && ns != p.Namespace {
		return "a line names another namespace than its producer's"
	}
	if !ofSidecars[h.Event.Name] {
		return "a line tells of an event that only the control plane sees, or that nobody knows"
	}
	return ""
}

// ofSidecars are the events that a sidecar tells of, as they are written: a
// search would find "Logout" for "logout". One of a newer sidecar is refused by
// an older collector, so the control plane is upgraded first.
var ofSidecars = map[string]bool{
	audit.TypeEpochOpen: true, audit.TypeEpochEnd: true, audit.TypeHeartbeat: true,
	audit.EventTaskOpened: true, audit.EventTaskClosed: true, audit.EventTaskRefused: true,
	audit.EventCredentialMinted: true, audit.EventCredentialRevoked: true, audit.EventRevocation: true,
	audit.EventPolicyLoaded: true, audit.EventPolicyRejected: true,
	audit.EventShipRejected: true, audit.EventDropped: true, audit.EventRemoved: true, audit.EventTailCut: true,
	audit.EventDamaged: true, audit.EventShipped: true,
}

// unbroken returns the lines up to the first whose hash does not follow from
// the line before it, and what is wrong with that one. What the store has is
// compared by the store.
func unbroken(k store.Head, epoch string, of []line) (good []line, why string) {
	last := audit.Line{Chain: chain.First(epoch), Chained: true}
	if k.Last > 0 {
		last = audit.Line{Sequence: k.Last, Chain: k.Hash, Chained: k.Chained}
	}
	for i, l := range of {
		switch {
		case i > 0 && l.Sequence == of[i-1].Sequence:
			return of[:i], "one sequence number stands for two lines"
		case k.Last > 0 && k.Chained && !l.Chained:
			return of[:i], "the line has no hash, and those before it have"
		case l.Chained && l.Sequence == last.Sequence+1 && last.Chained && !l.Follows(last.Chain):
			return of[:i], "the line's hash does not follow from the line before it"
		}
		last = l.Line
	}
	return of, ""
}

// forged refuses lines for good, and tells of it.
func (c *Collector) forged(ctx context.Context, event, kind string, p store.Producer, of []line, why string, no *refused) {
	no.add(len(of), why)
	c.metrics.forged.WithLabelValues(kind).Add(float64(len(of)))
	c.tell(ctx, event, p, of[0].Epoch, map[string]string{
		"reason": why, "sequence": strconv.FormatUint(of[0].Sequence, 10), "lines": strconv.Itoa(len(of)),
	})
}

// tell records what a producer did, once in a while if it goes on doing it.
func (c *Collector) tell(ctx context.Context, name string, p store.Producer, epoch string, fields map[string]string) {
	key := name + "/" + p.ID + "/" + epoch + "/" + fields["from"] + fields["reason"]
	if _, ok := c.told.Get(key); ok {
		return
	}
	if !limiter(c.finds, p.ID, findingsRate, findingsBurst).AllowN(c.Now(), 1) {
		c.metrics.unrecorded.Inc() // the store's heads and the checkpoints have gaps all the same
		return
	}
	c.told.Add(key, struct{}{})
	fields["producer"], fields["producer_kind"], fields["epoch"] = p.ID, p.Kind, epoch
	if p.Workload != "" {
		fields["workload"] = p.Workload
	}
	if p.Namespace != "" {
		fields["namespace"] = p.Namespace
	}
	if p.Pod != "" {
		fields["pod"] = p.Pod
	}
	args := []any{"event", name}
	for _, k := range []string{"producer", "epoch", "reason", "from", "to", "lines"} {
		if v := fields[k]; v != "" {
			args = append(args, k, v)
		}
	}
	c.Log.WarnContext(ctx, "a producer's lines are not whole", args...)
	if err := c.Record(context.WithoutCancel(ctx), &audit.Record{Event: &audit.Event{Name: name, Fields: fields}}); err != nil {
		c.metrics.unrecorded.Inc()
		c.Log.ErrorContext(ctx, "not recorded", "event", name, "cause", err)
	}
}
