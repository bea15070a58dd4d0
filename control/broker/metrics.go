package broker

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a [Server].
type Metrics struct {
	mints   *prometheus.CounterVec
	latency prometheus.Histogram
}

// NewMetrics makes the metrics and registers them; nil registers nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		mints: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_broker_mints_total", Help: "Calls for a credential, by result: minted, denied, failed, unauthenticated."}, []string{"result"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "attache_broker_mint_seconds", Help: "Duration of a call, the authorization server's included.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
	}
	for _, result := range []string{"minted", "denied", "failed", "unauthenticated"} {
		m.mints.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m.mints, m.latency)
	}
	return m
}
