package ship

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/audit"
)

// collector tells the figures of a spool and its sinks.
type collector struct {
	spool *audit.Spool
	group *Group // nil: no sinks

	size, limit, refused, open, syncErrors, outage, unknown *prometheus.Desc
	lagLines, lagBytes, lagAge, sent, rejected, errors      *prometheus.Desc
}

// Metrics returns the figures of s and of the sinks of g, which may be nil.
func Metrics(s *audit.Spool, g *Group) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("attache_audit_"+name, help, labels, nil)
	}
	return &collector{
		spool: s, group: g,
		size:       desc("spool_bytes", "Bytes of records in the spool, those reserved for the ends of open requests included."),
		limit:      desc("spool_max_bytes", "Bytes that the spool may have; calls are refused beyond."),
		refused:    desc("refused_total", "Records that could not be written; their calls were not made."),
		open:       desc("open_requests", "Requests begun and not ended."),
		unknown:    desc("unknown_outcomes_total", "Requests that an earlier start left without an end: whether they arrived is not known."),
		syncErrors: desc("sync_errors_total", "Failed syncs of the spool to the disk; after one all calls are refused until a restart."),
		outage:     desc("outage_seconds", "How long the empty spool takes records while no sink does, at a rate of requests a second.", "rate"),
		lagLines:   desc("ship_lag_lines", "Lines that a sink has not acknowledged.", "sink"),
		lagBytes:   desc("ship_lag_bytes", "Bytes of the lines that a sink has not acknowledged.", "sink"),
		lagAge:     desc("ship_lag_seconds", "Age of the oldest line that is being sent to a sink; 0 when none is.", "sink"),
		sent:       desc("shipped_lines_total", "Lines that a sink acknowledged.", "sink"),
		rejected:   desc("ship_rejected_total", "Lines that a sink refused for good; they are set aside in the spool's folder.", "sink"),
		errors:     desc("ship_errors_total", "Failed attempts to send to a sink.", "sink"),
	}
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	st := c.spool.Stats()
	send(c.size, prometheus.GaugeValue, float64(st.Size+st.Reserved))
	send(c.limit, prometheus.GaugeValue, float64(st.MaxBytes))
	send(c.refused, prometheus.CounterValue, float64(st.Refused))
	send(c.open, prometheus.GaugeValue, float64(max(st.Open, 0)))
	send(c.unknown, prometheus.CounterValue, float64(st.Unknown))
	send(c.syncErrors, prometheus.CounterValue, float64(st.SyncErrors))
	for _, rate := range audit.Rates() {
		send(c.outage, prometheus.GaugeValue, audit.Endurance(st.MaxBytes, c.spool.PerRequest(), rate).Seconds(), strconv.Itoa(rate))
	}
	if c.group == nil {
		return
	}
	for _, s := range c.group.Status() {
		send(c.lagLines, prometheus.GaugeValue, float64(s.LagLines), s.Sink)
		send(c.lagBytes, prometheus.GaugeValue, float64(s.LagBytes), s.Sink)
		send(c.lagAge, prometheus.GaugeValue, s.Age.Seconds(), s.Sink)
		send(c.sent, prometheus.CounterValue, float64(s.Lines), s.Sink)
		send(c.rejected, prometheus.CounterValue, float64(s.Rejected), s.Sink)
		send(c.errors, prometheus.CounterValue, float64(s.Errors), s.Sink)
	}
}
