// Package sinks opens the sinks of records that only programs of an operator
// have: a sidecar has no files of an operator, and does not carry a client of S3.
package sinks

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/file"
	"github.com/attache-dev/attache/audit/ship/objectstore"
	"github.com/attache-dev/attache/internal/dataplane"
)

// Local are the types file and objectstore, for dataplane.OpenSinks.
func Local(svid dataplane.SVIDFunc) map[string]dataplane.Opener {
	return map[string]dataplane.Opener{
		api.SinkFile: func(s *v1alpha1.AuditSink) (ship.Sink, error) {
			return file.New(file.Options{Name: s.Name, Path: s.File.Path, Format: s.Format, MaxBytes: s.File.MaxBytes, MaxAge: s.File.MaxAge.D(), Keep: s.File.Keep})
		},
		api.SinkObjectStore: func(s *v1alpha1.AuditSink) (ship.Sink, error) { return objectStore(s, svid) },
	}
}

func objectStore(s *v1alpha1.AuditSink, svid dataplane.SVIDFunc) (ship.Sink, error) {
	o := s.ObjectStore
	id, err1 := word(o.AccessKeyFile)
	key, err2 := word(o.SecretKeyFile)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	t, err := dataplane.SinkTLS(&s.TLS, api.SinkHTTP, s.Endpoint, svid)
	if err != nil {
		return nil, err
	}
	return objectstore.New(objectstore.Options{
		Name: s.Name, Endpoint: s.Endpoint, Region: o.Region, Bucket: o.Bucket, Prefix: o.Prefix, Format: s.Format,
		Credentials: credentials.NewStaticCredentialsProvider(id, key, ""), Client: &http.Client{Transport: &http.Transport{TLSClientConfig: t, Proxy: http.ProxyFromEnvironment}},
		Every: o.Every.D(), Retain: o.Retain.D(), Governance: o.LockMode == "governance", Timeout: s.Timeout.D(),
	})
}

// word reads a file of one word.
func word(path string) (string, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return "", err
	}
	w := strings.TrimSpace(string(b))
	if w == "" || strings.ContainsAny(w, " \t\r\n") {
		return "", fmt.Errorf("%s must hold one word", path)
	}
	return w, nil
}
