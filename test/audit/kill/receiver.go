package kill

import (
	"context"
	"fmt"
	"math/rand/v2"

	"sync"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// mood is how the collector is.
type mood int

const (
	well  mood = iota
	down       // refuses everything
	flaky      // refuses half
	deaf       // takes everything and says that it has not
	slow       // answers late
	moods
)

type key struct {
	epoch string
	seq   uint64
}

type line struct {
	json  string
	chain chain.Hash
}

// receiver is a collector that forgets nothing.
type receiver struct {
	collogs.UnimplementedLogsServiceServer
	seed uint64

	mu     sync.Mutex // guards what follows
	now    mood
	got    map[key]line
	ids    map[string]bool
	again  int
	failed int
	err    error // the first forgery
}

func (c *receiver) mood(m mood) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = m
}

func (c *receiver) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ids[id]
}

func (c *receiver) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// Export implements the collector.
func (c *receiver) Export(_ context.Context, req *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	m := c.now
	c.mu.Unlock()
	unavailable := status.Error(codes.Unavailable, "the test says no")
	if m == slow {
		time.Sleep(rand.N(50 * time.Millisecond)) //nolint:gosec // any delay will do
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m == down || m == flaky && rand.IntN(2) == 0 { //nolint:gosec // any will do
		c.failed++
		return nil, unavailable
	}
	for _, rl := range req.GetResourceLogs() {
		for _, sl := range rl.GetScopeLogs() {
			for _, l := range sl.GetLogRecords() {
				k, got := key{}, line{json: l.GetBody().GetStringValue()}
				for _, a := range l.GetAttributes() {
					switch a.GetKey() {
					case "attache.epoch":
						k.epoch = a.GetValue().GetStringValue()
					case "attache.sequence":
						k.seq = uint64(a.GetValue().GetIntValue()) //nolint:gosec // checked below
					case "attache.chain":
						got.chain, _ = chain.ParseHash(a.GetValue().GetStringValue())
					}
				}
				c.take(k, got)
			}
		}
	}
	if m == deaf {
		c.failed++
		return nil, unavailable
	}
	return &collogs.ExportLogsServiceResponse{}, nil
}

func (c *receiver) take(k key, got line) {
	if had, ok := c.got[k]; ok {
		c.again++
		if had != got && c.err == nil {
			c.err = fmt.Errorf("epoch %s, sequence %d came twice and differs:\n%s\n%s", k.epoch, k.seq, had.json, got.json)
		}
		return
	}
	c.got[k] = got
	_, id, _ := audit.Line{JSON: []byte(got.json)}.Head()
	c.ids[id] = true
}

// arrival is what came of one record.
type arrival struct {
	begins, ends int
	outcome      string
	system       bool // an event, or the spool's own
}

func (c *receiver) epochs() map[string]uint64 {
	last := map[string]uint64{}
	for k := range c.got {
		last[k.epoch] = max(last[k.epoch], k.seq)
	}
	return last
}

// arrived checks chains and links between epochs and returns what came, by id.
func (c *receiver) arrived() (map[string]arrival, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.err
	wrong := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	out := map[string]arrival{}
	heads, previous := map[string]string{}, map[string][2]string{}
	epochs := c.epochs()
	for epoch, last := range epochs {
		prev := chain.First(epoch)
		for seq := uint64(1); seq <= last; seq++ {
			l, ok := c.got[key{epoch, seq}]
			if !ok {
				wrong("epoch %s: sequence %d of %d never came", epoch, seq, last)
				continue
			}
			if chain.Next(prev, []byte(l.json)) != l.chain {
				wrong("epoch %s: sequence %d is not chained", epoch, seq)
			}
			prev = l.chain
			r, derr := audit.Line{JSON: []byte(l.json)}.Record()
			if derr != nil {
				wrong("epoch %s: sequence %d: %w", epoch, seq, derr)
				continue
			}
			a := out[r.ID]
			switch r.Type {
			case audit.TypeBegin:
				a.begins++
			case audit.TypeEnd:
				a.ends++
				a.outcome = r.Result.Outcome
			default:
				a.system = true
			}
			out[r.ID] = a
			if r.Type == audit.TypeEpochOpen {
				previous[epoch] = [2]string{r.Event.Fields["previous_epoch"], r.Event.Fields["previous_head"]}
			}
		}
		heads[epoch] = prev.String()
	}
	first := 0
	for epoch, p := range previous {
		if p[0] == "" {
			first++
			continue
		}
		if heads[p[0]] != p[1] {
			wrong("epoch %s follows %s, which ended with %s, at %s: lines were lost or invented", epoch, p[0], heads[p[0]], p[1])
		}
	}
	if len(epochs) > 0 && (first != 1 || len(previous) != len(epochs)) {
		wrong("%d epochs came, %d with a beginning, %d without a predecessor: want all, all and one", len(epochs), len(previous), first)
	}
	return out, err
}
