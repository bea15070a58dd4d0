package collector

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	lines                 *prometheus.CounterVec
	batches               *prometheus.CounterVec
	forged                *prometheus.CounterVec
	gaps, limited, lost   prometheus.Counter
	storeErrors, returned prometheus.Counter
	unrecorded            prometheus.Counter
	closes                *prometheus.CounterVec
	lag                   prometheus.Histogram
}

func newMetrics(to prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "attache_collector_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_collector_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		lines:       vec("lines_total", "Lines that are in the store: stored now, or repeated.", "result"),
		batches:     vec("batches_total", "Exports of producers, by what came of them.", "result"),
		forged:      vec("forged_total", "Lines refused because they are not what their producer wrote: name or chain.", "reason"),
		gaps:        counter("gaps_total", "Ranges of lines that did not come before later ones."),
		limited:     counter("limited_total", "Exports put off because their producer sends too much."),
		lost:        counter("lost_producers_total", "Producers that are gone without a signed close of their epoch."),
		returned:    counter("returned_producers_total", "Producers of which lines came after they were given up for lost."),
		storeErrors: counter("store_errors_total", "Exports that the store did not take."),
		unrecorded:  counter("unrecorded_total", "Findings about producers that could not be recorded."),
		closes:      vec("closes_total", "Ends of epochs, by their signature: signed, unsigned or bad.", "signature"),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "attache_collector_lag_seconds", Help: "From the time of a record to its commit in the store.",
			Buckets: []float64{0.1, 0.5, 1, 5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600},
		}),
	}
	for _, r := range []string{"stored", "repeated"} {
		m.lines.WithLabelValues(r)
	}
	for _, r := range []string{"name", "chain"} {
		m.forged.WithLabelValues(r)
	}
	for _, r := range []string{"signed", "unsigned", "bad"} {
		m.closes.WithLabelValues(r)
	}
	if to != nil {
		to.MustRegister(m.lines, m.batches, m.forged, m.gaps, m.limited, m.lost, m.returned, m.storeErrors, m.unrecorded, m.closes, m.lag)
	}
	return m
}
