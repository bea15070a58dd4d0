// Package kubernetes is the identity of a pod, seen from its sidecar: it
// presents the pod's projected token to the control plane, and gets an
// X.509-SVID, JWT-SVIDs and what was attested. Package control/issuer is the
// other side.
//
// The control plane is verified by roots in the pod's own specification, never
// by an object that the agent's namespace could change. The key is made here,
// lives in memory, and dies with the process.
package kubernetes
