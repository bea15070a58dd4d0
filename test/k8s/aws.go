package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/attache-dev/attache/test/cluster/node"
	"github.com/attache-dev/attache/test/servers"
)

// Names of MinIO, which is STS and S3 of the run, and what they share with the
// cluster: the audience of the tokens that STS takes.
const (
	stsHost     = "sts.vendor.test"
	storeHost   = "s3.vendor.test"
	stsAudience = "https://" + stsHost
	bucket      = "invoices"
)

// startStore starts MinIO, whose STS trusts the cluster's issuer: it reads the
// keys from the bucket, so they must have been published.
func (w *world) startStore(ctx context.Context) error {
	m, err := servers.StartMinIO(context.WithoutCancel(ctx), servers.MinIOOptions{ // it ends with this process
		Discovery: "https://" + issuerHost + "/.well-known/openid-configuration", ClientID: stsAudience,
		CAs: []string{w.file("ca.pem")}, Buckets: []string{bucket, "payroll"},
	})
	if err != nil {
		return fmt.Errorf("%w; run `make minio`", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store = m
	return nil
}

// serveStore is MinIO under its names. It notes the sessions that STS gives out.
func (w *world) serveStore(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	m := w.store
	w.mu.Unlock()
	if m == nil {
		http.Error(rw, "not started yet", http.StatusServiceUnavailable)
		return
	}
	(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", m.Addr
			p.Out.Host = p.In.Host // it is signed
		},
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(res *http.Response) error {
			who := "without a session"
			if res.Request.Header.Get("X-Amz-Security-Token") != "" {
				who = "by a session"
			}
			w.mu.Lock()
			w.calls = append(w.calls, call{r.Host, r.Method, r.URL.Path, who, res.StatusCode, r.RemoteAddr, r.Header.Clone()})
			w.mu.Unlock()
			if r.Host != stsHost {
				return nil
			}
			b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
			res.Body = io.NopCloser(bytes.NewReader(b))
			var answer struct {
				Result struct {
					Credentials struct{ SecretAccessKey, SessionToken string }
				} `xml:"AssumeRoleWithWebIdentityResult"`
			}
			if xml.Unmarshal(b, &answer) == nil {
				w.noteSecret(answer.Result.Credentials.SecretAccessKey)
				w.noteSecret(answer.Result.Credentials.SessionToken)
			}
			return err
		},
	}).ServeHTTP(rw, r)
}

// useStore is an unchanged boto3 program. It says what it was given, too.
const useStore = `
# for the search of what this process holds: https://s3.vendor.test/v1/
import boto3, botocore, os, time
s3 = boto3.client("s3", endpoint_url="https://s3.vendor.test", config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 8}))
s3.put_object(Bucket="invoices", Key="desk/may.txt", Body=b"42 euros")
print("read", s3.get_object(Bucket="invoices", Key="desk/may.txt")["Body"].read().decode(), flush=True)
for bucket, key in ("invoices", "board/plan.txt"), ("payroll", "desk/may.txt"):
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        print("WROTE", bucket, key, flush=True)
    except botocore.exceptions.ClientError as e:
        print("refused", bucket, e.response["ResponseMetadata"]["HTTPStatusCode"], flush=True)
print("done", flush=True)
time.sleep(3600)
`

// awsStore: an agent without keys uses S3. The pod's own identity buys a session
// cut to each call; the role would allow everything.
func awsStore(ctx context.Context, r *run) error {
	if err := r.world.startStore(ctx); err != nil {
		return err
	}
	ca := indent(string(r.world.ca.PEM()), 6)
	if err := r.apply(ctx, fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: store}
spec:
  ttl: 15m
  allowedNamespaces: {names: [%[1]s]}
  destinations:
  - host: %[2]s
    addresses: ["%[4]s"]
    caBundle: |
%[5]s
  aws:
    roleARN: %[6]s
    region: us-east-1
    endpoint: https://%[3]s
    addresses: ["%[4]s"]
    audience: %[7]s
    caBundle: |
%[5]s
    endpoints: [{host: %[2]s, service: s3}]
    policy:
      Version: "2012-10-17"
      Statement:
      - {Effect: Allow, Action: ["s3:GetObject", "s3:PutObject"], Resource: ["arn:aws:s3:::%[8]s/desk/*"]}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: store, namespace: %[1]s}
spec:
  rules:
  - {name: objects, hosts: [%[2]s], action: allow, rawPaths: true, credential: {provider: store}}
`, nsAWS, storeHost, stsHost, node.Address, ca, r.world.store.RoleARN, stsAudience, bucket)); err != nil {
		return err
	}
	if _, err := r.condition(ctx, nsAWS, "accesspolicy/store", "ResolvedRefs", "True"); err != nil {
		return err
	}
	a := app{name: "store", image: imageClients, command: []string{"/usr/bin/python3", "-c", useStore}}
	if err := r.apply(ctx, a.deployment(nsAWS)); err != nil {
		return err
	}
	log := ""
	if err := until(ctx, "the program has used the store", func() (bool, string) {
		log = r.appLog(ctx, nsAWS, a.name)
		return strings.Contains(log, "done"), log
	}); err != nil {
		return err
	}
	for _, want := range []string{"read 42 euros", "refused invoices 403", "refused payroll 403"} {
		if !strings.Contains(log, want) {
			return fmt.Errorf("%q is not in what the program says: %s", want, log)
		}
	}
	calls := r.world.seen(storeHost, "/"+bucket+"/desk/")
	if len(calls) < 2 || calls[0].Who != "by a session" {
		return fmt.Errorf("the store saw %d calls: %+v", len(calls), calls)
	}
	if len(r.world.seen(stsHost, "/")) == 0 {
		return errors.New("nobody asked STS for a session")
	}
	p, err := r.pod(ctx, nsAWS, "app="+a.name)
	if err != nil {
		return err
	}
	return r.holdsNothing(ctx, nsAWS, p, "app")
}
