package checkpoint

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics returns what a Maker counts, for a registry.
func Metrics(m *Maker) prometheus.Collector {
	one := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("attache_audit_checkpoint"+name, help, labels, nil)
	}
	return &metrics{
		maker:   m,
		made:    one("s_total", "Checkpoints made by this replica."),
		failed:  one("_failures_total", "Turns in which a checkpoint was not made, or a sink did not take one."),
		number:  one("_number", "Number of the newest checkpoint that this replica made."),
		time:    one("_timestamp_seconds", "When it was made, in Unix seconds."),
		outside: one("_delivered_number", "Number of the newest checkpoint that a sink has.", "sink"),
	}
}

type metrics struct {
	maker                               *Maker
	made, failed, number, time, outside *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.made, m.failed, m.number, m.time, m.outside} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	s := &m.maker.stats
	out <- prometheus.MustNewConstMetric(m.made, prometheus.CounterValue, float64(s.made.Load()))
	out <- prometheus.MustNewConstMetric(m.failed, prometheus.CounterValue, float64(s.failed.Load()))
	out <- prometheus.MustNewConstMetric(m.number, prometheus.GaugeValue, float64(s.lastNumber.Load()))
	out <- prometheus.MustNewConstMetric(m.time, prometheus.GaugeValue, float64(s.lastMade.Load()))
	for _, d := range m.maker.sinks {
		out <- prometheus.MustNewConstMetric(m.outside, prometheus.GaugeValue, float64(d.last.Load()), d.sink.Name())
	}
}
