package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/policy"
)

// Metrics counts exchanges. Label values come from fixed sets (verdicts,
// outcomes, codes, doors) or from the operator's own documents (providers):
// nothing that an agent writes becomes a label.
type Metrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	mints    *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	dials    prometheus.Counter
	events   *prometheus.CounterVec
	sessions *prometheus.CounterVec
	again    *prometheus.CounterVec

	// by outcome and verdict, so that the hot path does no label look-up
	common map[[2]string]prometheus.Counter
	own    prometheus.Observer
	total  prometheus.Observer
	up     prometheus.Counter
	down   prometheus.Counter

	lastMint atomic.Pointer[mintCounter]
}

// NewMetrics registers the data path's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_requests_total", Help: "Finished requests by verdict and outcome."}, []string{"verdict", "outcome"}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_refusals_total", Help: "Refused or failed requests by code (docs/errors.md)."}, []string{"code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "attache_request_seconds", Help: "Time of a request: before it was sent upstream (own) and whole (total).",
			Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 30, 120}}, []string{"part"}),
		mints:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_credentials_total", Help: "Credentials used, by provider and source (minted, cached, failed)."}, []string{"provider", "source"}),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_body_bytes_total", Help: "Body bytes by direction."}, []string{"direction"}),
		dials:    prometheus.NewCounter(prometheus.CounterOpts{Name: "attache_upstream_dials_total", Help: "New upstream connections."}),
		events:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_connection_events_total", Help: "Connections refused or broken at the front door, by kind."}, []string{"kind"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_aws_calls_total", Help: "Calls to AWS that got a session, by how far it is cut."}, []string{"scope"}),
		again:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attache_aws_signature_refusals_total", Help: "Signatures that AWS refused for a cause that was mended: session, clock."}, []string{"cause"}),
		common:   map[[2]string]prometheus.Counter{},
	}
	reg.MustRegister(m.requests, m.refused, m.seconds, m.mints, m.bytes, m.dials, m.events, m.sessions, m.again)
	for v := policy.Deny; v <= policy.Passthrough; v++ {
		for _, o := range []string{"ok", "denied", "error", "canceled", "revoked", "leak_blocked"} {
			m.common[[2]string{v.String(), o}] = m.requests.WithLabelValues(v.String(), o)
		}
	}
	m.own, m.total = m.seconds.WithLabelValues("own"), m.seconds.WithLabelValues("total")
	m.up, m.down = m.bytes.WithLabelValues("up"), m.bytes.WithLabelValues("down")
	return m
}

// Dialed counts a new upstream connection.
func (m *Metrics) Dialed() { m.dials.Inc() }

// Connection counts something that went wrong before there was a request.
func (m *Metrics) Connection(kind string) { m.events.WithLabelValues(kind).Inc() }

func (m *Metrics) done(x *exchange) {
	if c := m.common[[2]string{x.decision.Verdict.String(), x.result.Outcome}]; c != nil {
		c.Inc()
	}
	if x.result.ErrorKind != "" {
		m.refused.WithLabelValues(x.result.ErrorKind).Inc()
	}
	m.total.Observe(time.Duration(x.steps.Ended * int64(time.Microsecond)).Seconds())
	if x.steps.Injected > 0 {
		m.own.Observe(time.Duration(x.steps.Injected * int64(time.Microsecond)).Seconds())
	}
	m.up.Add(float64(x.result.BytesUp))
	m.down.Add(float64(x.result.BytesDown))
	if u := x.rec.Credential; u != nil && u.Handle != "" {
		source := "minted"
		if u.Cached {
			source = "cached"
		}
		m.mint(u.Provider, source).Inc()
		if u.AWS != nil {
			m.sessions.WithLabelValues(u.AWS.Scope).Inc()
		}
	}
}

// resigned counts a refused signature whose cause was mended.
func (m *Metrics) resigned(cause string) { m.again.WithLabelValues(cause).Inc() }

// mint is the counter of a provider and source; the last one is remembered.
func (m *Metrics) mint(provider, source string) prometheus.Counter {
	if l := m.lastMint.Load(); l != nil && l.provider == provider && l.source == source {
		return l.Counter
	}
	c := m.mints.WithLabelValues(provider, source)
	m.lastMint.Store(&mintCounter{c, provider, source})
	return c
}

type mintCounter struct {
	prometheus.Counter
	provider, source string
}
