package xds

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a [Server]. Labels are from fixed lists.
type Metrics struct {
	streams, bundles, revocations prometheus.Gauge
	sent, acks, nacks, refused    *prometheus.CounterVec
	latency                       *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them; nil registers nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		streams:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_xds_streams", Help: "Streams of sidecars that are open on this replica."}),
		bundles:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_xds_bundles", Help: "Pods that have a policy bundle."}),
		revocations: prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_xds_revocations", Help: "Revocations in force."}),
		sent:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_xds_sent_total", Help: "Resources sent, by type."}, []string{"type"}),
		acks:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_xds_acks_total", Help: "Resources that sidecars applied, by type."}, []string{"type"}),
		nacks:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_xds_nacks_total", Help: "Responses that sidecars refused, by type."}, []string{"type"}),
		refused:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_xds_refused_total", Help: "Streams refused or ended, by reason: unauthenticated, expired, full, wildcard, foreign, name, type, rate."}, []string{"reason"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "attache_xds_push_seconds", Help: "From a change, or the stream's opening, to the sidecar's acknowledgement, by type.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 60}}, []string{"type"}),
	}
	for _, reason := range []string{"unauthenticated", "expired", "full", "wildcard", "foreign", "name", "type", "rate"} {
		m.refused.WithLabelValues(reason) // so that a rate can be taken of the first
	}
	for _, t := range []string{"bundle", "revocation"} {
		m.sent.WithLabelValues(t)
		m.acks.WithLabelValues(t)
		m.nacks.WithLabelValues(t)
		m.latency.WithLabelValues(t)
	}
	if r != nil {
		r.MustRegister(m.streams, m.bundles, m.revocations, m.sent, m.acks, m.nacks, m.refused, m.latency)
	}
	return m
}
