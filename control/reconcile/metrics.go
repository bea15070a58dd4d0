package reconcile

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	pods, objects, rejected prometheus.Gauge
	compiled, errors        prometheus.Counter
	writes                  *prometheus.CounterVec
	passes                  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		pods:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_policy_pods", Help: "Pods with a sidecar that have a bundle."}),
		objects:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_policy_objects", Help: "Providers, policies and configurations of the cluster."}),
		rejected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_policy_objects_rejected", Help: "Objects whose newest generation is not in force."}),
		compiled: prometheus.NewCounter(prometheus.CounterOpts{Name: "attache_policy_compiled_total", Help: "Namespaces whose objects were checked anew."}),
		errors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "attache_policy_errors_total", Help: "Passes over the objects that were not whole."}),
		writes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_policy_writes_total", Help: "Writes to the API server, by what: status, report, event."}, []string{"what"}),
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "attache_policy_pass_seconds", Help: "Duration of a pass over the objects and pods.",
			Buckets: []float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 10}}),
	}
	for _, what := range []string{"status", "report", "event"} {
		m.writes.WithLabelValues(what)
	}
	if r != nil {
		r.MustRegister(m.pods, m.objects, m.rejected, m.compiled, m.errors, m.writes, m.passes)
	}
	return m
}
