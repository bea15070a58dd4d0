package isolate

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each switch that forbids it is named with its cure.
func TestExplain(t *testing.T) {
	const status = "/proc/self/status"
	for _, c := range []struct {
		files map[string]string
		err   error
		want  string
	}{
		{map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, unix.ENOSPC, "sysctl -w user.max_user_namespaces=10000"},
		{map[string]string{"/proc/sys/user/max_net_namespaces": "0\n"}, unix.ENOSPC, "user.max_net_namespaces is 0"},
		{map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, unix.EPERM, "kernel.unprivileged_userns_clone=1"},
		{map[string]string{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, errors.New("operation not permitted"), "AppArmor profile"},
		{map[string]string{status: "Name:\tx\nSeccomp:\t2\n"}, unix.EPERM, "seccomp filter"},
		{map[string]string{status: "Name:\tx\nSeccomp:\t0\n", "/proc/sys/user/max_user_namespaces": "9\n"}, unix.EPERM, "security module"},
		{nil, unix.EINVAL, "CONFIG_USER_NS"},
		{nil, errors.New("something else"), "something else"},
	} {
		err := explain(c.err, func(path string) ([]byte, error) {
			if s, ok := c.files[path]; ok {
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		})
		if !errors.Is(err, ErrForbidden) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v with %v: %v; want %q", c.err, c.files, err, c.want)
		}
	}
	if err := Explain(nil); err != nil {
		t.Errorf("nothing is explained as %v", err)
	}
	named := fmt.Errorf("%w: no nft_tproxy", ErrForbidden)
	if got := Explain(named); got != named { //nolint:errorlint // the very same
		t.Errorf("what is explained is explained again: %v", got)
	}
}
