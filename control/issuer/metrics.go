package issuer

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the Identity service; docs/operations.md lists them.
type metrics struct {
	documents *prometheus.CounterVec
	alerts    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		documents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attache_issuer_documents_total",
			Help: "Identity documents asked for, by kind (x509, jwt), outcome (issued, refused, later) and reason.",
		}, []string{"kind", "outcome", "reason"}),
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attache_issuer_alerts_total",
			Help: "Signs of an attack on a pod's identity, by kind.",
		}, []string{"kind"}),
	}
	m.alerts.WithLabelValues(reasonSecondKey) // so that a rule sees the first one as an increase
	if r != nil {
		r.MustRegister(m.documents, m.alerts)
	}
	return m
}

func (m *metrics) count(e Event) { m.documents.WithLabelValues(e.Kind, e.Outcome, e.Reason).Inc() }
