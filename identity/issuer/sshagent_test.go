package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

// socketDir is short: socket paths hold about 100 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// keyring serves x/crypto's agent on a socket.
func keyring(t *testing.T) (agent.Agent, string) {
	t.Helper()
	k := agent.NewKeyring()
	path := filepath.Join(socketDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _ = agent.ServeAgent(k, c) }()
		}
	}()
	return k, path
}

func addKey(t *testing.T, a agent.Agent, comment string) ssh.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Add(agent.AddedKey{PrivateKey: k, Comment: comment}); err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

func TestSSHAgent(t *testing.T) {
	ring, path := keyring(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Add(agent.AddedKey{PrivateKey: ed, Comment: "attache"}); err != nil {
		t.Fatal(err)
	}
	addKey(t, ring, "someone else's")
	src := issuer.SSHAgent{Socket: path, Comment: "attache"}
	if _, err := issuer.New(t.Context(), issuer.Config{TrustDomain: td(), Keys: src}); err == nil || !strings.Contains(err.Error(), "ssh-keygen -t ecdsa") {
		t.Fatalf("got %v; want advice", err)
	}
	addKey(t, ring, "attache")
	i := start(t, issuer.Config{Keys: src})
	tok, _ := mint(t, i, identity.JWTRequest{})
	claims(t, tok, i.Keys(t.Context()))
	if n := len(i.Keys(t.Context()).Keys); n != 1 {
		t.Errorf("%d keys published; want only ours", n)
	}
	// Another process with the same agent is the same issuer.
	again := start(t, issuer.Config{Keys: src})
	claims(t, tok, again.Keys(t.Context()))
}

func TestSSHAgentRotation(t *testing.T) {
	ring, path := keyring(t)
	old := addKey(t, ring, "attache")
	now := time.Unix(1_800_000_000, 0)
	i := start(t, issuer.Config{Keys: issuer.SSHAgent{Socket: path, Comment: "attache"}, Now: func() time.Time { return now }})
	tok, _ := mint(t, i, identity.JWTRequest{})
	first := kid(t, tok)

	addKey(t, ring, "attache")
	now = now.Add(2 * time.Minute)
	if n := len(i.Keys(t.Context()).Keys); n != 2 {
		t.Fatalf("%d keys; want the added one published", n)
	}
	tok, _ = mint(t, i, identity.JWTRequest{})
	if kid(t, tok) != first {
		t.Fatal("the added key signs before the old one is removed")
	}
	// Removed too early: no token rather than one that cached key sets refuse.
	if err := ring.Remove(old); err != nil {
		t.Fatal(err)
	}
	now = now.Add(10 * time.Minute)
	if _, err := i.JWT(t.Context(), identity.JWTRequest{Workload: workload("/a"), Audience: "x"}); !errors.Is(err, identity.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	now = now.Add(issuer.DefaultPublishAhead)
	tok2, _ := mint(t, i, identity.JWTRequest{})
	if kid(t, tok2) == first {
		t.Fatal("signed with a key the agent lost")
	}
	claims(t, tok2, i.Keys(t.Context()))
	claims(t, tok, i.Keys(t.Context())) // the old token still verifies
}

func TestSSHAgentGone(t *testing.T) {
	_, err := issuer.New(t.Context(), issuer.Config{TrustDomain: td(), Keys: issuer.SSHAgent{Socket: filepath.Join(t.TempDir(), "none")}})
	if !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestSSHAgentHangs: an agent that never answers holds nobody for long.
func TestSSHAgentHangs(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := issuer.New(ctx, issuer.Config{TrustDomain: td(), Keys: issuer.SSHAgent{Socket: path}}); err == nil {
		t.Error("no error")
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestOpenSSHAgent runs the agent that people have.
func TestOpenSSHAgent(t *testing.T) {
	bin, err := exec.LookPath("ssh-agent")
	if err != nil {
		t.Skip("ssh-agent is not installed")
	}
	path := filepath.Join(socketDir(t), "s")
	cmd := exec.Command(bin, "-D", "-a", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var c net.Conn
	for range 200 {
		if c, err = net.Dial("unix", path); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // another program's start
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	addKey(t, agent.NewClient(c), "attache")
	i := start(t, issuer.Config{Keys: issuer.SSHAgent{Socket: path, Comment: "attache"}})
	tok, _ := mint(t, i, identity.JWTRequest{})
	claims(t, tok, i.Keys(t.Context()))
}
