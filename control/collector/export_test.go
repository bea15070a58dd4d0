package collector

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"

	"github.com/attache-dev/attache/control/peer"
)

// TakeForTest is an export of a pod that is authenticated already.
func TakeForTest(c *Collector, uid string, q *collogs.ExportLogsServiceRequest) {
	_, _ = c.export(context.Background(), peer.Pod{ID: spiffeid.RequireFromString("spiffe://t/ns/a/sa/b"), Namespace: "a", UID: uid}, q)
}
