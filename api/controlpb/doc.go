// Package controlpb is the protocol between sidecars and the control plane,
// generated from control.proto by `make generate`.
package controlpb
