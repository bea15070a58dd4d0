package xds

import (
	"maps"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
)

// keepEnded is for how long the answers of a pod without a stream count: it
// takes less to come back, perhaps to another replica.
const keepEnded = time.Minute

// maxNack bounds the text of a refusal that a client gives.
const maxNack = 1024

// Ack is what a sidecar said of what it was sent.
type Ack struct {
	Pod peer.Pod
	// Bundle is what it applied last, nil if nothing yet. Only Objects and
	// Workload are of use.
	Bundle *Bundle
	// Nack is why it refused the newest bundle, empty if it did not.
	Nack string
	// Revocations are the ids that it acknowledged.
	Revocations map[string]bool
	// Heard is when it last said anything; Ended when its last stream ended,
	// zero while there is one.
	Heard, Ended time.Time
}

// Acks returns what each sidecar of this replica said, by pod uid. Those whose
// stream ended within the last minute are among them.
func (s *Server) Acks() map[string]Ack {
	now := s.c.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Ack, s.streams)
	for uid, e := range s.pods {
		if len(e.streams) == 0 && (e.last.Ended.IsZero() || now.Sub(e.last.Ended) > keepEnded) {
			continue
		}
		a := e.last
		a.Revocations = maps.Clone(a.Revocations)
		out[uid] = a
	}
	return out
}

// OnStreamDeltaResponse implements delta.Callbacks: it notes what the nonce
// stands for. The library calls it right before it sends.
func (st *stream) OnStreamDeltaResponse(_ int64, _ *discovery.DeltaDiscoveryRequest, resp *discovery.DeltaDiscoveryResponse) {
	m := st.s.c.Metrics
	if resp.GetTypeUrl() == controlpb.RevocationType {
		m.sent.WithLabelValues("revocation").Add(float64(len(resp.GetResources())))
		ids := make(map[string]string, len(resp.GetResources()))
		for _, r := range resp.GetResources() {
			ids[r.GetName()] = r.GetVersion()
		}
		if len(ids) > 0 {
			if st.sent.revocations == nil {
				st.sent.revocations = map[string]map[string]string{}
			}
			st.sent.revocations[resp.GetNonce()] = ids
		}
		return
	}
	m.sent.WithLabelValues("bundle").Inc()
	b := st.entry.bundle.Load()
	if b != nil && b.version != resp.GetSystemVersionInfo() {
		b = nil // replaced between the two; the next answer will tell
	}
	st.sent.bundle, st.sent.bundleNonce = b, resp.GetNonce()
}

// answered notes an ACK or a NACK. A nonce that is not the last one's is old
// and says nothing.
func (st *stream) answered(req *discovery.DeltaDiscoveryRequest) {
	nack := ""
	if d := req.GetErrorDetail(); d != nil {
		nack = bounded(d.GetMessage())
	}
	now := st.s.c.Now()
	st.update(func(a *Ack) bool {
		a.Heard = now
		switch nonce := req.GetResponseNonce(); {
		case nonce == "":
			return false
		case req.GetTypeUrl() == controlpb.BundleType && nonce == st.sent.bundleNonce:
			return st.bundleAnswered(a, nack)
		case req.GetTypeUrl() == controlpb.RevocationType:
			return st.revocationsAnswered(a, nonce, nack)
		}
		return false
	})
}

func (st *stream) bundleAnswered(a *Ack, nack string) bool {
	m, b := st.s.c.Metrics, st.sent.bundle
	if b == nil {
		return false
	}
	st.sent.bundle = nil
	if nack != "" {
		m.nacks.WithLabelValues("bundle").Inc()
		st.log.Warn("sidecar refused its bundle, its last good one stays", "version", b.version, "cause", nack)
		a.Nack = nack
		return true
	}
	m.acks.WithLabelValues("bundle").Inc()
	m.latency.WithLabelValues("bundle").Observe(st.since(b.set))
	a.Bundle, a.Nack = b, ""
	return true
}

func (st *stream) revocationsAnswered(a *Ack, nonce, nack string) bool {
	m := st.s.c.Metrics
	ids := st.sent.revocations[nonce]
	if len(ids) == 0 {
		return false
	}
	delete(st.sent.revocations, nonce)
	if nack != "" {
		m.nacks.WithLabelValues("revocation").Inc()
		st.log.Error("sidecar refused a revocation", "cause", nack)
		return false
	}
	next := maps.Clone(a.Revocations)
	if next == nil {
		next = map[string]bool{}
	}
	for _, r := range *st.s.revocations.Load() {
		if ids[r.GetId()] == r.version {
			next[r.GetId()] = true
			m.acks.WithLabelValues("revocation").Inc()
			m.latency.WithLabelValues("revocation").Observe(st.since(r.set))
		}
	}
	a.Revocations = next
	return true
}

// resumed notes the bundle that a client brought along and that is current.
func (st *stream) resumed() {
	b := st.entry.bundle.Load()
	st.mu.Lock()
	initial := st.initial
	st.mu.Unlock()
	if b == nil || b.version != initial {
		return
	}
	st.update(func(a *Ack) bool {
		if a.Bundle == b && a.Nack == "" {
			return false
		}
		a.Bundle, a.Nack = b, ""
		return true
	})
}

// brought notes the revocations that a client had when it came.
func (st *stream) brought(known map[string]string) {
	st.update(func(a *Ack) bool {
		a.Revocations = map[string]bool{}
		for _, r := range *st.s.revocations.Load() {
			if known[r.GetId()] == r.version {
				a.Revocations[r.GetId()] = true
			}
		}
		return true
	})
}

// update changes what is known of the pod's answers, if this is the newest of
// its streams.
func (st *stream) update(f func(*Ack) bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	for o := range st.entry.streams {
		if o.serial > st.serial {
			return
		}
	}
	a := &st.entry.last
	a.Pod, a.Ended = st.pod, time.Time{}
	if f(a) {
		st.s.notify()
	}
}

// since is the age of something, in seconds, as this client could see it.
func (st *stream) since(t time.Time) float64 {
	if st.opened.After(t) {
		t = st.opened
	}
	return st.s.c.Now().Sub(t).Seconds()
}

// bounded cuts foreign text and takes control characters out of it.
func bounded(s string) string {
	out := make([]rune, 0, min(len(s), maxNack))
	for _, c := range s {
		if len(out) == maxNack {
			break
		}
		if c < ' ' && c != '\n' || c == 0x7f {
			c = ' '
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return "refused without a reason"
	}
	return string(out)
}
