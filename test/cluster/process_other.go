//go:build !linux

package cluster

import "syscall"

// dieWithParent has no counterpart here: a test that panics leaves its API
// server running.
func dieWithParent(*syscall.SysProcAttr) {}
