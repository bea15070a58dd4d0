package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/mod/sumdb/note"
	"sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/ui"
)

// auditFile is the file of --audit-config: how records are kept and shown.
type auditFile struct {
	Retention   retention            `json:"retention"`
	Sinks       []v1alpha1.AuditSink `json:"sinks"`
	Checkpoints checkpoints          `json:"checkpoints"`
	UI          *page                `json:"ui"`
}

type retention struct {
	Keep     string `json:"keep"`     // a duration; "" or 0: for ever
	MaxBytes int64  `json:"maxBytes"` // 0: no bound
}

type checkpoints struct {
	Origin string           `json:"origin"` // default: the name of the signing key, which has the trust domain and the cluster
	Every  string           `json:"every"`  // default 1m
	Verify string           `json:"verify"` // how often the store is verified here; default 24h, 0 never
	Sinks  []checkpointSink `json:"sinks"`
}

// checkpointSink is a place outside: a bucket whose objects are locked, a
// witness that signs too, or a folder, such as one of another team's volume.
type checkpointSink struct {
	Name string `json:"name"`
	Type string `json:"type"` // objectLock, witness or directory
	Path string `json:"path"` // directory
	URL  string `json:"url"`  // witness
	Key  string `json:"key"`  // witness: its public key, as it prints it
	// CAFile has the roots of the witness' certificate; default: the system's.
	CAFile string `json:"caFile"`

	// objectLock; credentials are those of the AWS SDK's default chain.
	Bucket   string `json:"bucket"`
	Prefix   string `json:"prefix"`
	Region   string `json:"region"`
	Endpoint string `json:"endpoint"` // of a store that is not AWS
	Retain   string `json:"retain"`   // default: the bucket's own
}

type page struct {
	URL            string     `json:"url"`
	Hosts          []string   `json:"hosts"`
	Revoke         bool       `json:"revoke"`
	OIDC           pageLogin  `json:"oidc"`
	Grants         []ui.Grant `json:"grants"`
	SessionKeyFile string     `json:"sessionKeyFile"`
}

type pageLogin struct {
	Issuer           string   `json:"issuer"`
	ClientID         string   `json:"clientID"`
	ClientSecretFile string   `json:"clientSecretFile"`
	GroupsClaim      string   `json:"groupsClaim"`
	Scopes           []string `json:"scopes"`
}

// readAuditFile reads the file; without one everything has its default.
func readAuditFile(path string) (*auditFile, error) {
	f := &auditFile{}
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("--audit-config: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, f); err != nil {
			return nil, fmt.Errorf("--audit-config %s: %w", path, err)
		}
	}
	return f, f.check()
}

// check names all mistakes.
func (f *auditFile) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("--audit-config: "+format, args...)) }
	for at, text := range map[string]string{"retention.keep": f.Retention.Keep, "checkpoints.every": f.Checkpoints.Every, "checkpoints.verify": f.Checkpoints.Verify} {
		if text == "" {
			continue
		}
		if d, err := time.ParseDuration(text); err != nil || d < 0 {
			bad("%s: is %q; must be a duration, such as 2160h", at, text)
		}
	}
	if f.Retention.MaxBytes < 0 {
		bad("retention.maxBytes: is %d; must not be negative", f.Retention.MaxBytes)
	}
	var names []string
	for i := range f.Sinks {
		s := &f.Sinks[i]
		if s.Name == "" {
			s.Name = s.Type
		}
		if slices.Contains(names, s.Name) {
			bad("sinks[%d].name: is %q, as another's; a place is kept under it", i, s.Name)
		}
		names = append(names, s.Name)
	}
	for i, s := range f.Checkpoints.Sinks {
		switch {
		case s.CAFile != "" && s.Type != "witness":
			bad("checkpoints.sinks[%d].caFile: is for type witness", i)
		case s.Type == "directory" && s.Path != "":
		case s.Type == "witness" && s.URL != "" && s.Key != "":
		case s.Type == "objectLock" && s.Bucket != "" && duration(s.Retain) >= 0 && (s.Retain == "" || duration(s.Retain) > 0):
		default:
			bad("checkpoints.sinks[%d]: must have type objectLock with bucket, witness with url and key, or directory with path", i)
		}
	}
	return errors.Join(errs...)
}

// duration is a text that check let pass.
func duration(text string) time.Duration {
	d, _ := time.ParseDuration(text) // "" is 0
	return d
}

// outside are the places of checkpoints that the store's owner cannot rewrite.
func (c checkpoints) outside(ctx context.Context) ([]checkpoint.Sink, error) {
	var out []checkpoint.Sink
	for i, s := range c.Sinks {
		switch s.Type {
		case "directory":
			out = append(out, checkpoint.Directory{Path: s.Path})
			continue
		case "objectLock":
			client, err := bucketClient(ctx, s)
			if err != nil {
				return nil, fmt.Errorf("--audit-config: checkpoints.sinks[%d]: %w", i, err)
			}
			// As attache audit verify reads it: with a slash at its end, or empty.
			bucket, prefix, err := checkpoint.ParseURL("s3://" + s.Bucket + "/" + s.Prefix)
			if err != nil {
				return nil, fmt.Errorf("--audit-config: checkpoints.sinks[%d]: %w", i, err)
			}
			out = append(out, checkpoint.ObjectLock{Client: client, Bucket: bucket, Prefix: prefix, Retain: duration(s.Retain), Now: time.Now})
			continue
		}
		key, err := note.NewVerifier(strings.TrimSpace(s.Key))
		if err != nil {
			return nil, fmt.Errorf("--audit-config: checkpoints.sinks[%d].key: %w", i, err)
		}
		client, err := witnessClient(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--audit-config: checkpoints.sinks[%d].caFile: %w", i, err)
		}
		out = append(out, checkpoint.Witnessed{URL: s.URL, Key: key, Client: client})
	}
	return out, nil
}

// witnessClient trusts the roots of a file alone, or those of the system. The
// witness' answer is signed; the certificate keeps others from answering in its
// place that they cannot.
func witnessClient(caFile string) (*http.Client, error) {
	c := &http.Client{Timeout: 30 * time.Second}
	if caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(caFile) //nolint:gosec // the operator's file
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", caFile)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	c.Transport = t
	return c, nil
}

// bucketClient reaches an object store with the credentials that the process
// has.
func bucketClient(ctx context.Context, s checkpointSink) (*s3.Client, error) {
	var opts []func(*awsconfig.LoadOptions) error
	if s.Region != "" {
		opts = append(opts, awsconfig.WithRegion(s.Region))
	}
	c, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("credentials of the bucket: %w", err)
	}
	return s3.NewFromConfig(c, func(o *s3.Options) {
		if s.Endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = &s.Endpoint, true
		}
	}), nil
}

// noSVID is what a sink gets that asks for the workload's X.509-SVID: the
// collector has none.
func noSVID() (*x509svid.SVID, error) {
	return nil, errors.New("the collector has no X.509-SVID; give the sink certFile and keyFile")
}

// forever runs f until ctx ends, again after an error.
func (h *host) forever(ctx context.Context, what string, every time.Duration, f func(context.Context) error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			h.log.ErrorContext(ctx, what, "cause", err, "again_in", every.String())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
