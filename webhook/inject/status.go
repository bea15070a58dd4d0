package inject

import (
	"encoding/json"
	"fmt"
)

// status is the annotation that admission leaves on a pod. It tells a later
// round, and nobody else, what the round before found. A forged one gains
// nothing: what is ours is made anew all the same, and what it claims of the
// author's an author could have written.
type status struct {
	// Template is the hash of [Template], for people: whoever must know reads
	// the pod.
	Template string `json:"template"`
	// Config is the hash of the Config, by which a second round knows that the
	// reserved names come from the first.
	Config string `json:"config"`
	Mode   Mode   `json:"mode"`
	Nonce  string `json:"nonce"`
	// Containers have been given their variables.
	Containers []string `json:"containers"`
	// Kept are variables of the author's that we would have set:
	// container/NAME.
	Kept []string `json:"kept,omitempty"`

	containers, variables map[string]bool // the lists, to look up
}

const maxStatus = 256 << 10 // the API takes no more of annotations

// readStatus accepts the annotation of a round before, or refuses it.
func (j *injection) readStatus() {
	path := annotation(annotationStatus)
	fix := "remove it, and the containers and volumes named attache-…, from your manifest: admission adds them"
	if j.annotations[annotationStatus] == nil {
		return
	}
	text := j.text(j.annotations, annotationStatus, path)
	var s status
	if len(text) > maxStatus || json.Unmarshal([]byte(text), &s) != nil {
		j.deny(path, "is reserved and not what admission wrote", fix)
		return
	}
	if s.Config != j.hash || !validNonce(s.Nonce) {
		j.deny(path, "is reserved and of another pod or template", fix)
		return
	}
	s.containers, s.variables = set(s.Containers), set(s.Kept)
	j.status = &s
}

// seen reports whether a round before gave a container its variables.
func (s *status) seen(container string) bool {
	return s != nil && s.containers[container]
}

func (s *status) kept(container, variable string) bool {
	return s != nil && s.variables[container+"/"+variable]
}

func (s *status) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("marshal status: %v", err)) // strings only
	}
	return string(b)
}

func set(names []string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}
