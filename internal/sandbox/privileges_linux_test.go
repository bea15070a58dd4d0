package sandbox_test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/attache-dev/attache/internal/sandbox"
)

// status parses /proc/PID/status.
func status(text string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

// TestPrivileges holds each set of the child's by itself: no_new_privs, the
// bounding set and the sets of the process stand in for one another, so that
// attempts do not miss one of them.
func TestPrivileges(t *testing.T) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	own, err := strconv.ParseUint(status(string(b))["CapBnd"], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000"
	for name, uid := range users() {
		roles := map[string]string{roleFull: none, roleNoNS: ""} // the bounding set; a user cannot shrink it without a namespace
		if uid == 0 {
			kept := fmt.Sprintf("%016x", sandbox.KeptCaps()&own)
			roles = map[string]string{roleFull: kept, roleNoNS: kept, roleOwnUID: none}
		}
		for role, bounding := range roles {
			t.Run(name+"/"+role, func(t *testing.T) {
				s := stageFor(t, uid)
				cmd := launcher(t, s, role, uid, "/bin/cat", "/proc/self/status")
				if os.Getuid() == 0 {
					cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{uint32(uid), 4}}}
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				got, want := status(string(out)), map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapInh": none, "CapAmb": none, "CapPrm": none, "CapEff": none, "CapBnd": bounding}
				switch {
				case uid == 0 && role != roleOwnUID:
					want["CapPrm"], want["CapEff"] = bounding, bounding
				case role == roleOwnUID:
					want["Groups"] = ""
				case role == roleNoNS:
					delete(want, "CapBnd")
				}
				for field, value := range want {
					if got[field] != value {
						t.Errorf("%s is %q, want %q", field, got[field], value)
					}
				}
			})
		}
	}
}

// TestNoLandlock holds that nothing starts unconfined where the kernel lacks
// Landlock, unless that was asked for, and that it is said.
func TestNoLandlock(t *testing.T) {
	for name, uid := range users() {
		t.Run(name, func(t *testing.T) {
			s := stageFor(t, uid)
			out, err := launcher(t, s, roleNoLL, uid, "/bin/echo", "it runs").CombinedOutput()
			if err == nil || strings.Contains(string(out), "it runs") || !strings.Contains(string(out), "this kernel has no Landlock") {
				t.Errorf("got %v, want a refusal: %s", err, out)
			}
			out, err = launcher(t, s, roleUnsafe, uid, "/bin/echo", "it runs").CombinedOutput()
			said, _, _ := strings.Cut(string(out), "\n")
			if err != nil || !strings.Contains(string(out), "it runs") || !strings.HasPrefix(said, "confinement: ") || strings.Contains(said, "landlock") || strings.Contains(said, "no_new_privs") {
				t.Errorf("got %v, want it to run and to say that nothing is enforced: %s", err, out)
			}
		})
	}
}

// TestUndumpable looks from outside at what plays Attaché: its files in /proc
// belong to root, and it leaves no core, also after it has started a child.
func TestUndumpable(t *testing.T) {
	for name, uid := range users() {
		if uid == 0 {
			continue // root's belong to root anyway
		}
		t.Run(name, func(t *testing.T) {
			cmd := launcher(t, stageFor(t, uid), roleFull, uid, "/bin/sh", "-c", "echo ready; sleep 30")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }()
			for lines := bufio.NewScanner(out); ; {
				if !lines.Scan() {
					t.Fatal("the child did not start")
				}
				if lines.Text() == "ready" {
					break
				}
			}
			dir := "/proc/" + strconv.Itoa(cmd.Process.Pid)
			st, err := os.Stat(dir + "/environ")
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Sys().(*syscall.Stat_t).Uid; got != 0 {
				t.Errorf("its environment belongs to user %d, want root", got)
			}
			limits, err := os.ReadFile(dir + "/limits")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(limits)) {
				if f := strings.Fields(strings.TrimPrefix(line, "Max core file size")); strings.HasPrefix(line, "Max core") && (f[0] != "0" || f[1] != "0") {
					t.Errorf("it may leave a core file: %s", line)
				}
			}
		})
	}
}

// TestKernelFilesAreCovered reads what the kernel tells of its keys, which
// anybody may outside.
func TestKernelFilesAreCovered(t *testing.T) {
	const files = "/proc/keys /proc/key-users"
	if b, err := os.ReadFile("/proc/key-users"); err != nil || len(b) == 0 {
		t.Skipf("this kernel has no keyrings: %v", err)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	out, _ := run(t, sandbox.Options{}, "readlink /proc/self/ns/mnt; cat "+files+" | wc -c")
	space, bytes, _ := strings.Cut(out, "\n")
	if space == own {
		t.Skip("no mount namespace here: nothing can be covered")
	}
	if strings.TrimSpace(bytes) != "0" {
		t.Errorf("the child reads %s bytes of %s, want 0", strings.TrimSpace(bytes), files)
	}
}
