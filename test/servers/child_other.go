//go:build !linux

package servers

import "syscall"

func child(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }
