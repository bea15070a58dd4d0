// Package syslog sends records to a syslog server: messages of RFC 5424, over
// TLS with octet counting (RFC 5425).
//
// Syslog has no acknowledgement. So each batch is a connection of its own: the
// messages, then close_notify, and the batch is answered for when the server
// has closed its side too, which it does after it has read everything.
package syslog

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/form"
)

// Defaults of [Options].
const (
	DefaultMaxMessage = 64 << 10
	DefaultTimeout    = 10 * time.Second
)

// Options of a [Sink]. Address is required, and TLS unless Cleartext.
type Options struct {
	Name    string // default syslog
	Address string // HOST:PORT; 6514 is the port of syslog over TLS
	TLS     *tls.Config
	// Cleartext sends plain TCP with octet counting (RFC 6587): for a server on
	// this machine.
	Cleartext bool
	Format    string // default form.OCSF
	Hostname  string // HOSTNAME of the messages; default the machine's
	// MaxMessage bounds a message in bytes. A larger one is refused and set
	// aside: servers cut what they do not take. Default DefaultMaxMessage.
	MaxMessage int
	Timeout    time.Duration // of one batch; default DefaultTimeout
	// State is the file for the begins that wait for their ends; empty: in the
	// folder that UseState names, and without that lost with the process.
	State string
}

// Sink is a syslog server.
type Sink struct {
	o    Options
	form *form.Former
}

// New returns a sink; it connects when there is something to send.
func New(o Options) (*Sink, error) {
	o.Name, o.Format = cmp.Or(o.Name, "syslog"), cmp.Or(o.Format, form.OCSF)
	o.MaxMessage, o.Timeout = cmp.Or(o.MaxMessage, DefaultMaxMessage), cmp.Or(o.Timeout, DefaultTimeout)
	if o.Hostname == "" {
		o.Hostname, _ = os.Hostname() // empty becomes -, the nil value
	}
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return nil, fmt.Errorf("address is %q; must be HOST:PORT: %w", o.Address, err)
	}
	if o.TLS == nil && !o.Cleartext {
		return nil, errors.New("syslog needs TLS, unless it is said to go in the clear")
	}
	f, err := form.Open(o.Format, o.State)
	if err != nil {
		return nil, err
	}
	return &Sink{o, f}, nil
}

// Name labels the sink.
func (s *Sink) Name() string { return s.o.Name }

// UseState keeps the begins that wait in dir, unless Options.State says where.
func (s *Sink) UseState(dir string) (err error) {
	if s.o.State == "" {
		s.form, err = form.Open(s.o.Format, filepath.Join(dir, "sink-"+s.o.Name+".begun"))
	}
	return err
}

// Send sends the batch over a connection of its own.
func (s *Sink) Send(ctx context.Context, b ship.Batch) error {
	x, err := s.form.Form(b.Lines)
	if err != nil {
		return err
	}
	var text []byte
	refused := x.Damaged
	large := map[[2]string]bool{}
	for i := range x.Events {
		m := s.message(&x.Events[i], b.Producer)
		if len(m) > s.o.MaxMessage {
			large[[2]string{x.Events[i].Epoch, strconv.FormatUint(x.Events[i].Sequence, 10)}] = true
			continue
		}
		text = strconv.AppendInt(text, int64(len(m)), 10)
		text = append(append(text, ' '), m...)
	}
	for _, l := range b.Lines {
		if large[[2]string{l.Epoch, strconv.FormatUint(l.Sequence, 10)}] {
			refused = append(refused, l)
		}
	}
	if len(text) > 0 {
		if err := s.deliver(ctx, text); err != nil {
			return fmt.Errorf("syslog server %s: %w", s.o.Address, err)
		}
	}
	if err := x.Commit(); err != nil {
		return err
	}
	if len(refused) > 0 {
		return &ship.RejectedError{Lines: refused, Count: len(refused), Reason: fmt.Sprintf("no record, or larger than the server takes (%d bytes)", s.o.MaxMessage)}
	}
	return nil
}

// deliver writes text and waits until the server has read it.
func (s *Sink) deliver(ctx context.Context, text []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	d := &net.Dialer{}
	raw, err := d.DialContext(ctx, "tcp", s.o.Address)
	if err != nil {
		return err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if s.o.Cleartext {
		tcp, ok := raw.(*net.TCPConn)
		if !ok {
			return errors.New("no TCP connection")
		}
		if _, err := tcp.Write(text); err != nil {
			return err
		}
		return cmp.Or(tcp.CloseWrite(), confirmed(tcp))
	}
	c := tls.Client(raw, s.config())
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := c.Write(text); err != nil {
		return err
	}
	// A server that closes before it has read everything says close_notify, and
	// its kernel then resets the connection: so TCP must end in good order too.
	return cmp.Or(c.CloseWrite(), confirmed(c), confirmed(raw))
}

// config is the TLS configuration with the server's name.
func (s *Sink) config() *tls.Config {
	c := s.o.TLS.Clone()
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(s.o.Address) // checked by New
	}
	return c
}

// confirmed waits until the server closes its side in good order. A server says
// nothing in syslog, so that what it says is not looked at, but bounded.
func confirmed(r io.Reader) error {
	const most = 64 << 10
	n, err := io.Copy(io.Discard, io.LimitReader(r, most))
	if err != nil {
		return fmt.Errorf("did not close in good order, so that it may not have read everything: %w", err)
	}
	if n == most {
		return errors.New("answers without end; is it a syslog server?")
	}
	return nil
}

// Priorities: facility 13 (log audit) with severities informational and warning.
const (
	facility = 13
	info     = 6
	warning  = 4
)

// message is e in RFC 5424.
func (s *Sink) message(e *form.Event, producer string) []byte {
	severity := info
	if e.Failed {
		severity = warning
	}
	b := make([]byte, 0, len(e.JSON)+256)
	b = append(b, '<')
	b = strconv.AppendInt(b, facility*8+int64(severity), 10)
	b = append(b, ">1 "...)
	if e.Time.IsZero() || e.Time.Year() > 9999 {
		b = append(b, '-')
	} else {
		b = e.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	}
	b = append(b, ' ')
	b = append(b, word(s.o.Hostname, 255)...)
	b = append(b, " attache "...)
	b = append(b, word(producer, 128)...)
	b = append(b, ' ')
	b = append(b, word(cmp.Or(e.Name, "request"), 32)...)
	// Both are registered SD-IDs. sequenceId is of 31 bits (RFC 5424 section 7.3.1).
	b = append(b, ` [origin software="attache"][meta sequenceId="`...)
	b = strconv.AppendUint(b, e.Sequence&0x7fffffff, 10)
	b = append(b, `"] `...)
	b = append(b, "\xef\xbb\xbf"...)
	return append(b, e.JSON...)
}

// word is s as a word of a header: printable ASCII without spaces, or -.
func word(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r
		}
		return -1
	}, s)
	return cmp.Or(s[:min(len(s), limit)], "-")
}
