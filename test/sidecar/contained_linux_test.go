package sidecar

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// contained becomes a program as a container's runtime starts it (args: user,
// "net-admin" or "none", "nnp" or "setuid", program and its arguments): no
// capability but those of the container, which stay permitted as the user
// changes, and no new privileges where the container allows no escalation.
func contained(args []string) int {
	runtime.LockOSThread() // all of this is a thread's until it executes another program
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	var caps unix.CapUserData
	if args[1] == "net-admin" {
		caps.Permitted = 1 << unix.CAP_NET_ADMIN
		caps.Effective = caps.Permitted
	}
	do := func(what string, err error) {
		if err != nil {
			fmt.Println(what, err)
			os.Exit(2)
		}
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if caps.Permitted&(1<<c) == 0 || c > 31 {
			do("drop from the bounding set", unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
		}
	}
	do("keep capabilities", unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
	for _, n := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, e := unix.RawSyscall(n, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			do("change user", e)
		}
	}
	if args[2] == "nnp" {
		do("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	}
	set := [2]unix.CapUserData{caps}
	do("set capabilities", unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &set[0]))
	do("execute", syscall.Exec(args[3], args[3:], os.Environ())) //nolint:gosec // the tests' own
	return 2
}

// The redirect may be installed by a user who is not root, by a file capability
// that gives nothing to whoever's container has none.
func TestRedirectAsSidecar(t *testing.T) {
	if !inWorld(t) {
		return
	}
	w := newWorld(t)
	p := &pod{world: w, mode: "transparent"}
	program := filepath.Join(w.dir, "attache-sidecar")
	if err := copyFile(program, sidecarBinary); err != nil {
		t.Fatal(err)
	}
	run := func(caps, escalation string, args ...string) (string, error) {
		out, err := p.podCommand(0, append([]string{p.self(), "agent", "contained", strconv.Itoa(sidecarUID), caps, escalation, program}, args...)...).CombinedOutput()
		return string(out), err
	}
	redirect := []string{"redirect", "--to-port=15001", "--exempt-uid=" + strconv.Itoa(sidecarUID), "--nameservers=" + world4}
	rules := func() string { return w.in(0, "nft list ruleset") }

	if out, err := run("net-admin", "nnp", redirect...); err == nil || !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Errorf("without a file capability: %v %s", err, out)
	}
	// As package release has it in the image: permitted, not effective.
	value := []byte("\x00\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	if err := unix.Setxattr(program, "security.capability", value, 0); err != nil {
		t.Fatal(err)
	}
	// The sidecar itself starts from the same file, without any.
	if out, err := run("none", "nnp", "version"); err != nil {
		t.Errorf("a container without capabilities: %v %s", err, out)
	}
	for _, escalation := range []string{"nnp", "setuid"} {
		if out, err := run("none", escalation, redirect...); err == nil || !strings.Contains(out, "CAP_NET_ADMIN") {
			t.Errorf("a container without capabilities, %s: %v %s", escalation, err, out)
		}
		if text := rules(); strings.Contains(text, "attache") {
			t.Fatalf("rules are there: %s", text)
		}
		if out, err := run("net-admin", escalation, redirect...); err != nil {
			t.Errorf("%s: %v %s", escalation, err, out)
		}
		if text := rules(); !strings.Contains(text, "table inet attache") || !strings.Contains(text, "redirect to :15001") {
			t.Errorf("%s: no rules: %s", escalation, text)
		}
		w.in(0, "nft delete table inet attache")
	}
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755) //nolint:gosec // another user runs it
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
