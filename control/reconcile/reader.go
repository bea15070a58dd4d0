package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/attache-dev/attache/api"
)

// ErrNoDocuments is matched where no document is in force for a workload, so
// that nothing is decided for it here.
var ErrNoDocuments = errors.New("no policies are in force there")

// Reader tells which documents the control plane sends to the pods of a
// workload, for who only looks: it serves nothing, writes nothing and needs no
// pods. It reads objects as an [Engine] does, so that both come to the same. It
// is safe for concurrent use.
type Reader struct {
	turn chan struct{} // held by who uses e
	e    *Engine
}

// ReaderConfig of [NewReader]. Cache and Check are required.
type ReaderConfig struct {
	// Cache has namespaces and the kinds of policies; it starts to watch them at
	// the first question.
	Cache cache.Cache
	// Check finds mistakes of policies (policy.Compile).
	Check       func(*api.Bundle) error
	TrustDomain string
	Nameservers []netip.Addr // as of [Config]
}

// NewReader makes a Reader.
func NewReader(c ReaderConfig) *Reader {
	return &Reader{turn: make(chan struct{}, 1), e: &Engine{
		Config:  Config{Cache: c.Cache, Check: c.Check, TrustDomain: c.TrustDomain, Nameservers: c.Nameservers},
		metrics: newMetrics(nil), objects: map[api.Ref]*object{}, spaces: map[string]*space{}, lastGood: newLastGood(),
	}}
}

// Bundle is what a pod of the workload is sent now. Its error matches
// [ErrNoDocuments] where the namespace has no part in it.
func (r *Reader) Bundle(ctx context.Context, pod api.Pod) (*api.Bundle, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e := r.e
	if err := e.readObjects(ctx); err != nil {
		return nil, err
	}
	namespaces, err := e.readNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	if namespaces[pod.Namespace][api.InjectLabel] != api.InjectEnabled {
		return nil, fmt.Errorf("%w: namespace %s is not opted in, or is gone", ErrNoDocuments, pod.Namespace)
	}
	err = e.checkSpaces(namespaces) // of any namespace; this one may be fine
	s := e.spaces[pod.Namespace]
	switch {
	case s == nil || e.cluster == nil:
		return nil, errors.Join(err, fmt.Errorf("the objects of namespace %s cannot be checked", pod.Namespace))
	case s.held || e.cluster.held:
		return nil, errors.New("of an object with mistakes nobody knows what was in force before: sidecars keep what they have")
	}
	// What a record says of a pod is not kept: its labels are anything.
	sel, err := s.catalog.ForPod(pod)
	if err != nil {
		return nil, err
	}
	return sel.Bundle, nil
}
