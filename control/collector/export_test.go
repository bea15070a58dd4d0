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

// Remembered counts what a search for lost producers has in memory.
func Remembered(l *Lost) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open) + len(l.told) + len(l.ask) + len(l.missing) + len(l.settled) + len(l.attested)
}
