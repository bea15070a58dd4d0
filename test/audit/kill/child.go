package kill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
)

const childEnv = "ATTACHE_KILL_PRODUCER"

// What a producer tells, one line each: the kind and the record's id.
const (
	intended  = "I" // about to be written
	begun     = "B" // the begin is acknowledged
	collected = "C" // and the collector has it
	ended     = "E"
	denied    = "D"
	refused   = "R" // there is no room, or no collector
)

// Child is the producer's program; it returns at once in any other process.
func Child() {
	mode := os.Getenv(childEnv)
	if mode == "" {
		return
	}
	if err := produce(mode); err != nil {
		fmt.Println("F", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// say writes one line with one write(2), which a pipe keeps whole.
func say(what, id string) { _, _ = os.Stdout.WriteString(what + " " + id + "\n") }

func produce(mode string) error {
	clock, err := time.ParseDuration(os.Getenv("KILL_CLOCK"))
	if err != nil {
		return err
	}
	var s *audit.Spool
	o := audit.Options{
		Dir: os.Getenv("KILL_SPOOL"), SegmentBytes: 128 << 10, MaxBytes: 8 << 20, EndDelay: audit.DefaultEndDelay,
		Collector: true, CollectorWait: 200 * time.Millisecond, Producer: "kill-test", Kind: audit.KindSidecar,
		Keep: time.Minute, KeepBytes: 4 << 20,
	}
	if s, err = audit.Open(o); errors.Is(err, audit.ErrFull) && mode == "work" {
		say(refused, "open")
		return nil
	} else if err != nil {
		return err
	}
	sink, err := otlp.New(otlp.Config{Name: "test", Endpoint: os.Getenv("KILL_SINK"), Control: true, Gzip: true, Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	g, err := ship.Start(s, []ship.Sink{sink}, ship.Options{Collector: "test", MinWait: time.Millisecond, MaxWait: 20 * time.Millisecond})
	if err != nil {
		return err
	}
	if mode == "work" {
		say(refused, "none") // it works: the moment of the kill counts from here
		work(s, clock)
	}
	if err := s.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return g.Close(ctx)
}

// work writes records until the process is killed.
func work(s *audit.Spool, clock time.Duration) {
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), uint64(time.Now().UnixNano()))) //nolint:gosec // a test's load
			var held []audit.Ticket
			for {
				request(s, rnd, clock, &held)
				for len(held) > rnd.IntN(5) {
					if held[0].End(&audit.Result{Outcome: audit.OutcomeOK, Status: 200}, nil, nil, nil) == nil {
						// An end waits a moment for company: acknowledged is what a
						// sync has passed.
						if rnd.IntN(8) == 0 && flushed(s) {
							say(ended, held[0].ID())
						}
					}
					held = held[1:]
				}
			}
		})
	}
	wg.Wait()
}

// flushed returns once all ends so far are in the kernel.
func flushed(s *audit.Spool) bool { return s.Event("test.flush", nil) == nil }

func request(s *audit.Spool, rnd *rand.Rand, clock time.Duration, held *[]audit.Ticket) {
	r := &audit.Record{
		ID: audit.NewID(), Time: time.Now().Add(clock),
		Request:  &audit.Request{Host: "api.example.com", Method: "GET", Path: "/v1/invoices/42"},
		Decision: &audit.Decision{Verdict: "inject", Rule: "read"},
	}
	say(intended, r.ID)
	if rnd.IntN(8) == 0 {
		if s.Deny(r) == nil {
			say(denied, r.ID)
		}
		return
	}
	d := v1alpha1.DurabilityProcess
	switch rnd.IntN(8) {
	case 0:
		d = v1alpha1.DurabilityPower
	case 1:
		d = v1alpha1.DurabilityCollector
	}
	tk, err := s.BeginDurable(context.Background(), r, d)
	if err != nil {
		say(refused, r.ID)
		time.Sleep(time.Millisecond) // an agent would not ask faster
		return
	}
	if d == v1alpha1.DurabilityCollector {
		say(collected, r.ID)
	}
	say(begun, r.ID)
	*held = append(*held, tk)
}
