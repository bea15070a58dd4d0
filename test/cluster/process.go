package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stopGrace is how long a program may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// Process is a program of the cluster that runs. It ends when this process
// ends, however that happens.
type Process struct {
	Name string
	Log  string // file of its standard output and error
	cmd  *exec.Cmd
	done chan struct{}
	err  error // read after done is closed
}

// start runs the program and appends what it writes to dir/NAME.log.
func start(dir, name, program string, env []string, args ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(p.cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel kills the child when the thread that forked it ends,
		// not the process: this goroutine keeps its thread for as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process at once, and waits until it has.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, insists after a moment, and waits until it
// has ended. Safe for nil and to call twice.
func (p *Process) Stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		p.Kill()
	}
}

// ended says whether the process is no longer there, and why.
func (p *Process) ended() error {
	select {
	case <-p.done:
		if p.err == nil {
			return fmt.Errorf("%s ended by itself; %s", p.Name, p.Tail(10))
		}
		return fmt.Errorf("%s ended: %w; %s", p.Name, p.err, p.Tail(10))
	default:
		return nil
	}
}

// tailBytes is how much of a log's end is looked at for its last lines.
const tailBytes = 64 << 10

// Tail is the last lines of the log, for a message.
func (p *Process) Tail(lines int) string {
	text, err := tailFile(p.Log, lines)
	if err != nil {
		return "its log: " + err.Error()
	}
	return "the end of " + p.Log + ":\n" + text
}

func tailFile(name string, lines int) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	buf := make([]byte, min(size, tailBytes))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	all := strings.Split(strings.TrimRight(string(buf), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n"), nil
}
