// Package otlp is a sink of package ship that speaks OpenTelemetry's protocol
// for logs, over gRPC or HTTP, to attache-control or to any OpenTelemetry
// Collector.
//
// It writes the protocol's messages itself: the exporters of OpenTelemetry's Go
// SDK keep to themselves which records a receiver refused (partial_success),
// and drop what does not fit their queue (docs/adr/0024).
//
// Specification: OTLP 1.11.0 (opentelemetry.io/docs/specs/otlp).
package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/secret"
)

// Protocols.
const (
	GRPC = "grpc"
	HTTP = "http"
)

// DefaultTimeout bounds one attempt.
const DefaultTimeout = 10 * time.Second

// Config of a [Sink]. Name and Endpoint are required.
type Config struct {
	Name     string
	Protocol string // GRPC (default) or HTTP
	// Endpoint is HOST:PORT for gRPC, a URL for HTTP; /v1/logs is added to one
	// without a path.
	Endpoint string
	// TLS verifies the receiver and may present a certificate; nil: without TLS.
	TLS *tls.Config
	// Headers are asked for each attempt: name and value.
	Headers []Header
	Gzip    bool
	Timeout time.Duration // of one attempt; default DefaultTimeout
	// Control says that the receiver is attache-control, which checks the chain
	// and knows repetitions. Without it records say that they are not
	// tamper-evident, and carry attributes for people.
	Control bool
	// Resource are further attributes of the producer, such as k8s.pod.name.
	Resource map[string]string
	// Service is service.name; default attache.
	Service string
	Version string // service.version
}

// Header is sent with each attempt.
type Header struct {
	Name  string
	Value func() (secret.Value, error)
}

// transport sends one request.
type transport interface {
	export(ctx context.Context, req *collogs.ExportLogsServiceRequest, headers map[string]secret.Value) (*collogs.ExportLogsServiceResponse, error)
	io.Closer
}

// Sink implements [ship.Sink].
type Sink struct {
	c Config
	t transport
}

// New returns a sink; it does not connect.
func New(c Config) (*Sink, error) {
	if c.Name == "" || c.Endpoint == "" {
		return nil, errors.New("otlp sink: name and endpoint are required")
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Service == "" {
		c.Service = "attache"
	}
	s := &Sink{c: c}
	var err error
	switch c.Protocol {
	case "", GRPC:
		s.t, err = newGRPC(c)
	case HTTP:
		s.t, err = newHTTP(c)
	default:
		err = fmt.Errorf("otlp sink %s: protocol is %q; must be grpc or http", c.Name, c.Protocol)
	}
	return s, err
}

// Name implements [ship.Sink].
func (s *Sink) Name() string { return s.c.Name }

// Close ends the connection.
func (s *Sink) Close() error { return s.t.Close() }

// Send implements [ship.Sink].
func (s *Sink) Send(ctx context.Context, b ship.Batch) error {
	headers := map[string]secret.Value{}
	for _, h := range s.c.Headers {
		v, err := h.Value()
		if err != nil {
			return fmt.Errorf("header %s: %w", h.Name, err)
		}
		headers[h.Name] = v
	}
	refused, err := s.send(ctx, b, headers)
	if err != nil {
		return err
	}
	return refused.asError(b)
}

// refusals are what a receiver said no to, of one batch.
type refusals struct {
	lines  []audit.Line
	some   int // it did not say which
	reason string
}

func (r *refusals) asError(b ship.Batch) error {
	switch {
	case len(r.lines) == 0 && r.some == 0:
		return nil
	case r.some > 0:
		return &ship.RejectedError{Lines: b.Lines, Count: len(r.lines) + r.some, Reason: r.reason + " (it does not say which)"}
	}
	return &ship.RejectedError{Lines: r.lines, Count: len(r.lines), Reason: r.reason}
}

// send exports b, in parts where the receiver refuses some of it: one bad line
// must not take the others with it.
func (s *Sink) send(ctx context.Context, b ship.Batch, headers map[string]secret.Value) (*refusals, error) {
	attempt, cancel := context.WithTimeout(ctx, s.c.Timeout)
	defer cancel()
	answer, err := s.t.export(attempt, s.request(b), headers)
	if err != nil {
		var no *refusedError
		if !errors.As(err, &no) {
			return nil, err
		}
		if len(b.Lines) == 1 {
			return &refusals{lines: b.Lines, reason: no.Error()}, nil
		}
		return s.halves(ctx, b, headers)
	}
	n := int(min(answer.GetPartialSuccess().GetRejectedLogRecords(), int64(len(b.Lines))))
	reason := answer.GetPartialSuccess().GetErrorMessage()
	switch {
	case n <= 0:
		return &refusals{}, nil
	case n == len(b.Lines):
		return &refusals{lines: b.Lines, reason: reason}, nil
	case s.c.Control: // it knows repetitions, so ask it which
		return s.halves(ctx, b, headers)
	}
	return &refusals{some: n, reason: reason}, nil
}

func (s *Sink) halves(ctx context.Context, b ship.Batch, headers map[string]secret.Value) (*refusals, error) {
	out := &refusals{}
	mid := len(b.Lines) / 2
	for _, lines := range [][]audit.Line{b.Lines[:mid], b.Lines[mid:]} {
		r, err := s.send(ctx, ship.Batch{Producer: b.Producer, Lines: lines}, headers)
		if err != nil {
			return nil, err
		}
		if r.some > 0 { // one of the halves, whole
			r.lines, r.some = lines, 0
		}
		out.lines = append(out.lines, r.lines...)
		if r.reason != "" {
			out.reason = r.reason
		}
	}
	return out, nil
}

// refusedError is an answer that sending the same again would not change.
type refusedError struct{ why string }

// Error says why.
func (e *refusedError) Error() string { return e.why }

// laterError is an answer that says when to try again.
type laterError struct {
	err   error
	after time.Duration
}

// Error implements error.
func (e *laterError) Error() string { return e.err.Error() }

// Unwrap implements errors.Unwrap.
func (e *laterError) Unwrap() error { return e.err }

// RetryAfter is what package ship asks for.
func (e *laterError) RetryAfter() time.Duration { return e.after }

// later is err, with a hint if there is one.
func later(err error, after time.Duration) error {
	if after <= 0 {
		return err
	}
	return &laterError{err, after}
}

// CheckEndpoint says what is wrong with an endpoint, as the configuration has
// it.
func CheckEndpoint(protocol, endpoint string) error {
	if protocol != HTTP {
		if strings.Contains(endpoint, "/") || !strings.Contains(endpoint, ":") {
			return errors.New("must be HOST:PORT, such as collector.example.com:4317")
		}
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return errors.New("must be an http or https URL without user and query, such as https://collector.example.com:4318")
	}
	return nil
}
