package main

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

// What a pod may ask of the relay is what the operator says.
func TestRelayRate(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{{nil, defaultRelayRate}, {[]string{"--relay-rate=7"}, 7}} {
		h := &host{log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
		f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		h.flags(f)
		if err := f.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		if got := h.relayConfig(minting{}).Rate; got != c.want {
			t.Errorf("%v: the relay allows %d calls a second, want %d", c.args, got, c.want)
		}
	}
}
