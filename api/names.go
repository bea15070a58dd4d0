package api

import "time"

// Labels and annotations that more than one part of the cluster reads. Those
// of owners stand with [Owners].
const (
	InjectLabel      = "attache.dev/inject" // of a namespace: InjectEnabled; of a pod: that or false
	InjectEnabled    = "enabled"
	ModeLabel        = "attache.dev/mode"          // of a namespace: explicit, transparent
	OptOutLabel      = "attache.dev/allow-opt-out" // of a namespace: true lets pods say inject=false
	StatusAnnotation = "attache.dev/status"        // of pods that have a sidecar; admission's own
)

// PolicyLifetime is for how long a sidecar goes on with its last policy while
// it hears nothing of the control plane, which reckons by it what a sidecar
// may still hold.
const PolicyLifetime = 15 * time.Minute
