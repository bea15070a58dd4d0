package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts admissions. It is a [prometheus.Collector].
type Metrics struct {
	admissions *prometheus.CounterVec
	seconds    prometheus.Histogram
	patchBytes prometheus.Histogram
	events     *prometheus.CounterVec
	live       prometheus.Counter
	config     prometheus.Gauge
}

// NewMetrics makes metrics, of no registry yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attache_admissions_total", Help: "Reviews, by result.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "attache_admission_seconds", Help: "Time to answer a review.",
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5},
		}),
		patchBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "attache_admission_patch_bytes", Help: "Size of patches.",
			Buckets: prometheus.ExponentialBuckets(1024, 2, 11),
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attache_admission_events_total", Help: "Events about admissions: sent, repeated (left out) or dropped.",
		}, []string{"outcome"}),
		live: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "attache_admission_live_reads_total", Help: "Namespaces read from the API because the cache did not know that they are opted in.",
		}),
		config: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "attache_injection_config_in_force", Help: "1; 0 while the AttacheConfig is rejected and the one before stays.",
		}),
	}
	for _, r := range []string{resultInjected, resultUnchanged, resultSkipped, resultDenied, resultAllowed, resultError, resultBad} {
		m.admissions.WithLabelValues(r)
	}
	m.config.Set(1)
	return m
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.admissions, m.seconds, m.patchBytes, m.events, m.live, m.config}
}

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) admission(result string, took time.Duration, patch int) {
	m.admissions.WithLabelValues(result).Inc()
	m.seconds.Observe(took.Seconds())
	if patch > 0 {
		m.patchBytes.Observe(float64(patch))
	}
}
