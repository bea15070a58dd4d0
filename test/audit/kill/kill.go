// Package kill kills a producer of records at random moments, again and again,
// while its collector fails, its disk fills up and its clock jumps, and then
// holds what arrived against what was acknowledged: nothing may be lost and
// nothing invented.
//
// The clock that jumps is that of the records and of the files' times; the
// kernel's own cannot be moved for one process.
package kill

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"

	"github.com/attache-dev/attache/audit"
)

// Options of [Run].
type Options struct {
	Kills int
	Dir   string // scratch
	Seed  uint64 // 0: drawn
	Log   io.Writer
}

// disk is where the spool lives: small, so that it fills up.
const disk = 24 << 20

// run is one run of the test.
type run struct {
	o       Options
	rnd     *rand.Rand
	spool   string
	ballast string
	recv    *receiver
	addr    string
	said    map[string]map[string]bool // what the producers told, by kind
	late    []string                   // acknowledged by the collector, and it had them not
}

// Run kills o.Kills producers and says what it found, or what is wrong.
func Run(ctx context.Context, o Options) (report string, err error) {
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	}
	r := &run{o: o, rnd: rand.New(rand.NewPCG(o.Seed, 1)), said: map[string]map[string]bool{}} //nolint:gosec // a test's load
	for _, k := range []string{begun, ended, denied, intended, collected, refused} {
		r.said[k] = map[string]bool{}
	}
	mount := filepath.Join(o.Dir, "disk")
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return "", err
	}
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", mount, "tmpfs", 0, fmt.Sprintf("size=%d", disk)); err != nil {
			return "", fmt.Errorf("mount a small disk: %w", err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH)) }()
	}
	r.spool, r.ballast = filepath.Join(mount, "spool"), filepath.Join(mount, "ballast")
	if err := r.listen(ctx); err != nil {
		return "", err
	}
	for i := range o.Kills {
		if err := r.once(ctx, i); err != nil {
			return "", fmt.Errorf("kill %d of %d (seed %d): %w", i, o.Kills, o.Seed, err)
		}
	}
	if err := r.finish(ctx); err != nil {
		return "", fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	return r.judge()
}

func (r *run) listen(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.recv = &receiver{got: map[key]line{}, ids: map[string]bool{}, seed: r.o.Seed}
	srv := grpc.NewServer()
	collogs.RegisterLogsServiceServer(srv, r.recv)
	go func() { _ = srv.Serve(ln) }()
	context.AfterFunc(ctx, srv.Stop)
	r.addr = ln.Addr().String()
	return nil
}

// once lets a producer work for a moment, under some misfortune, and kills it.
func (r *run) once(ctx context.Context, i int) error {
	r.recv.mood(mood(i % int(moods)))
	if r.rnd.IntN(3) == 0 { // fill what is left, but for a little
		_ = r.fill(int64(r.rnd.IntN(64 << 10)))
	}
	if r.rnd.IntN(4) == 0 {
		r.jump()
	}
	err := r.produce(ctx, i, 1+r.rnd.IntN(mostLines))
	_ = os.Remove(r.ballast)
	return err
}

// fill leaves the disk with about so many bytes.
func (r *run) fill(left int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.ballast), &st); err != nil {
		return err
	}
	n := int64(st.Bavail)*st.Bsize - left //nolint:gosec // small
	if n <= 0 || os.Geteuid() != 0 {
		return nil
	}
	f, err := os.Create(r.ballast)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, n)
}

// jump moves the times of the spool's files by up to a year, either way.
func (r *run) jump() {
	at := time.Now().Add(time.Duration(r.rnd.Int64N(int64(2*8760*time.Hour))) - 8760*time.Hour)
	files, _ := filepath.Glob(filepath.Join(r.spool, "*"))
	for _, f := range files {
		_ = os.Chtimes(f, at, at)
	}
}

// mostLines is how many things a producer may tell before it is killed, and
// mostTime how long that may take. The moment counts in what it does, and not
// in time: a busy machine must not make the test an empty one.
const (
	mostLines = 600
	mostTime  = 10 * time.Second
)

// produce runs one producer, takes down what it tells, and kills it a moment
// after the given number of lines; 0: it delivers what is left and ends.
func (r *run) produce(ctx context.Context, i, kill int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program again
	offset := time.Duration(0)
	if r.rnd.IntN(3) == 0 {
		offset = time.Duration(r.rnd.Int64N(int64(2*8760*time.Hour))) - 8760*time.Hour
	}
	mode := "work"
	if kill == 0 {
		mode = "drain"
	}
	cmd.Env = append(os.Environ(), childEnv+"="+mode, "KILL_SPOOL="+r.spool, "KILL_SINK="+r.addr, "KILL_CLOCK="+offset.String())
	cmd.Stderr = r.o.Log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	var failure error
	if kill > 0 {
		defer time.AfterFunc(mostTime, func() { _ = cmd.Process.Kill() }).Stop()
	}
	for n := 1; lines.Scan(); n++ {
		if n == kill {
			later := time.Duration(r.rnd.IntN(3000)) * time.Microsecond
			defer time.AfterFunc(later, func() { _ = cmd.Process.Kill() }).Stop()
		}
		what, id, _ := strings.Cut(lines.Text(), " ")
		if r.said[what] == nil {
			failure = fmt.Errorf("producer %d: %s", i, lines.Text())
			continue
		}
		r.said[what][id] = true
		if what == collected && !r.recv.has(id) {
			r.late = append(r.late, id)
		}
	}
	err = cmd.Wait()
	if kill == 0 && err != nil {
		return errors.Join(failure, fmt.Errorf("the last producer: %w", err))
	}
	return failure
}

// finish lets a last producer end what is open and deliver what is left.
func (r *run) finish(ctx context.Context) error {
	r.recv.mood(well)
	_ = os.Remove(r.ballast)
	return r.produce(ctx, r.o.Kills, 0)
}

// judge holds what arrived against what was said.
func (r *run) judge() (string, error) {
	var errs []error
	wrong := func(format string, args ...any) {
		if len(errs) < 20 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	arrived, err := r.recv.arrived()
	if err != nil {
		wrong("%w", err)
	}
	for id := range r.said[begun] {
		if arrived[id].begins != 1 {
			wrong("begin of %s was acknowledged and arrived %d times", id, arrived[id].begins)
		} else if arrived[id].ends != 1 {
			wrong("request %s arrived with %d ends", id, arrived[id].ends)
		}
	}
	for id := range r.said[ended] {
		if arrived[id].outcome != audit.OutcomeOK {
			wrong("end of %s was acknowledged and arrived as %q", id, arrived[id].outcome)
		}
	}
	for id := range r.said[denied] {
		if arrived[id].outcome != audit.OutcomeDenied {
			wrong("denial %s was acknowledged and arrived as %q", id, arrived[id].outcome)
		}
	}
	for id, a := range arrived {
		if !r.said[intended][id] && !a.system {
			wrong("record %s arrived and nobody asked for it", id)
		}
	}
	for _, id := range r.late {
		wrong("request %s could leave before the collector had it", id)
	}
	rep, err := audit.Verify(r.spool)
	if err != nil || !rep.OK() {
		wrong("the spool that is left: %v %s", err, rep.String())
	}
	for _, k := range []string{begun, ended, denied, collected} {
		if len(r.said[k]) == 0 && r.o.Kills >= 20 {
			wrong("no producer told %q once: the test tests nothing", k)
		}
	}
	if len(errs) > 0 {
		return "", fmt.Errorf("seed %d: %w", r.o.Seed, errors.Join(errs...))
	}
	return fmt.Sprintf("%d kills: %d begins, %d ends, %d denials and %d by the collector acknowledged, %d refused; %d lines of %d epochs arrived, %d of them twice or more; %d failed exports",
		r.o.Kills, len(r.said[begun]), len(r.said[ended]), len(r.said[denied]), len(r.said[collected]), len(r.said[refused]), r.recv.count(), len(r.recv.epochs()), r.recv.again, r.recv.failed), nil
}
