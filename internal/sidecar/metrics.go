package sidecar

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// connected is a [Control] that can lose touch with its control plane.
type connected interface {
	// Fresh is when the policy was last confirmed; zero: never.
	Fresh() time.Time
	// Until is when the pod's identity ends; zero: it has none.
	Until() time.Time
	// Skew is how far the control plane's clock is ahead of ours.
	Skew() time.Duration
}

// register adds what is known of the control plane to the metrics.
func register(reg *prometheus.Registry, control Control) {
	c, ok := control.(connected)
	if !ok {
		return
	}
	gauge := func(o prometheus.GaugeOpts, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(o, value))
	}
	gauge(prometheus.GaugeOpts{Name: "attache_policy_age_seconds", Help: "Time since the control plane last confirmed the policy; calls are denied from 900 on."}, func() float64 {
		if t := c.Fresh(); !t.IsZero() {
			return time.Since(t).Seconds()
		}
		return -1
	})
	gauge(prometheus.GaugeOpts{Name: "attache_identity_seconds_left", Help: "Time to the end of the X.509-SVID, which is renewed at half of its life; 0 without one."}, func() float64 {
		if t := c.Until(); !t.IsZero() {
			return max(0, time.Until(t).Seconds())
		}
		return 0
	})
	gauge(prometheus.GaugeOpts{Name: "attache_clock_skew_seconds", Help: "How far the control plane's clock is ahead of the sidecar's."}, func() float64 { return c.Skew().Seconds() })
}
