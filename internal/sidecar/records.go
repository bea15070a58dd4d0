package sidecar

import (
	"errors"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/dataplane"
)

// sinks are the control plane's collector, if there is one, and those that the
// AttacheConfig names. The former comes first: its acknowledgement is the one
// that durability collector waits for.
func (s *sidecar) sinks(b *api.Bundle, svid dataplane.SVIDFunc) (dataplane.Sinks, error) {
	resource := map[string]string{"k8s.pod.uid": s.o.PodUID}
	if w := s.control.Workload(); w != nil {
		resource["k8s.namespace.name"], resource["k8s.node.name"] = w.Namespace, w.Node
	}
	out, err := dataplane.OpenSinks(b.Config.Spec.Audit, svid, resource, s.o.Version)
	if err != nil {
		return out, err
	}
	r, ok := s.control.(Recorder)
	if !ok {
		return out, nil
	}
	own, err := r.Records()
	if err != nil {
		return dataplane.Sinks{}, errors.Join(err, out.Close())
	}
	if own != nil {
		out.List, out.Collector = append([]ship.Sink{own}, out.List...), own.Name()
	}
	return out, nil
}
