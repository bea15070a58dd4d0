package kubernetes

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/identity"
)

// Posture keys that [FromProto] adds.
const (
	PosturePod    = "pod"
	PosturePodUID = "pod_uid"
)

// FromProto is what the control plane attested of a pod as the data path
// knows it. Its run is the pod's life: a restarted sidecar goes on with it.
func FromProto(w *controlpb.Workload) (*identity.Workload, error) {
	id, err := spiffeid.FromString(w.GetSpiffeId())
	if err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	if w.GetPodUid() == "" || w.GetNamespace() == "" {
		return nil, errors.New("workload: names no pod")
	}
	posture := maps.Clone(w.GetPosture())
	if posture == nil {
		posture = map[string]string{}
	}
	posture[PosturePod], posture[PosturePodUID] = w.GetPod(), w.GetPodUid()
	return &identity.Workload{
		ID: id, Namespace: w.GetNamespace(), ServiceAccount: w.GetServiceAccount(),
		Labels: maps.Clone(w.GetLabels()), Images: slices.Clone(w.GetImages()), Node: w.GetNode(), Posture: posture,
		Owner: w.GetOwner(), OwnerSource: w.GetOwnerSource(),
		RunID: strings.ReplaceAll(w.GetPodUid(), "-", ""),
	}, nil
}
