package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attache-dev/attache/proxy/upstream"
)

func TestInterleave(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"1.1.1.1 2.2.2.2":                 "1.1.1.1 2.2.2.2",
		"2606::1 2606::2 2606::3 1.1.1.1": "2606::1 1.1.1.1 2606::2 2606::3",
		"1.1.1.1 2606::1 2606::2":         "1.1.1.1 2606::1 2606::2",
		"::ffff:1.1.1.1 ::ffff:2.2.2.2 2606::1 2606::2": "1.1.1.1 2606::1 2.2.2.2 2606::2",
	} {
		var addrs []netip.Addr
		for s := range strings.FieldsSeq(in) {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		var got []string
		for _, a := range upstream.Interleave(addrs) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// course is how a dialled address behaves: it answers or fails after a time, or
// swallows everything.
type course struct {
	after time.Duration
	err   error
	dead  bool
	late  bool // answers although its context has ended
}

var errRefused = errors.New("connection refused")

func TestRace(t *testing.T) {
	const d = upstream.AttemptDelay
	for _, tt := range []struct {
		name    string
		courses []course
		wins    int // index; -1: nobody
		took    time.Duration
		begun   int
	}{
		{"one address", []course{{after: 3 * d}}, 0, 3 * d, 1},
		{"the first answers", []course{{after: d / 2}, {}}, 0, d / 2, 1},
		{"the first is dead", []course{{dead: true}, {after: d / 5}}, 1, d + d/5, 2},
		{"the first refuses", []course{{err: errRefused}, {after: d / 5}}, 1, d / 5, 2},
		{"the first is slow and wins", []course{{after: d + d/10}, {after: d}}, 0, d + d/10, 2},
		{"three are dead", []course{{dead: true}, {dead: true}, {dead: true}, {}}, 3, 3 * d, 4},
		{"the second fails early", []course{{dead: true}, {after: d / 2, err: errRefused}, {}}, 2, d + d/2, 3},
		{"a loser answers late", []course{{after: 9 * d, late: true}, {}}, 1, d, 2},
		{"all refuse", []course{{err: errRefused}, {after: d / 2, err: errRefused}}, -1, d / 2, 2},
		{"all are dead", []course{{dead: true}, {dead: true}}, -1, 20 * d, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*d)
				defer cancel()
				addrs := make([]netip.AddrPort, len(tt.courses))
				for i := range addrs {
					addrs[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 443)
				}
				var begun atomic.Int32
				far := make([]net.Conn, len(addrs))
				start := time.Now()
				c, err := upstream.Race(ctx, addrs, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
					begun.Add(1)
					i := slices.Index(addrs, to)
					how := tt.courses[i]
					after := how.after
					if how.dead {
						after = time.Hour
					}
					done := ctx.Done()
					if how.late {
						done = nil
					}
					select {
					case <-time.After(after):
					case <-done:
						return nil, ctx.Err()
					}
					if how.err != nil {
						return nil, how.err
					}
					near, other := net.Pipe()
					far[i] = other
					return near, nil
				})
				took := time.Since(start)
				if took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				<-time.After(10 * d) // what is late has come
				synctest.Wait()
				if begun := int(begun.Load()); begun != tt.begun {
					t.Errorf("%d attempts, want %d", begun, tt.begun)
				}
				if tt.wins < 0 {
					if c != nil || err == nil {
						t.Errorf("got %v, %v", c, err)
					}
				} else if err != nil {
					t.Fatal(err)
				}
				for i, f := range far {
					if f == nil {
						continue
					}
					_ = f.SetReadDeadline(time.Now())
					_, rerr := f.Read(make([]byte, 1))
					if closed := errors.Is(rerr, io.EOF); closed == (i == tt.wins) {
						t.Errorf("connection %d: %v; the winner is %d", i, rerr, tt.wins)
					}
					_ = f.Close()
				}
				if c != nil {
					_ = c.Close()
				}
			})
		})
	}
}
