package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/test/servers"
)

// replica is one collector of two over the same PostgreSQL, which makes
// checkpoints too: more than ever happens, since one of them leads.
type replica struct {
	*rig
	db      *store.DB
	maker   *checkpoint.Maker
	outside string
	dead    atomic.Bool
	failed  atomic.Int64 // turns of the maker
}

// postgres starts a server of this test.
func postgres(t *testing.T) string {
	t.Helper()
	p, err := servers.StartPostgres(context.Background(), "", "fsync=off")
	if err != nil {
		if _, ok := servers.PostgresPath(); !ok && os.Getenv("ATTACHE_REQUIRE_SERVERS") == "" {
			t.Skip("PostgreSQL is not installed")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	return p.URL
}

func startReplica(t *testing.T, ca *xdstest.Authority, url string, signer note.Signer) *replica {
	t.Helper()
	db, err := store.Open(t.Context(), url, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{db: db, outside: t.TempDir()}
	r.rig = startBy(t, ca, func(c *collector.Config) { c.Store = db })
	t.Cleanup(func() { r.kill(); _ = db.Close() }) // a killed one has its database cut off as well
	r.maker, err = checkpoint.New(checkpoint.Config{
		Store: db, Origin: "two/replicas", Signer: signer, Every: 5 * time.Millisecond, Sinks: []checkpoint.Sink{checkpoint.Directory{Path: r.outside}}, Logger: slog.New(slog.DiscardHandler),
		Record: func(_ context.Context, e *audit.Record) error {
			if e.Event.Name == audit.EventCheckpointFailed {
				r.failed.Add(1)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lines is how many had a result.
func (r *replica) lines(result string) (n float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "attache_collector_lines_total" && m.GetLabel()[0].GetValue() == result {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// deliver sends lines until one of the replicas has taken them: now and then to
// both at once, as after a time-out, and now and then once more.
func deliver(ctx context.Context, to []*replica, clients []collogs.LogsServiceClient, lines []audit.Line, dice *rand.Rand) error {
	once := func(i int) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		a, err := clients[i].Export(ctx, export(lines...))
		if n := a.GetPartialSuccess().GetRejectedLogRecords(); err == nil && n > 0 {
			return fmt.Errorf("%d lines are refused for good: %s", n, a.GetPartialSuccess().GetErrorMessage())
		}
		if err != nil {
			return errDown
		}
		return nil
	}
	at := dice.IntN(2)
	if dice.IntN(4) == 0 {
		var both [2]error
		var tasks sync.WaitGroup
		for i := range both {
			tasks.Go(func() { both[i] = once(i) })
		}
		tasks.Wait()
		for i, err := range both {
			if err != nil && err != errDown { //nolint:errorlint // our own
				return fmt.Errorf("replica %d of both: %w", i, err)
			}
		}
	}
	for ctx.Err() == nil {
		if to[at].dead.Load() {
			at = 1 - at
		}
		switch err := once(at); err {
		case nil:
			if dice.IntN(3) == 0 { // the answer was lost
				if again := once(1 - at); again != nil && again != errDown { //nolint:errorlint // our own
					return again
				}
			}
			return nil
		case errDown:
			at = 1 - at
		default:
			return err
		}
	}
	return ctx.Err()
}

// Two collectors on one PostgreSQL, producers that go from one to the other, and
// one of them killed: nothing is lost, what comes twice is known, and however the
// makers of checkpoints get into each other's way, there is one chain of them.
func TestTwoReplicas(t *testing.T) {
	url := postgres(t)
	private, public, err := checkpoint.NewKey("two/replicas")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	ca := xdstest.NewAuthority(t)
	two := []*replica{startReplica(t, ca, url, signer), startReplica(t, ca, url, signer)}

	making, stop := context.WithCancel(t.Context())
	killed, cut := context.WithCancel(making)
	var makers sync.WaitGroup
	for i, r := range two {
		ctx := making
		if i == 0 {
			ctx = killed
		}
		makers.Go(func() { r.maker.Run(ctx) })
	}

	const producers, batches, size = 6, 60, 5
	var sent atomic.Int64
	half := make(chan struct{})
	var tasks sync.WaitGroup
	errs := make(chan error, producers)
	for n := range producers {
		id := fmt.Sprintf("%08d-0000-4000-8000-000000000000", n)
		clients := []collogs.LogsServiceClient{two[0].pod("team", "agent", id), two[1].pod("team", "agent", id)}
		tasks.Go(func() {
			dice, e := rand.New(rand.NewPCG(7, uint64(n))), begin(fmt.Sprintf("e%d", n)) //nolint:gosec // a test's dice
			for range batches {
				if err := deliver(t.Context(), two, clients, e.lines(size), dice); err != nil {
					errs <- fmt.Errorf("producer %d: %w", n, err)
					return
				}
				if sent.Add(1) == producers*batches/2 {
					close(half)
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { tasks.Wait(); close(finished) }()
	select {
	case <-half:
	case <-finished:
	}
	two[0].dead.Store(true)
	two[0].kill()
	cut()
	<-finished
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	stop()
	makers.Wait() // the last turn has stated the rest

	heads, err := two[1].db.Heads(t.Context())
	if err != nil || len(heads) != producers {
		t.Fatalf("%d epochs, %v", len(heads), err)
	}
	for _, h := range heads {
		if h.Last != batches*size || h.Lines != batches*size || len(h.Gaps) != 0 || !h.Chained {
			t.Errorf("epoch %s: %+v", h.Epoch, h)
		}
	}
	if n := two[0].lines("repeated") + two[1].lines("repeated"); n == 0 {
		t.Error("no line came twice: nothing was tried")
	}
	for i, r := range two {
		for _, event := range []string{audit.EventProducerGap, audit.EventProducerForged, audit.EventProducerRejected} {
			if told := r.told(event); len(told) != 0 {
				t.Errorf("replica %d tells of %s: %v", i, event, told)
			}
		}
		if made := r.failed.Load(); made > 0 {
			t.Logf("replica %d made way %d times", i, made)
		}
	}
	// Every checkpoint that left either replica is of the one chain, and covers it all.
	var outside [][]byte
	for _, r := range two {
		notes, err := checkpoint.ReadFiles(r.outside)
		if err != nil {
			t.Fatal(err)
		}
		outside = append(outside, notes...)
	}
	report, err := checkpoint.Verify(t.Context(), two[1].db, checkpoint.Options{Keys: []note.Verifier{key}, Outside: outside})
	if err != nil || !report.OK() || report.Covered != producers*batches*size || report.Uncovered != 0 || report.Checkpoints < 3 {
		t.Fatalf("%+v, %v", report, err)
	}
	t.Logf("%d lines, %d checkpoints, %d outside", report.Lines, report.Checkpoints, len(outside))
}
