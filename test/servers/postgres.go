package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Postgres is a PostgreSQL server of its own, reached by a socket in its
// directory alone.
type Postgres struct {
	URL string
	Dir string // its files; removed by Stop
	cmd *exec.Cmd
}

// PostgresPath returns the directory of PostgreSQL's programs; false if it is
// not installed.
func PostgresPath() (string, bool) {
	l, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(l) == 0 {
		return "", false
	}
	slices.Sort(l)
	return filepath.Dir(l[len(l)-1]), true
}

// StartPostgres makes and starts a server with an empty database below dir (""
// means the folder for temporary files). Settings are as in postgresql.conf.
// PostgreSQL refuses to run as root: then it runs as the user postgres of its
// package.
func StartPostgres(ctx context.Context, dir string, settings ...string) (*Postgres, error) {
	bin, ok := PostgresPath()
	if !ok {
		return nil, errors.New("PostgreSQL is not installed; run test/deps.sh test")
	}
	dir, err := os.MkdirTemp(dir, "attache-pg-") // short: it holds a socket
	if err != nil {
		return nil, err
	}
	p := &Postgres{Dir: dir, URL: "postgres://postgres@/postgres?sslmode=disable&host=" + dir}
	attr := child(&syscall.SysProcAttr{})
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, errors.Join(err, p.Stop())
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2, os.Chown(dir, int(uid), int(gid))); err != nil {
			return nil, errors.Join(err, p.Stop())
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--pgdata="+data, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("initdb: %w: %s", err, out), p.Stop())
	}
	args := []string{"-D", data, "-k", dir, "-c", "listen_addresses="}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	p.cmd = exec.CommandContext(ctx, filepath.Join(bin, "postgres"), args...)
	p.cmd.SysProcAttr, p.cmd.Dir = attr, dir
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	defer log.Close() //nolint:errcheck // the server has it
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		return nil, errors.Join(err, p.Stop())
	}
	if err := p.wait(ctx, filepath.Join(bin, "pg_isready")); err != nil {
		text, _ := os.ReadFile(log.Name()) //nolint:errcheck // best effort
		return nil, errors.Join(fmt.Errorf("postgres does not answer: %w: %s", err, text), p.Stop())
	}
	return p, nil
}

func (p *Postgres) wait(ctx context.Context, ready string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := exec.CommandContext(ctx, ready, "-q", "-h", p.Dir).Run()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Stop ends the server and removes its files.
func (p *Postgres) Stop() error {
	if p.cmd != nil {
		if err := p.cmd.Process.Signal(syscall.SIGQUIT); err == nil { // at once; the files go anyway
			p.cmd.Wait() //nolint:errcheck // ended by the signal
		}
	}
	return os.RemoveAll(p.Dir)
}
