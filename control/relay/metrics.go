package relay

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/proxy/pipeline"
)

// errNoCall is a bug: a pipeline that the relay did not call.
var errNoCall = errors.New("relay: an exchange of no call")

// Metrics of a [Server].
type Metrics struct {
	calls    *prometheus.CounterVec
	live     prometheus.Gauge
	latency  prometheus.Histogram
	lost     prometheus.Counter
	pipeline *pipeline.Metrics // a sidecar's, shown nowhere
}

// NewMetrics makes the metrics and registers them; nil registers nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_relay_calls_total", Help: "Calls through the relay, by result: ended, denied, unauthenticated."}, []string{"result"}),
		live:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_relay_calls", Help: "Calls under way through the relay."}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "attache_relay_call_seconds", Help: "Duration of a call through the relay, the origin's part included.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}}),
		lost:     prometheus.NewCounter(prometheus.CounterOpts{Name: "attache_relay_unrecorded_total", Help: "Refusals through the relay that will not be recorded: those of too many pods could not be."}),
		pipeline: pipeline.NewMetrics(prometheus.NewRegistry()),
	}
	for _, result := range []string{resultEnded, resultDenied, "unauthenticated"} {
		m.calls.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m.calls, m.live, m.latency, m.lost)
	}
	return m
}
