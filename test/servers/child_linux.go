package servers

import "syscall"

// child makes a program end with this process, however that ends.
func child(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGKILL
	return a
}
