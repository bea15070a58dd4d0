// Package kubernetes is the identity of a pod, from inside: it presents the
// pod's projected token to the control plane and gets X.509-SVIDs and
// JWT-SVIDs. Package control/issuer is the other side.
package kubernetes
