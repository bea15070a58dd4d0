package api

// Place is where documents are used. It decides which of their fields make
// sense there.
type Place int

const (
	// PlaceRun is attache run: an operator's own files, which may name other
	// files and variables, but no Secrets of a cluster.
	PlaceRun Place = iota
	// PlaceReview is where documents are only looked at, for whatever place.
	PlaceReview
	// PlacePod is a sidecar. Others than the operator of the cluster wrote some
	// of the documents, so that they name no files or variables of the sidecar,
	// and the mistakes of one do not make others bad: a rule whose reference
	// cannot be resolved denies what it matches.
	PlacePod
)

// MaxPodBytes bounds the documents of one pod.
const MaxPodBytes = 3 << 20 // a gRPC message has 4 MiB by default

func (p Place) maxBytes() int {
	if p == PlacePod {
		return MaxPodBytes
	}
	return MaxFileBytes
}

// maxNodes bounds the values of one file. The documents of a pod are one file.
func (p Place) maxNodes() int {
	if p == PlacePod {
		return 5 * maxFileNodes
	}
	return maxFileNodes
}
