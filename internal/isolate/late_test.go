package isolate

import (
	"errors"
	"net"
	"testing"
)

func TestLate(t *testing.T) {
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 15002}
	l := NewLate(addr)
	if l.Addr() != addr {
		t.Errorf("address %v", l.Addr())
	}
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		got <- err
	}()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Give(ln)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-got; err != nil {
		t.Errorf("accept: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is left open: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("the second close: %v", err)
	}
}

// A run that ends before its agent began leaves nobody waiting and nothing open.
func TestLateClosedFirst(t *testing.T) {
	l := NewLate(&net.TCPAddr{})
	got := make(chan error, 1)
	go func() { _, err := l.Accept(); got <- err }()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Give(ln)
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the late listener is left open: %v", err)
	}
}
