package sparselog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An agent that repeats a failing call writes one line in ten seconds, and the
// next says how many it stands for.
func TestRepeatedWarningsAreSparse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(New(slog.NewTextHandler(&b, nil))).With("run", "r")
		refuse := func(code, host string) { log.Warn("call refused", "record", "rec", "code", code, "host", host) }
		for range 100 {
			refuse("denied", "a")
		}
		refuse("denied", "b")
		refuse("loop", "a")
		log.Info("life cycle")
		log.Info("life cycle")
		if n := strings.Count(b.String(), "\n"); n != 5 {
			t.Errorf("%d lines, want 5:\n%s", n, &b)
		}
		b.Reset()
		for n := range 30 { // three pods, refused for two reasons each
			log.Warn("identity document", "pod_uid", n%3, "reason", n%2)
		}
		if n := strings.Count(b.String(), "\n"); n != 6 {
			t.Errorf("%d lines, want 6:\n%s", n, &b)
		}
		time.Sleep(pause)
		b.Reset()
		refuse("denied", "a")
		if !strings.Contains(b.String(), "suppressed=99") {
			t.Errorf("got %s", &b)
		}
		b.Reset()
		for n := range 10000 {
			refuse("denied", fmt.Sprint("made-up-", n))
		}
		if n := strings.Count(b.String(), "\n"); n > maxSubjects+1 {
			t.Errorf("%d lines of made-up hosts", n)
		}
	})
}
