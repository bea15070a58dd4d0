package objectstore

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/internal/sinktest"
	"github.com/attache-dev/attache/test/servers"
)

const (
	envEndpoint = "ATTACHE_TEST_S3"
	envUser     = "ATTACHE_TEST_S3_USER"
	envPassword = "ATTACHE_TEST_S3_PASSWORD"
)

func TestMain(m *testing.M) {
	sinktest.Main(m, func(dir string) (ship.Sink, error) {
		return New(Options{
			Endpoint: os.Getenv(envEndpoint), Region: "us-east-1", Bucket: "records", Prefix: "killed", Every: time.Nanosecond, State: filepath.Join(dir, "begun"),
			Credentials: credentials.NewStaticCredentialsProvider(os.Getenv(envUser), os.Getenv(envPassword), ""),
		})
	})
}

func minio(t *testing.T) *servers.MinIO {
	t.Helper()
	s, err := servers.StartMinIO(t.Context(), servers.MinIOOptions{Buckets: []string{"records"}})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skipf("needs MinIO: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func options(m *servers.MinIO, prefix string) Options {
	return Options{
		Endpoint: m.URL, Region: m.Region, Bucket: "records", Prefix: prefix, Every: time.Nanosecond,
		Credentials: credentials.NewStaticCredentialsProvider(m.RootUser, m.RootPassword, ""),
	}
}

func sink(t *testing.T, o Options) *Sink {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// events reads all objects below prefix.
func events(t *testing.T, c *s3.Client, prefix string) (all [][]byte, keys []string) {
	t.Helper()
	p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: aws.String("records"), Prefix: aws.String(prefix + "/")})
	for p.HasMorePages() {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("records"), Key: o.Key})
			if err != nil {
				t.Fatal(err)
			}
			z, err := gzip.NewReader(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if err = errors.Join(err, got.Body.Close()); err != nil {
				t.Fatal(err)
			}
			for l := range bytes.Lines(b) {
				all = append(all, bytes.TrimSuffix(l, []byte{'\n'}))
			}
			keys = append(keys, *o.Key)
		}
	}
	return all, keys
}

// TestMinIO ships to a real server: with a process that is killed again and
// again, through an outage, twice the same, and locked.
func TestMinIO(t *testing.T) {
	m := minio(t)
	client := sink(t, options(m, "x")).s3

	t.Run("kill -9", func(t *testing.T) {
		dir := t.TempDir()
		sinktest.Killed(t, dir, 4, envEndpoint+"="+m.URL, envUser+"="+m.RootUser, envPassword+"="+m.RootPassword)
		got, _ := events(t, client, "killed")
		t.Logf("%d came more than once", sinktest.Whole(t, dir, got))
	})
	t.Run("away and back", func(t *testing.T) {
		gate := &gate{}
		gate.shut.Store(true)
		o := options(m, "away")
		o.Client = &http.Client{Transport: gate}
		dir := sinktest.Shipped(t, sink(t, o), 60, func() {
			for gate.refused.Load() < 3 {
				time.Sleep(time.Millisecond)
			}
			gate.shut.Store(false)
		})
		got, _ := events(t, client, "away")
		sinktest.Whole(t, dir, got)
	})
	t.Run("idempotent", func(t *testing.T) {
		s := sink(t, options(m, "twice"))
		b := batch(t, 7, 3)
		for range 2 {
			if err := s.Send(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		got, keys := events(t, client, "twice")
		if want := "twice/pod-1/e1/00000000000000000007-00000000000000000009.ocsf.jsonl.gz"; len(got) != 3 || len(keys) != 1 || keys[0] != want {
			t.Errorf("%d events in %v; want 3 in %s", len(got), keys, want)
		}
	})
	t.Run("locked", func(t *testing.T) {
		_, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("locked"), ObjectLockEnabledForBucket: aws.Bool(true)})
		if err != nil {
			t.Fatal(err)
		}
		o := options(m, "held")
		o.Bucket, o.Retain = "locked", time.Hour
		if err := sink(t, o).Send(t.Context(), batch(t, 1, 2)); err != nil {
			t.Fatal(err)
		}
		l, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: aws.String("locked")})
		if err != nil || len(l.Versions) != 1 {
			t.Fatalf("%v, %v", l, err)
		}
		_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("locked"), Key: l.Versions[0].Key, VersionId: l.Versions[0].VersionId, BypassGovernanceRetention: aws.Bool(true)})
		if err == nil {
			t.Error("the root user deleted a locked object")
		}
	})
	t.Run("no such bucket", func(t *testing.T) {
		o := options(m, "x")
		o.Bucket = "missing"
		err := sink(t, o).Send(t.Context(), batch(t, 1, 1))
		if err == nil || errors.Is(err, ship.ErrRejected) || !strings.Contains(err.Error(), "NoSuchBucket") {
			t.Errorf("got %v; an operator can make the bucket, so that it is tried again", err)
		}
	})
	t.Run("refused for good", func(t *testing.T) {
		o := options(m, strings.Repeat("long/", 300))
		err := sink(t, o).Send(t.Context(), batch(t, 1, 1))
		if !errors.Is(err, ship.ErrRejected) {
			t.Errorf("a key of 1,500 bytes got %v; want a rejection", err)
		}
	})
}

// gate is a network that is down for a time.
type gate struct {
	shut    atomic.Bool
	refused atomic.Int64
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.shut.Load() {
		g.refused.Add(1)
		return nil, errors.New("connection refused")
	}
	return http.DefaultTransport.RoundTrip(r)
}

func batch(t *testing.T, from, n uint64) ship.Batch {
	b := ship.Batch{Producer: "pod-1"}
	for i := range n {
		b.Lines = append(b.Lines, sinktest.Line(t, "e1", from+i, audit.Record{Type: audit.TypeEnd, ID: audit.NewID(), Request: &audit.Request{Host: "h", Path: "/"}, Result: &audit.Result{Outcome: audit.OutcomeOK}}))
	}
	return b
}

// TestPace: quiet producers do not make an object a record, full batches and the
// last one do not wait.
func TestPace(t *testing.T) {
	puts := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { puts++ }))
	defer srv.Close()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := sink(t, Options{Endpoint: srv.URL, Region: "r", Bucket: "b", Credentials: credentials.NewStaticCredentialsProvider("u", "p", ""), Every: time.Hour, now: func() time.Time { return now }})
	send := func(b ship.Batch) error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if len(b.Lines) >= ship.MaxLines || s.last.IsZero() || now.Sub(s.last) >= time.Hour {
			ctx = t.Context()
		}
		return s.Send(ctx, b)
	}
	if err := send(batch(t, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := send(batch(t, 2, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second small batch got %v; want it to wait", err)
	}
	if err := send(batch(t, 2, ship.MaxLines)); err != nil {
		t.Errorf("a full batch: %v", err)
	}
	now = now.Add(2 * time.Hour)
	if err := send(batch(t, 600, 1)); err != nil {
		t.Error(err)
	}
	last := batch(t, 700, 1)
	last.Lines = append(last.Lines, sinktest.Line(t, "e1", 701, audit.Record{Type: audit.TypeEpochEnd}))
	if err := s.Send(t.Context(), last); err != nil {
		t.Error(err)
	}
	if puts != 4 {
		t.Errorf("%d objects, want 4", puts)
	}
}

func TestOptions(t *testing.T) {
	c := credentials.NewStaticCredentialsProvider("u", "p", "")
	for name, o := range map[string]Options{
		"no bucket": {Region: "r", Credentials: c}, "no region": {Bucket: "b", Credentials: c}, "no credentials": {Bucket: "b", Region: "r"},
		"format": {Bucket: "b", Region: "r", Credentials: c, Format: "parquet"},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
