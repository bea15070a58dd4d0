package isolate

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// switches are how administrators and distributions forbid namespaces to
// users, and how each is undone.
var switches = [...]struct{ path, off, cure string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
	{"/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "an AppArmor profile with \"userns,\" for the attache program, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

// Explain adds to err, from the clone of the namespaces or from [Build], what
// forbids them here and what to change.
func Explain(err error) error {
	if err == nil || errors.Is(err, ErrForbidden) {
		return err
	}
	return explain(err, os.ReadFile)
}

func explain(err error, read func(string) ([]byte, error)) error {
	var causes []string
	for _, s := range switches {
		if b, rerr := read(s.path); rerr == nil && strings.TrimSpace(string(b)) == s.off {
			causes = append(causes, strings.ReplaceAll(strings.TrimPrefix(s.path, "/proc/sys/"), "/", ".")+" is "+s.off+": "+s.cure)
		}
	}
	// What the stage reports is text.
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS) || strings.Contains(err.Error(), unix.EPERM.Error())
	if b, rerr := read("/proc/self/status"); denied && rerr == nil && strings.Contains(string(b), "\nSeccomp:\t2\n") {
		causes = append(causes, "a seccomp filter is in force, as in most containers: start the container with a profile that allows unshare and clone with CLONE_NEWUSER (podman and docker: --security-opt seccomp=FILE, with --security-opt systempaths=unconfined for /proc)")
	}
	if len(causes) == 0 && errors.Is(err, unix.EINVAL) {
		causes = append(causes, "the kernel was built without user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)")
	}
	if len(causes) == 0 && denied {
		causes = append(causes, "a security module (AppArmor, SELinux) or a chroot forbids them: see the kernel's log")
	}
	if len(causes) == 0 {
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return fmt.Errorf("%w: %w; %s", ErrForbidden, err, strings.Join(causes, "; "))
}
