package sidecar

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attache-dev/attache/test/leak"
)

// agent is what this binary does where other programs do not reach.
func agent(what string, args []string) int {
	switch what {
	case "loop":
		return loop()
	case "greeting":
		return greeting(args[0])
	case "udp":
		return udp(args[0])
	case "contained":
		return contained(args)
	case "collect":
		return collect(args)
	case "idle":
		return idle(args)
	}
	return 2
}

// loop calls a URL for each line of standard input, in one process.
func loop() int {
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		res, err := http.Get(s.Text()) //nolint:noctx // the test ends the process
		if err != nil {
			fmt.Println("failed", err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		fmt.Println("status", res.StatusCode, strings.TrimSpace(string(b)))
	}
	return 0
}

// greeting says nothing and prints what the server says.
func greeting(addr string) int {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	fmt.Printf("%q %v\n", b, err)
	return 0
}

// udp sends datagrams until one is refused.
func udp(addr string) int {
	c, err := net.Dial("udp", addr) //nolint:noctx // nothing is sent yet
	if err != nil {
		fmt.Println("refused", err)
		return 0
	}
	for range 3 {
		if _, err := c.Write([]byte("x")); err != nil {
			fmt.Println("refused", err)
			return 0
		}
		time.Sleep(10 * time.Millisecond) // the error of one datagram is told by the next
	}
	fmt.Println("it left")
	return 1
}

// collect writes everything that it can read below the folders given, and of
// all processes, to standard output.
func collect(dirs []string) int {
	var places []leak.Place
	add := func(path string, b []byte) { places = append(places, leak.Place{Name: path, Data: b}) }
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if b, err := os.ReadFile(path); err == nil {
					add(path, b)
				}
			}
			return nil // what cannot be read is what we want
		})
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		for _, f := range []string{"environ", "cmdline", "maps", "auxv", "stack", "io"} {
			if b, err := os.ReadFile(filepath.Join(p, f)); err == nil {
				add(filepath.Join(p, f), b)
			}
		}
		fds, _ := filepath.Glob(p + "/fd/*")
		for _, f := range fds {
			if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() && st.Size() < 1<<20 {
				if b, err := os.ReadFile(f); err == nil {
					add(f, b)
				}
			}
		}
	}
	for _, url := range []string{"/started", "/ready", "/metrics", "/", "/debug/pprof/", "/v1/inventory", "/config", "/env"} {
		if res, err := http.Get("http://127.0.0.1:15020" + url); err == nil { //nolint:noctx // local
			b, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			add("health "+url, append([]byte(res.Status+"\n"), b...))
		}
	}
	if err := gob.NewEncoder(os.Stdout).Encode(places); err != nil {
		return 1
	}
	return 0
}

// idle opens connections (args: how many, address, name, CA file), makes one
// call on each, says that it is done, and keeps them until standard input ends.
func idle(args []string) int {
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return 2
	}
	cfg, err := clientTLS(args[2], args[3])
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	conns, errs := make(chan *tls.Conn, n), make(chan error, n)
	jobs := make(chan int)
	for range 64 {
		go func() {
			for i := range jobs {
				c, err := call(args[1], args[2], cfg, i)
				if err != nil {
					errs <- err
				} else {
					conns <- c
				}
			}
		}()
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	var keep []*tls.Conn
	for range n {
		select {
		case c := <-conns:
			keep = append(keep, c)
		case err := <-errs:
			fmt.Println("failed", err)
			return 1
		}
	}
	fmt.Println("idle", len(keep))
	_, _ = io.Copy(io.Discard, os.Stdin)
	// Each is still there and serves a second call.
	for i := 0; i < len(keep); i += max(1, len(keep)/100) {
		if err := ask(keep[i], args[2]); err != nil {
			fmt.Println("failed: connection", i, err)
			return 1
		}
	}
	fmt.Println("alive")
	return 0
}

func clientTLS(name, caFile string) (*tls.Config, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}

// call connects from one of many source ports; loopback is not in between.
func call(addr, name string, cfg *tls.Config, _ int) (*tls.Conn, error) {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	c := tls.Client(nc, cfg)
	if err := ask(c, name); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func ask(c *tls.Conn, name string) error {
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	if _, err := fmt.Fprintf(c, "GET /idle HTTP/1.1\r\nHost: %s\r\n\r\n", name); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	_ = c.SetDeadline(time.Time{})
	return err
}
