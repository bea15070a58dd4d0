package trail

import "github.com/attache-dev/attache/audit"

// producerPrefix begins the names of the control plane's replicas as
// producers.
const producerPrefix = "control/"

// spoolOptions are those of the replica's spool.
func spoolOptions(o Options) audit.Options {
	return audit.Options{
		Dir: o.Dir, MaxBytes: o.MaxBytes, OnFull: o.OnFull, Version: o.Version, Logger: o.Log,
		Producer: producerPrefix + o.Replica, Kind: audit.KindControl, Signer: o.Signer, Collector: true,
		Redact: o.Redact,
	}
}
