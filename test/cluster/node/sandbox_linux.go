package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageVariable says which of the three lives of the program this is.
const stageVariable = "ATTACHE_NODE_STAGE"

const (
	stageInit = "init" // process 1 of the sandbox: reaps, and ends everything by ending
	stageRun  = "run"  // the program itself
)

// Sandboxed runs prepare, then the rest of this program again in mount, PID,
// network and UTS namespaces of its own, and returns whether that is where it
// is now. Outside it does not return: it ends with the status of the inner
// program, after cleaning up what namespaces do not.
//
// Everything that starts inside ends with the inner program, however that
// ends: pods, their shims, daemons. Nothing inside reaches a network.
//
// After gets the status, when everything has ended.
func Sandboxed(dir string, prepare func(ctx context.Context) error, after func(status int)) bool {
	switch os.Getenv(stageVariable) {
	case stageRun:
		return true
	case stageInit:
		os.Exit(runInit(dir))
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "a node needs root (namespaces, cgroups, mounts): run it as root, or with sudo")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code, err := runOutside(ctx)
	if err := cleanCgroups(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	after(code)
	os.Exit(code)
	return false
}

func runOutside(ctx context.Context) (int, error) {
	restore := keepSysctls()
	defer restore()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageVariable+"="+stageInit, cgroupVariable+"="+cgroupName())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("make namespaces for the node: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return exitCode(err)
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return exitCode(<-done)
	}
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// runInit is process 1: it gives the sandbox its mounts and then only reaps.
func runInit(dir string) int {
	if err := mounts(dir); err != nil {
		fmt.Fprintln(os.Stderr, "mounts of the node:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageVariable+"="+stageRun)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}

// mounts gives the sandbox its own /proc, /run, /var/log, /etc/hosts and
// /etc/resolv.conf: containerd's shims and CNI plugins have fixed paths there.
// Pods' volumes must reach containers, hence the shared propagation inside.
func mounts(dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.MkdirAll(in("log"), 0o755), os.MkdirAll(in("etc"), 0o755)); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n" + Address + " " + Name + "\n"
	if err := errors.Join(
		os.WriteFile(in("etc/hosts"), []byte(hosts), 0o644),
		os.WriteFile(in("etc/resolv.conf"), []byte("nameserver "+DNS+"\nsearch svc.cluster.local cluster.local\noptions ndots:2\n"), 0o644),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"),
		unix.Mount(in("log"), "/var/log", "", unix.MS_BIND, ""),
		unix.Mount(in("etc/hosts"), "/etc/hosts", "", unix.MS_BIND, ""),
		bindOverLink(in("etc/resolv.conf"), "/etc/resolv.conf"),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
		unix.Sethostname([]byte(Name)),
	); err != nil {
		return err
	}
	return nil
}

// AddHosts gives programs inside the sandbox names for an address, besides
// those of the cluster's DNS.
func AddHosts(address string, names ...string) error {
	// The file is a mount: it can be appended to, never replaced.
	f, err := os.OpenFile("/etc/hosts", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", address, strings.Join(names, " "))
	return errors.Join(err, f.Close())
}

// bindOverLink binds from over to, or over what to links to; some systems
// link resolv.conf into /run.
func bindOverLink(from, to string) error {
	real, err := filepath.EvalSymlinks(to)
	if errors.Is(err, fs.ErrNotExist) {
		link, lerr := os.Readlink(to)
		if lerr != nil {
			return lerr
		}
		real = filepath.Join(filepath.Dir(to), link)
		if err = os.MkdirAll(filepath.Dir(real), 0o755); err == nil {
			err = os.WriteFile(real, nil, 0o644)
		}
	}
	if err != nil {
		return err
	}
	return unix.Mount(from, real, "", unix.MS_BIND, "")
}

// cgroupVariable names the folder below each cgroup hierarchy that holds the
// pods of this node: two nodes at once must not share one.
const cgroupVariable = "ATTACHE_NODE_CGROUP"

func cgroupName() string { return fmt.Sprintf("attache-%d", os.Getpid()) }

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies lists the folders that hold cgroups: one for each controller in
// version 1, the root in version 2.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return dirs, nil
}

func makeCgroups(name string) error {
	dirs, err := hierarchies()
	for _, d := range dirs {
		err = errors.Join(err, os.MkdirAll(filepath.Join(d, name), 0o755))
	}
	return err
}

// cleanCgroups removes the empty cgroups that the node left; they outlive
// its namespaces.
func cleanCgroups() error {
	dirs, err := hierarchies()
	for _, d := range dirs {
		var made []string
		_ = filepath.WalkDir(filepath.Join(d, cgroupName()), func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				made = append(made, p)
			}
			return nil // one that vanished meanwhile is what we want
		})
		for _, p := range slices.Backward(made) {
			if e := os.Remove(p); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// keepSysctls remembers what the kubelet changes for the whole machine.
func keepSysctls() (restore func()) {
	before := map[string][]byte{}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		file := "/proc/sys/" + name
		if b, err := os.ReadFile(file); err == nil {
			before[file] = b
		}
	}
	return func() {
		for file, value := range before {
			_ = os.WriteFile(file, []byte(strings.TrimSpace(string(value))), 0o644)
		}
	}
}
