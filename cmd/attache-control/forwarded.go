package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/audit/ship"
)

// forwarded tells of one sink of the store in metrics.
func forwarded(s *ship.Shipper) prometheus.Collector {
	label := prometheus.Labels{"sink": s.Status().Sink}
	return group{
		counter("forwarded_lines_total", "Lines that a sink of the store took.", label, func() float64 { return float64(s.Status().Lines) }),
		counter("forward_rejected_total", "Lines that a sink of the store refused for good.", label, func() float64 { return float64(s.Status().Rejected) }),
		counter("forward_errors_total", "Attempts to send lines to a sink of the store that failed.", label, func() float64 { return float64(s.Status().Errors) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "attache_collector_forward_age_seconds", Help: "Age of the oldest line that is under way to a sink of the store.", ConstLabels: label,
		}, func() float64 { return s.Status().Age.Seconds() }),
	}
}

func counter(name, help string, label prometheus.Labels, f func() float64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "attache_collector_" + name, Help: help, ConstLabels: label}, f)
}

// group is several collectors as one.
type group []prometheus.Collector

// Describe implements prometheus.Collector.
func (g group) Describe(to chan<- *prometheus.Desc) {
	for _, c := range g {
		c.Describe(to)
	}
}

// Collect implements prometheus.Collector.
func (g group) Collect(to chan<- prometheus.Metric) {
	for _, c := range g {
		c.Collect(to)
	}
}
