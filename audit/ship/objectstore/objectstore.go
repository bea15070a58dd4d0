// Package objectstore writes records to a bucket of S3 or of a store that speaks
// its API: one compressed object a batch, named by what is in it, so that a
// batch which is sent again replaces itself.
package objectstore

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/form"
)

// Defaults of [Options].
const (
	DefaultEvery   = 10 * time.Second
	DefaultTimeout = 30 * time.Second
)

// Options of a [Sink]. Region, Bucket and Credentials are required.
type Options struct {
	Name        string // default objectstore
	Endpoint    string // URL; empty: AWS
	Region      string
	Bucket      string
	Prefix      string
	Credentials aws.CredentialsProvider
	Client      *http.Client // default http.DefaultClient
	Format      string       // default form.OCSF
	// Every is the least time between objects that are not full, so that quiet
	// producers do not make one a record. Default DefaultEvery.
	Every time.Duration
	// Retain locks each object for so long, so that nobody can delete it, us
	// included: the bucket must have object lock on. Zero: not locked.
	Retain time.Duration
	// Governance locks so that those with a special permission can delete;
	// otherwise nobody can (compliance mode).
	Governance bool
	Timeout    time.Duration // of one attempt; default DefaultTimeout
	// State is the file for the begins that wait for their ends; empty: in the
	// folder that UseState names, and without that lost with the process.
	State string

	now func() time.Time
}

// Sink is a bucket.
type Sink struct {
	o    Options
	s3   *s3.Client
	form *form.Former
	last time.Time // when the last object was made
}

// New returns a sink; it calls the store when there is something to send.
func New(o Options) (*Sink, error) {
	o.Name, o.Format = cmp.Or(o.Name, "objectstore"), cmp.Or(o.Format, form.OCSF)
	o.Every, o.Timeout = cmp.Or(o.Every, DefaultEvery), cmp.Or(o.Timeout, DefaultTimeout)
	if o.now == nil {
		o.now = time.Now
	}
	if o.Bucket == "" || o.Region == "" || o.Credentials == nil {
		return nil, errors.New("bucket, region and credentials are required")
	}
	f, err := form.Open(o.Format, o.State)
	if err != nil {
		return nil, err
	}
	c := s3.New(s3.Options{
		Region: o.Region, Credentials: o.Credentials, RetryMaxAttempts: 1, // the shipper tries again
		UsePathStyle: o.Endpoint != "",
	}, func(x *s3.Options) {
		if o.Endpoint != "" {
			x.BaseEndpoint = &o.Endpoint
		}
		if o.Client != nil {
			x.HTTPClient = o.Client
		}
	})
	return &Sink{o: o, s3: c, form: f}, nil
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

// Send makes one object of the batch.
func (s *Sink) Send(ctx context.Context, b ship.Batch) error {
	if err := s.pace(ctx, b); err != nil {
		return err
	}
	x, err := s.form.Form(b.Lines)
	if err != nil {
		return err
	}
	if len(x.Events) > 0 {
		if err := s.put(ctx, b, x.Events); err != nil {
			return err
		}
		s.last = s.o.now()
	}
	if err := x.Commit(); err != nil {
		return err
	}
	if n := len(x.Damaged); n > 0 {
		return &ship.RejectedError{Lines: x.Damaged, Count: n, Reason: "the line is no record"}
	}
	return nil
}

// pace waits so that objects are not many and small. A full batch, and the last
// of an epoch, go at once.
func (s *Sink) pace(ctx context.Context, b ship.Batch) error {
	wait := s.o.Every - s.o.now().Sub(s.last)
	if s.last.IsZero() || wait <= 0 || len(b.Lines) >= ship.MaxLines || b.Bytes() >= ship.MaxBytes/2 {
		return nil
	}
	if typ, _, _ := b.Lines[len(b.Lines)-1].Head(); typ == audit.TypeEpochEnd {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Sink) put(ctx context.Context, b ship.Batch, events []form.Event) error {
	var body bytes.Buffer
	z := gzip.NewWriter(&body) // no time in the header: the same batch makes the same bytes
	for _, e := range events {
		_, _ = z.Write(e.JSON) // to memory
		_, _ = z.Write([]byte{'\n'})
	}
	if err := z.Close(); err != nil {
		return err
	}
	in := &s3.PutObjectInput{
		Bucket: &s.o.Bucket, Key: aws.String(s.key(b)), Body: bytes.NewReader(body.Bytes()),
		ContentType: aws.String("application/x-ndjson"), ContentEncoding: aws.String("gzip"),
	}
	if s.o.Retain > 0 {
		in.ObjectLockMode = types.ObjectLockModeCompliance
		if s.o.Governance {
			in.ObjectLockMode = types.ObjectLockModeGovernance
		}
		in.ObjectLockRetainUntilDate = aws.Time(s.o.now().Add(s.o.Retain))
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	if _, err := s.s3.PutObject(ctx, in); err != nil {
		return s.explain(err)
	}
	return nil
}

// key is PREFIX/PRODUCER/EPOCH/FIRST-LAST.FORMAT.jsonl.gz; numbers are of a fixed
// width, so that listing is in order.
func (s *Sink) key(b ship.Batch) string {
	first, last := b.Lines[0], b.Lines[len(b.Lines)-1]
	name := fmt.Sprintf("%020d-%020d.%s.jsonl.gz", first.Sequence, last.Sequence, s.o.Format)
	if last.Epoch != first.Epoch {
		name = fmt.Sprintf("%020d-%s-%020d.%s.jsonl.gz", first.Sequence, clean(last.Epoch), last.Sequence, s.o.Format)
	}
	return path.Join(s.o.Prefix, clean(b.Producer), clean(first.Epoch), name)
}

// explain tells what will never work from what an operator, or time, can cure.
func (s *Sink) explain(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return fmt.Errorf("put to bucket %s: %w", s.o.Bucket, err)
	}
	switch api.ErrorCode() {
	case "EntityTooLarge", "KeyTooLongError", "MaxMessageLengthExceeded", "XMinioInvalidObjectName":
		return &ship.RejectedError{Reason: api.ErrorCode() + ": " + api.ErrorMessage()}
	}
	return fmt.Errorf("put to bucket %s: %s: %w", s.o.Bucket, api.ErrorCode(), err)
}

// clean makes a name a part of a key.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_", r) {
			return r
		}
		return '_'
	}, s)
	return cmp.Or(s, "unknown")
}
