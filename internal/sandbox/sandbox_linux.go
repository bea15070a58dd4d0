package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/isolate"
)

// Sandbox is the place one child runs in. Its methods are called in order, by
// one goroutine: New, Start, Wait, Close.
type Sandbox struct {
	opts   Options
	conf   Confinement
	spec   spec
	cgroup string // folder, "" if there is none

	proc *os.Process
	term terminal
	sigs chan os.Signal // to pass on; listened to before the child runs
	once sync.Once      // Close
}

// probeTime bounds the probe stage, which takes some ten milliseconds.
const probeTime = 20 * time.Second

// New finds out how this machine can confine a child, by confining a probe
// exactly as the child will be. It makes the run's cgroup and makes this
// process the reaper of all the child's descendants. The error matches
// [ErrUnconfined] where the machine cannot do it.
func New(ctx context.Context, o Options) (*Sandbox, error) {
	return newSandbox(ctx, o, true, false)
}

// newSandbox is New that tries only some ways: true is with mounts, false with
// Landlock alone.
func newSandbox(ctx context.Context, o Options, ways ...bool) (*Sandbox, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("working directory %q must be absolute", o.Dir)
	}
	if o.User != nil && os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: only root can run the child as another user", ErrUnconfined)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become reaper of the child's descendants: %w", err)
	}
	s := &Sandbox{opts: o}
	cgroup, cgErr := newCgroup()
	s.cgroup = cgroup
	err := s.plan(ctx, ways)
	if err != nil && o.Isolate != nil {
		err = isolate.Explain(err)
	} else if err != nil && o.UnsafeSameUser && o.User == nil && ctx.Err() == nil {
		s.spec = spec{Dir: o.Dir}
		s.conf = Confinement{Unsafe: true, Limits: []string{"nothing is enforced: " + err.Error()}}
		err = nil
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	s.conf.Cgroup = s.cgroup != ""
	if s.cgroup == "" && cgErr != nil {
		s.conf.Limits = append(s.conf.Limits, "no cgroup of its own ("+cgErr.Error()+"): connections are attributed by the process tree alone")
	}
	return s, nil
}

// plan tries the ways to confine, best first, and keeps the first that works.
func (s *Sandbox) plan(ctx context.Context, ways []bool) error {
	abi := landlockABI()
	if abi == 0 {
		return fmt.Errorf("%w: this kernel has no Landlock or has it switched off (CONFIG_SECURITY_LANDLOCK, lsm=landlock,…), so the agent could read attache's memory and files; boot with it, or go on with --unsafe-same-user", ErrUnconfined)
	}
	if len(s.opts.OnlyProxy) > 0 && abi < 4 {
		return fmt.Errorf("%w: limiting connections to the proxy needs Landlock ABI 4 (Linux 6.7), this kernel has %d", ErrUnconfined, abi)
	}
	v, err := newView(s.opts)
	if err != nil {
		return err
	}
	base := spec{
		Probe: true, Dir: s.opts.Dir, ABI: abi, Pin: v.pin, ReadOnly: v.readOnly, Cover: v.cover, Private: v.private,
		Ports: s.opts.OnlyProxy, User: s.opts.User, Net: s.opts.Isolate,
	}
	if s.opts.Isolate != nil {
		// What Landlock alone hides cannot be relied on here: the resolver's
		// configuration and sockets must be covered.
		ways = slices.DeleteFunc(ways, func(mountNS bool) bool { return !mountNS })
	}
	if s.opts.ResolvConf != "" {
		base.resolvConf(s.opts.ResolvConf)
	}
	if os.Geteuid() == 0 && s.opts.User == nil {
		base.KeepCaps = keptCaps(abi >= 6)
	}
	var errs []error
	for _, mountNS := range ways {
		sp := base
		sp.MountNS, sp.NoUnix = mountNS, !mountNS
		s.spec = sp
		if err := s.probe(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		s.spec.Probe = false
		s.describe(v, errors.Join(errs...))
		return nil
	}
	if s.opts.Isolate != nil {
		return fmt.Errorf("%w with a network of its own: %w", ErrUnconfined, errors.Join(errs...))
	}
	return fmt.Errorf("%w, neither with mounts nor with landlock alone: %w", ErrUnconfined, errors.Join(errs...))
}

// probe runs the stage without an exec at its end.
func (s *Sandbox) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	files := []*os.File{null, null, null}
	p, status, err := s.launch(nil, files, nil, &syscall.SysProcAttr{})
	if err != nil && s.cgroup != "" {
		// Made, but not ours to put processes in.
		_ = removeCgroup(s.cgroup)
		s.cgroup = ""
		p, status, err = s.launch(nil, files, nil, &syscall.SysProcAttr{})
	}
	if err != nil {
		return fmt.Errorf("start stage: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	defer stop()
	text := readStatus(status)
	st, err := p.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("wait for stage: %w", err)
	case text != "":
		return errors.New(text)
	case !st.Success():
		return fmt.Errorf("the stage ended with %v; does main call sandbox.MaybeStage first?", st)
	}
	return nil
}

// describe fills in the Confinement of a plan that worked.
func (s *Sandbox) describe(v *view, failed error) {
	sp := &s.spec
	s.conf = Confinement{
		Landlock: sp.ABI, NoNewPrivs: true, MountNS: sp.MountNS, UserNS: s.userNS(),
		OwnUser: sp.User != nil, OnlyProxy: len(sp.Ports) > 0, NetNS: sp.Net != nil, Limits: v.limits,
	}
	if sp.ABI < 6 {
		s.conf.Limits = append(s.conf.Limits, "Landlock before ABI 6 (Linux 6.12) does not stop signals and abstract Unix sockets to processes of the same user")
	}
	if !sp.MountNS {
		s.conf.Limits = append(s.conf.Limits,
			fmt.Sprintf("no mount namespace (%v): folders that hold hidden paths, such as the home, cannot be listed nor get new entries, the child cannot make Unix sockets, and it can chmod what it owns", failed))
	}
	if len(sp.Ports) > 0 && sp.Net == nil {
		s.conf.Limits = append(s.conf.Limits, "the limit to the proxy's ports covers TCP, not UDP")
	}
}

// userNS reports whether the namespaces need a user namespace to own them.
func (s *Sandbox) userNS() bool {
	return s.spec.MountNS && !hasCaps(unix.CAP_SYS_ADMIN) || s.spec.Net != nil && !hasCaps(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE)
}

// Confinement is what is in force. It is known before the child starts.
func (s *Sandbox) Confinement() Confinement { return s.conf }

// CgroupDir is the folder of the run's cgroup (version 2), empty if there is
// none.
func (s *Sandbox) CgroupDir() string { return s.cgroup }

// PID is the child's process id, once started.
func (s *Sandbox) PID() int { return s.proc.Pid }

// Start confines a process and executes c in it. An error that says "exec"
// is about the program, any other about the confinement.
func (s *Sandbox) Start(c Command) error {
	if !filepath.IsAbs(c.Path) || len(c.Args) == 0 {
		return fmt.Errorf("start child: path %q must be absolute and args must name the program", c.Path)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start child: %w", err)
	}
	defer func() { _ = null.Close() }()
	files := []*os.File{c.Stdin, c.Stdout, c.Stderr}
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	s.spec.Path, s.spec.Args = c.Path, c.Args
	s.term = findTerminal(files)
	attr := &syscall.SysProcAttr{}
	s.term.prepare(attr)
	s.sigs = make(chan os.Signal, 16)
	signal.Notify(s.sigs, s.term.forwarded()...)
	if s.conf.Unsafe {
		attr.UseCgroupFD = s.cgroup != ""
		s.proc, err = s.startProcess(c.Path, c.Args, s.opts.Dir, scrub(c.Env), files, attr)
		if err != nil {
			return fmt.Errorf("start child: %w", err)
		}
		return nil
	}
	join, theirs, err := s.joint()
	if err != nil {
		return fmt.Errorf("start child: %w", err)
	}
	p, status, err := s.launch(scrub(c.Env), files, theirs, attr)
	if err != nil {
		if join != nil {
			_ = join.Close()
		}
		return fmt.Errorf("start child: %w", err)
	}
	s.proc = p
	joined := s.join(join)
	text := readStatus(status)
	if joined == nil && text == "" {
		return nil
	}
	_, _ = p.Wait() // the stage ends when nobody lets it go on
	s.proc = nil
	s.term.restore()
	if text != "" {
		return fmt.Errorf("start child: %s", text)
	}
	return fmt.Errorf("start child: %w", joined)
}

// launch clones the stage into its namespaces and cgroup. The caller reads
// status to its end and waits for the process.
func (s *Sandbox) launch(env []string, files []*os.File, join *os.File, attr *syscall.SysProcAttr) (*os.Process, *os.File, error) {
	if join != nil {
		defer func() { _ = join.Close() }()
	}
	sp, err := specFile(&s.spec)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = sp.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = w.Close() }()
	attr.UseCgroupFD = s.cgroup != ""
	if s.spec.MountNS {
		attr.Cloneflags |= unix.CLONE_NEWNS
	}
	caps := []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
	if s.spec.Net != nil {
		attr.Cloneflags |= unix.CLONE_NEWNET
		caps = append(caps, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE)
	}
	if s.userNS() {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		// Exec takes what clone gave in the new namespace, unless ambient; the
		// stage gives it back before it becomes the child.
		attr.AmbientCaps = caps
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	files = append(append([]*os.File(nil), files...), sp, w)
	if join != nil {
		files = append(files, join)
	}
	p, err := s.startProcess("/proc/self/exe", []string{"attache", stageArg}, "", env, files, attr)
	if err != nil {
		_ = r.Close()
		return nil, nil, err
	}
	return p, r, nil
}

// startProcess is os.StartProcess into the run's cgroup. The clone itself puts
// the process there, so that it never runs anywhere else.
func (s *Sandbox) startProcess(path string, args []string, dir string, env []string, files []*os.File, attr *syscall.SysProcAttr) (*os.Process, error) {
	if env == nil {
		env = []string{} // nil would mean our own environment
	}
	if attr.UseCgroupFD {
		fd, err := unix.Open(s.cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		attr.CgroupFD = fd
	}
	if attr.Cloneflags&unix.CLONE_NEWUSER != 0 {
		// /proc/PID/uid_map of the clone of an undumpable process belongs to
		// root. Nothing of the child runs yet that could use the moment.
		if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err == nil && d == 0 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
			defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }()
		}
	}
	p, err := os.StartProcess(path, args, &os.ProcAttr{Dir: dir, Env: env, Files: files, Sys: attr})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// specFile puts sp into memory that the stage inherits.
func specFile(sp *spec) (*os.File, error) {
	fd, err := unix.MemfdCreate("attache-spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make spec: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	if err := json.NewEncoder(f).Encode(sp); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write spec: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write spec: %w", err)
	}
	return f, nil
}

// readStatus waits until the stage execs (empty) or says what went wrong.
func readStatus(r *os.File) string {
	defer func() { _ = r.Close() }()
	b, _ := io.ReadAll(io.LimitReader(r, 64<<10))
	return strings.TrimSpace(string(b))
}

// Close kills whatever is left in the sandbox and removes its cgroup. It may
// be called more than once.
func (s *Sandbox) Close() error {
	var err error
	s.once.Do(func() {
		if s.sigs != nil {
			signal.Stop(s.sigs)
		}
		err = s.killAll()
		if s.cgroup != "" {
			err = errors.Join(err, removeCgroup(s.cgroup))
		}
	})
	return err
}
