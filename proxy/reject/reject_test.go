package reject_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/reject"
)

const reason = "attache: denied: no rule allows this [rec_0123456789abcdef]"

// serve answers every connection and returns the port.
func serve(t *testing.T, protocol string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
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
			go func() {
				_, _ = reject.Answer(c, protocol, reason)
				_ = c.Close()
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// Real clients show the reason to their user.
func TestRealClients(t *testing.T) {
	python := func(code string) []string { return []string{"/usr/bin/python3", "-c", code} }
	for _, tt := range []struct {
		name, protocol string
		args           []string // %s is the port
	}{
		{"psql", reject.PostgreSQL, []string{"psql", "-w", "host=127.0.0.1 port=%s user=agent dbname=x sslmode=prefer gssencmode=disable connect_timeout=10"}},
		{"psql without TLS", reject.PostgreSQL, []string{"psql", "-w", "host=127.0.0.1 port=%s user=agent dbname=x sslmode=disable gssencmode=disable connect_timeout=10"}},
		{"mariadb", reject.MySQL, []string{"mariadb", "--no-defaults", "-h127.0.0.1", "-P%s", "-uagent"}},
		{"ssh", reject.SSH, []string{"ssh", "-F/dev/null", "-p%s", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "agent@127.0.0.1", "true"}},
		{"redis-cli", reject.Redis, []string{"redis-cli", "-h", "127.0.0.1", "-p", "%s", "get", "x"}},
		{"smtplib", reject.SMTP, python(`import smtplib; smtplib.SMTP("127.0.0.1", %s, timeout=10)`)},
		{"ftplib", reject.FTP, python(`import ftplib; f = ftplib.FTP(); f.connect("127.0.0.1", %s, timeout=10)`)},
		{"imaplib", reject.IMAP, python(`import imaplib; imaplib.IMAP4("127.0.0.1", %s, timeout=10)`)},
		{"poplib", reject.POP3, python(`import poplib; poplib.POP3("127.0.0.1", %s, timeout=10)`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			program, err := exec.LookPath(tt.args[0])
			if err != nil {
				if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
					t.Fatal(err)
				}
				t.Skipf("SKIPPED: %s is not installed", tt.args[0])
			}
			port := serve(t, tt.protocol)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			args := strings.Split(strings.ReplaceAll(strings.Join(tt.args[1:], "\x00"), "%s", port), "\x00")
			cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // the tests' own
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LANG=C")
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil {
				t.Fatalf("the client hangs: %s", out)
			}
			// redis-cli ends with 0 whatever it was answered.
			if err == nil && tt.protocol != reject.Redis {
				t.Errorf("the client was content: %s", out)
			}
			if !strings.Contains(string(out), reason) {
				t.Errorf("the client does not show why: %v %s", err, out)
			}
		})
	}
}

// A client that says nothing, leaves, or is of another protocol is let go.
func TestStrangers(t *testing.T) {
	for name, say := range map[string]string{
		"leaves":            "",
		"speaks HTTP":       "GET / HTTP/1.1\r\n\r\n",
		"a long startup":    "\x00\x00\xff\xff\x00\x03\x00\x00",
		"a short startup":   "\x00\x00\x00\x04\x00\x03\x00\x00",
		"asks and asks":     strings.Repeat("\x00\x00\x00\x08\x04\xd2\x16\x2f", 8),
		"cancels":           "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02",
		"a startup cut off": "\x00\x00\x00\x40\x00\x03\x00\x00user",
	} {
		agent, here := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := reject.Answer(here, reject.PostgreSQL, reason)
			_ = here.Close()
			done <- err
		}()
		var got bytes.Buffer
		read := make(chan struct{})
		go func() { _, _ = io.Copy(&got, agent); close(read) }()
		_ = agent.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(agent, say)
		_ = agent.Close()
		if err := <-done; err == nil && name != "cancels" {
			t.Errorf("%s: no error", name)
		}
		<-read
		if strings.Contains(got.String(), "attache") {
			t.Errorf("%s: was answered %q", name, got.String())
		}
	}
	if ok, err := reject.Answer(noConn{}, "rfb", reason); ok || err != nil {
		t.Errorf("a protocol without a form: %v, %v", ok, err)
	}
}

// noConn is a connection that must not be written to.
type noConn struct{ net.Conn }

func (noConn) SetDeadline(time.Time) error { return nil }

func TestRecognise(t *testing.T) {
	for _, tt := range []struct{ first, want string }{
		{"", ""},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", reject.PostgreSQL},
		{"\x00\x00\x00\x08\x04\xd2\x16\x30", reject.PostgreSQL},
		{"\x00\x00\x00\x29\x00\x03\x00\x00user", reject.PostgreSQL},
		{"\x00\x00\x00\x29\x00\x03\x00\x02user", reject.PostgreSQL},
		{"\x00\x00\x00\x09\x04\xd2\x16\x2f", ""},
		{"\x00\x00\x00\x29\x00\x02\x00\x00user", ""},
		{"\x00\x00\x00\x08\x04\xd2", ""},
		{"*1\r\n$4\r\nPING\r\n", reject.Redis},
		{"*\r\n", ""},
		{"SSH-2.0-x\r\n", ""},
	} {
		if got := reject.Recognise([]byte(tt.first)); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.first, got, tt.want)
		}
	}
}

// memory is a connection whose client has said all that it will.
type memory struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (m *memory) Read(b []byte) (int, error)  { return m.in.Read(b) }
func (m *memory) Write(b []byte) (int, error) { return m.out.Write(b) }
func (*memory) SetDeadline(time.Time) error   { return nil }

var protocols = []string{reject.FTP, reject.SSH, reject.SMTP, reject.POP3, reject.IMAP, reject.MySQL, reject.PostgreSQL, reject.Redis}

// FuzzAnswer: whatever client and reason say, the answer is one line of ASCII in
// the protocol's frame, and small.
func FuzzAnswer(f *testing.F) {
	f.Add(uint8(6), reason, []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f\x00\x00\x00\x09\x00\x03\x00\x00\x00"))
	f.Add(uint8(2), "a\r\n250 ok\r\n", []byte("EHLO x\r\n"))
	f.Add(uint8(1), strings.Repeat("é", 500), []byte("SSH-2.0-x\r\n"))
	f.Add(uint8(5), "\x00\xff", []byte{})
	f.Fuzz(func(t *testing.T, which uint8, text string, said []byte) {
		protocol := protocols[int(which)%len(protocols)]
		m := &memory{in: bytes.NewReader(said)}
		ok, err := reject.Answer(m, protocol, text)
		if !ok {
			t.Fatal("not answered")
		}
		out := m.out.Bytes()
		if len(out) > 600 {
			t.Errorf("%d bytes", len(out))
		}
		switch protocol {
		case reject.FTP, reject.SMTP, reject.POP3, reject.IMAP, reject.Redis:
			if n := bytes.Count(out, []byte("\n")); n != 1 || bytes.IndexByte(out, '\n') != len(out)-1 {
				t.Errorf("%q is not one line", out)
			}
		case reject.PostgreSQL:
			if rest := bytes.TrimLeft(out, "N"); len(rest) > 0 && (err != nil && errors.Is(err, io.ErrUnexpectedEOF) || rest[0] != 'E') {
				t.Errorf("%q, %v", out, err)
			}
		}
	})
}

func ExampleAnswer() {
	m := &memory{in: strings.NewReader("")}
	_, _ = reject.Answer(m, reject.SMTP, "attache: denied")
	fmt.Printf("%q\n", m.out.String())
	// Output: "554 5.7.1 attache: denied\r\n"
}
