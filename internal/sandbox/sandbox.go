// Package sandbox starts the child of attache run, keeps it away from
// Attaché's memory, keys, files and sockets and from the user's own
// credentials, and supervises it until nothing of it is left.
//
// What holds the child is the kernel, applied in a small re-exec stage between
// clone and exec (see [MaybeStage]), and inherited by all its descendants:
//
//   - a mount namespace of its own in which hidden paths are covered and
//     policy, binary, /sys and /proc/sys cannot be written;
//   - a Landlock domain, which stops ptrace and all that depends on the same
//     check (/proc/PID/mem, environ, fd, root, pidfd_getfd,
//     process_vm_readv), signals and abstract sockets to processes outside,
//     and every change of mounts;
//   - no_new_privs, a small capability bounding set and a seccomp filter;
//   - a cgroup of its own, which also attributes sockets (identity/process).
//
// docs/sandbox.md lists what is enforced on which kernel.
package sandbox

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/internal/isolate"
)

// ErrUnconfined is matched by the error of [New] when this machine cannot
// confine the child. The text says why; Options.UnsafeSameUser goes on
// regardless.
var ErrUnconfined = errors.New("the child cannot be confined")

// Options say what a child must not reach. Dir is required.
type Options struct {
	// Dir is the child's working directory, absolute.
	Dir string
	// Hide lists files, folders and Unix sockets of Attaché's own that the
	// child must not see: state folder, provider and human-token files, the
	// SPIFFE socket. Each must exist, or live in a folder of its own that
	// does; the folder is then hidden whole. The usual credential files of
	// the user need not be listed.
	Hide []string
	// ReadOnly lists files and folders the child may read but not change:
	// the policy folder. Attaché's own binary is always among them.
	ReadOnly []string
	// User, if set, is who the child runs as. Only root can change that.
	User *User
	// OnlyProxy, if not empty, lists the TCP ports that the child may connect
	// to, on any address. It needs Landlock ABI 4 and does not cover UDP.
	OnlyProxy []uint16
	// Isolate, if set, gives the child a network namespace of its own, from
	// which these sockets are all that leads out. New fails with an error that
	// matches [isolate.ErrForbidden] where that is impossible, whatever
	// UnsafeSameUser says.
	Isolate *isolate.Spec
	// Isolated is told of the sockets before the child runs, which its error
	// prevents. It owns them; if nil they are closed and nothing answers.
	Isolated func(*isolate.Sockets) error
	// ResolvConf, if not empty, is a file that the child finds in place of
	// /etc/resolv.conf.
	ResolvConf string
	// UnsafeSameUser starts the child unconfined where confinement is
	// impossible. Where it is possible, it changes nothing.
	UnsafeSameUser bool
}

// User is a user id of its own for the child.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Command is the program to run in the sandbox. Path and Args are required,
// as in [os.StartProcess]; nil files are /dev/null.
type Command struct {
	Path                  string // absolute
	Args                  []string
	Env                   []string
	Stdin, Stdout, Stderr *os.File
}

// Confinement is what is in force for the child. It is decided, and tried on a
// probe process, before the child starts.
type Confinement struct {
	Landlock   int  // ABI in force; 0 means none
	NoNewPrivs bool // with reduced capabilities and the seccomp filter
	MountNS    bool // hidden paths are covered in a private mount namespace
	UserNS     bool // that namespace belongs to a user namespace of the child's
	Cgroup     bool // the child has a cgroup of its own
	OwnUser    bool // the child has a user id of its own
	OnlyProxy  bool // the child's TCP connections are limited to given ports
	NetNS      bool // the child has a network of its own with no way out but Options.Isolate's
	// Unsafe is set when nothing is enforced because the user said
	// --unsafe-same-user. Every record carries it.
	Unsafe bool
	// Limits say, a sentence each, what this machine does not enforce.
	Limits []string
}

// String lists what is in force, for the workload's posture and the records:
// "landlock:7,no_new_privs,caps,seccomp,mountns,cgroup" or "none".
func (c Confinement) String() string {
	var s []string
	add := func(on bool, names ...string) {
		if on {
			s = append(s, names...)
		}
	}
	add(c.Landlock > 0, "landlock:"+strconv.Itoa(c.Landlock))
	add(c.NoNewPrivs, "no_new_privs", "caps", "seccomp")
	add(c.MountNS, "mountns")
	add(c.UserNS, "userns")
	add(c.Cgroup, "cgroup")
	add(c.OwnUser, "user")
	add(c.OnlyProxy, "only-proxy")
	add(c.NetNS, "netns")
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ",")
}

// hiddenEnv are variables that point at what the child cannot reach; they are
// taken from its environment, so that programs do not wait for an agent that
// never answers.
var hiddenEnv = [...]string{
	"SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "GNOME_KEYRING_CONTROL",
	"DBUS_SESSION_BUS_ADDRESS", "XAUTHORITY", "TMUX", "STY",
}

// scrub returns env without hiddenEnv.
func scrub(env []string) []string {
	out := make([]string, 0, len(env))
next:
	for _, kv := range env {
		for _, name := range hiddenEnv {
			if strings.HasPrefix(kv, name+"=") {
				continue next
			}
		}
		out = append(out, kv)
	}
	return out
}
