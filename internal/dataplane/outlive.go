package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/minting"
)

// outliving tells how many credentials issuers still accept, and of these the
// ones that should have ended: their task is closed, they were revoked or their
// time is over, and the issuer did not end them.
type outliving struct {
	live             func() []minting.LiveCredential
	count, unrevoked *prometheus.Desc
}

func newOutliving(live func() []minting.LiveCredential) *outliving {
	return &outliving{
		live:      live,
		count:     prometheus.NewDesc("attache_credentials_live", "Credentials that issuers may still accept.", nil, nil),
		unrevoked: prometheus.NewDesc("attache_credentials_unrevoked", "Credentials that outlive their task or time, since the issuer did not end them, by result: unsupported or failed.", []string{"provider", "result"}, nil),
	}
}

// Describe implements [prometheus.Collector].
func (o *outliving) Describe(ch chan<- *prometheus.Desc) {
	ch <- o.count
	ch <- o.unrevoked
}

// Collect implements [prometheus.Collector].
func (o *outliving) Collect(ch chan<- prometheus.Metric) {
	list := o.live()
	ch <- prometheus.MustNewConstMetric(o.count, prometheus.GaugeValue, float64(len(list)))
	type key struct{ provider, result string }
	n := map[key]int{}
	for _, l := range list {
		if l.Result != "" {
			n[key{l.Provider, l.Result}]++
		}
	}
	for k, v := range n {
		ch <- prometheus.MustNewConstMetric(o.unrevoked, prometheus.GaugeValue, float64(v), k.provider, k.result)
	}
}
