package peercred_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/attache-dev/attache/internal/peercred"
)

func TestOf(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := peercred.Of(s)
	if want := (peercred.Peer{PID: os.Getpid(), UID: uint32(os.Getuid())}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := peercred.Of(a); err == nil {
		t.Error("a pipe has a peer")
	}
}
