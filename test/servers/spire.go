package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// SPIRE is a running SPIRE server with one agent, which attests processes by
// their user.
type SPIRE struct {
	Addr   string // of the server
	Socket string // of the agent's Workload API, unix:///…

	bin, dir string
	trust    string // trust domain
	server   *daemon
	agent    *daemon
}

// daemon is a program that ends with this process.
type daemon struct {
	stdin io.Closer
	done  chan struct{}
	log   *head
}

func (d *daemon) stop() {
	if d != nil {
		_ = d.stdin.Close()
		<-d.done
	}
}

func startDaemon(ctx context.Context, dir string, argv ...string) (*daemon, error) {
	d := &daemon{done: make(chan struct{}), log: &head{}}
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", keeper, "daemon"}, argv...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, d.log, d.log
	var err error
	if d.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { defer close(d.done); _ = cmd.Wait() }()
	return d, nil
}

// StartSPIRE starts a server and an agent. They end by Close, or with this
// process. An error matches ErrMissing where they are not built, which
// test/servers/spire/build.sh does.
func StartSPIRE(ctx context.Context, trustDomain string) (*SPIRE, error) {
	_, here, _, _ := runtime.Caller(0)
	bin := filepath.Join(filepath.Dir(here), "..", "..", ".cache", "bin")
	for _, p := range []string{"spire-server", "spire-agent"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return nil, fmt.Errorf("%w: %s is not built; run test/servers/spire/build.sh", ErrMissing, p)
		}
	}
	dir, err := os.MkdirTemp("", "spire") // short: socket paths hold about 100 bytes
	if err != nil {
		return nil, fmt.Errorf("start SPIRE: %w", err)
	}
	s := &SPIRE{bin: bin, dir: dir, trust: trustDomain, Socket: "unix://" + filepath.Join(dir, "agent.sock")}
	if s.Addr, err = freeAddr(); err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("start SPIRE: %w", err)
	}
	return s, nil
}

const spireServer = `server {
  bind_address = "127.0.0.1"
  bind_port = "%[1]s"
  socket_path = "%[2]s/server.sock"
  trust_domain = "%[3]s"
  data_dir = "%[2]s"
  log_level = "WARN"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[2]s/server.db" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { keys_path = "%[2]s/keys.json" } }
}
`

const spireAgent = `agent {
  data_dir = "%[2]s/agent"
  server_address = "127.0.0.1"
  server_port = "%[1]s"
  socket_path = "%[2]s/agent.sock"
  trust_domain = "%[3]s"
  trust_bundle_path = "%[2]s/bundle.pem"
  log_level = "WARN"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`

func (s *SPIRE) start(ctx context.Context) error {
	port := s.Addr[strings.LastIndex(s.Addr, ":")+1:]
	for name, text := range map[string]string{"server.conf": spireServer, "agent.conf": spireAgent} {
		if err := os.WriteFile(filepath.Join(s.dir, name), fmt.Appendf(nil, text, port, s.dir, s.trust), 0o600); err != nil {
			return err
		}
	}
	if err := s.StartServer(ctx); err != nil {
		return err
	}
	bundle, err := s.Server(ctx, "bundle", "show")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "bundle.pem"), []byte(bundle), 0o600); err != nil {
		return err
	}
	out, err := s.Server(ctx, "token", "generate", "-spiffeID", "spiffe://"+s.trust+"/node")
	if err != nil {
		return err
	}
	token, ok := strings.CutPrefix(strings.TrimSpace(out), "Token: ")
	if !ok {
		return fmt.Errorf("no join token in %q", out)
	}
	if s.agent, err = startDaemon(ctx, s.dir, filepath.Join(s.bin, "spire-agent"), "run", "-config", filepath.Join(s.dir, "agent.conf"), "-joinToken", token); err != nil {
		return err
	}
	return s.wait(ctx, s.agent, func() error {
		return exec.CommandContext(ctx, filepath.Join(s.bin, "spire-agent"), "healthcheck", "-socketPath", filepath.Join(s.dir, "agent.sock")).Run()
	})
}

// StartServer starts the server again after StopServer.
func (s *SPIRE) StartServer(ctx context.Context) error {
	var err error
	s.server, err = startDaemon(ctx, s.dir, filepath.Join(s.bin, "spire-server"), "run", "-config", filepath.Join(s.dir, "server.conf"))
	if err != nil {
		return err
	}
	return s.wait(ctx, s.server, func() error { _, err := s.Server(ctx, "healthcheck"); return err })
}

// StopServer kills the server; its data stays.
func (s *SPIRE) StopServer() { s.server.stop(); s.server = nil }

func (s *SPIRE) wait(ctx context.Context, d *daemon, ready func() error) error {
	end := time.Now().Add(startTimeout)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("it ended: %s", d.log.String())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("not ready: %w: %s", err, d.log.String())
		}
	}
}

// Server runs a command of spire-server and returns its output.
func (s *SPIRE) Server(ctx context.Context, args ...string) (string, error) {
	args = append(args, "-socketPath", filepath.Join(s.dir, "server.sock"))
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "spire-server"), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("spire-server %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// Entry registers this user's processes as spiffe://TRUSTDOMAIN/PATH.
func (s *SPIRE) Entry(ctx context.Context, path string, flags ...string) error {
	_, err := s.Server(ctx, append([]string{
		"entry", "create", "-parentID", "spiffe://" + s.trust + "/node", "-spiffeID", "spiffe://" + s.trust + path,
		"-selector", fmt.Sprintf("unix:uid:%d", os.Getuid()),
	}, flags...)...)
	return err
}

// Close ends both and removes their data.
func (s *SPIRE) Close() {
	s.agent.stop()
	s.server.stop()
	if err := os.RemoveAll(s.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		panic(err) // a test's folder
	}
}
