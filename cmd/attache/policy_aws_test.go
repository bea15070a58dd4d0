package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/policy"
)

const awsDocuments = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: aws}
spec:
  destinations: [{host: "**.amazonaws.com"}]
  aws:
    roleARN: arn:aws:iam::123456789012:role/${workload.name}
    region: eu-west-1
    partitionKeys: {Orders: id}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: minio}
spec:
  destinations: [{host: minio.example.com, port: 9000}, {host: "*.minio.example.com", port: 9000}]
  placeholders: [{env: MINIO_ID}, {env: MINIO_SECRET}]
  aws:
    roleARN: arn:minio:iam:::role/first
    region: us-east-1
    endpoint: https://minio.example.com:9000
    endpoints: [{host: minio.example.com, port: 9000, service: s3, virtualHost: true}]
    noEscapes: true
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: chained}
spec:
  destinations: [{host: sqs.eu-west-1.amazonaws.com}]
  placeholders: [{env: CHAINED_ID}, {env: CHAINED_SECRET}]
  aws:
    roleARN: arn:aws:iam::123456789012:role/first
    region: eu-west-1
    chain: {roleARN: "arn:aws:iam::210987654321:role/${human.email}"}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p}
spec:
  rules:
    - {name: aws, hosts: ["**.amazonaws.com"], action: allow, credential: {provider: aws}}
    - {name: secret, hosts: [media.s3.eu-west-1.amazonaws.com], paths: ["/secret/**"], action: deny}
    - {name: minio, hosts: [minio.example.com, "*.minio.example.com"], ports: [9000], action: allow, credential: {provider: minio}}
    - {name: chained, hosts: [sqs.eu-west-1.amazonaws.com], paths: ["/**"], action: allow, credential: {provider: chained, role: "arn:aws:iam::123456789012:role/own"}}
`

// TestExplainAWS: what `policy explain` finds in calls to AWS as curl would
// write them.
func TestExplainAWS(t *testing.T) {
	dir := t.TempDir()
	item := filepath.Join(t.TempDir(), "item.json")
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(awsDocuments), 0o600),
		os.WriteFile(item, []byte(`{"TableName":"Orders","Item":{"id":{"S":"7"},"n":{"N":"1"}}}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	const date, key = "20261123", "AKIA0123456789ABCDEF"
	signed := "Authorization: AWS4-HMAC-SHA256 Credential=" + key + "/" + date + "/eu-central-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("a", 64)
	presigned := "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + key + "%2F" + date + "%2Feu-west-1%2Fs3%2Faws4_request&X-Amz-Date=" + date + "T120000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&versionId=v1&X-Amz-Signature=" + strings.Repeat("a", 64)
	tests := []struct {
		name   string
		args   []string
		call   string // service operation region account
		policy string // a part of the session policy
		role   string
		denied string
	}{
		{name: "by host", args: []string{"GET", "https://media.s3.eu-west-1.amazonaws.com/a%20b"}, call: "s3 GetObject eu-west-1 123456789012", policy: `"Resource":"arn:aws:s3:::media/a b"`, role: "arn:aws:iam::123456789012:role/curl"},
		{name: "odd key", args: []string{"GET", "https://media.s3.eu-west-1.amazonaws.com/a%2Fb//../c"}, call: "s3 GetObject eu-west-1 123456789012", policy: `"Resource":"arn:aws:s3:::media/a/b//../c"`},
		{name: "a host without region", args: []string{"GET", "https://media.s3.amazonaws.com/a"}, call: "s3 GetObject eu-west-1 123456789012", policy: `arn:aws:s3:::media/a`},
		{name: "by signature", args: []string{"GET", "https://media.s3.amazonaws.com/a", "--header", signed, "--header", "X-Amz-Date: " + date + "T120000Z"}, call: "s3 GetObject eu-central-1 123456789012", policy: `arn:aws:s3:::media/a`},
		{name: "presigned", args: []string{"GET", "https://media.s3.eu-west-1.amazonaws.com/a" + presigned}, call: "s3 GetObject eu-west-1 123456789012", policy: `"s3:VersionId":"v1"`},
		{name: "a broken signature", args: []string{"GET", "https://media.s3.eu-west-1.amazonaws.com/a", "--header", "Authorization: AWS4-HMAC-SHA256 x"}, denied: "malformed AWS signature"},
		{name: "a body from a file", args: []string{"POST", "https://dynamodb.eu-west-1.amazonaws.com/", "--header", "X-Amz-Target: DynamoDB_20120810.PutItem", "--header", "Content-Type: application/x-amz-json-1.0", "--data", "@" + item},
			call: "dynamodb PutItem eu-west-1 123456789012", policy: `"dynamodb:LeadingKeys":"7"`},
		{name: "a form", args: []string{"POST", "https://sns.eu-west-1.amazonaws.com/", "--data", "Action=Publish&TopicArn=arn:aws:sns:eu-west-1:123456789012:t&Message=m"}, call: "sns Publish eu-west-1 123456789012", policy: `"Action":"sns:Publish"`},
		{name: "no body", args: []string{"POST", "https://sns.eu-west-1.amazonaws.com/", "--header", "Content-Type: application/x-www-form-urlencoded"}, denied: "the whole body is needed"},
		{name: "another server", args: []string{"PUT", "https://minio.example.com:9000/media/a"}, call: "s3 PutObject us-east-1 ", policy: `arn:aws:s3:::media/a`, role: "arn:minio:iam:::role/first"},
		{name: "another server, virtual host", args: []string{"PUT", "https://media.minio.example.com:9000/a"}, call: "s3 PutObject us-east-1 ", policy: `arn:aws:s3:::media/a`},
		{name: "a server without escapes", args: []string{"GET", "https://minio.example.com:9000/media/a%2A"}, call: "s3 GetObject us-east-1 ", denied: "cannot be escaped"},
		{name: "a copy", args: []string{"PUT", "https://media.s3.eu-west-1.amazonaws.com/a", "--header", "X-Amz-Copy-Source: media/b"}, call: "s3 CopyObject eu-west-1 123456789012", policy: `arn:aws:s3:::media/b`},
		{name: "a copy of what is denied", args: []string{"PUT", "https://media.s3.eu-west-1.amazonaws.com/a", "--header", "X-Amz-Copy-Source: media/secret/b"}, call: "s3 CopyObject eu-west-1 123456789012", denied: "for which a GET is not allowed"},
		{name: "no human for the role", args: []string{"GET", "https://sqs.eu-west-1.amazonaws.com/?Action=ListQueues"}, denied: "the call's task runs for no human"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, notes bytes.Buffer
			c, _ := root()
			c.SetOut(&out)
			c.SetErr(&notes)
			c.SetArgs(append([]string{"policy", "explain", dir, "-o", "json", "--as", "spiffe://attache.local/agent/curl"}, tt.args...))
			err := c.ExecuteContext(t.Context())
			if e, ok := errors.AsType[exit](err); ok != (tt.denied != "") || ok && e != 3 || !ok && err != nil {
				t.Fatalf("got %v", err)
			}
			if notes.Len() > 0 {
				t.Errorf("got the note %s", notes.String())
			}
			var x policy.Explanation
			if err := json.Unmarshal(out.Bytes(), &x); err != nil {
				t.Fatalf("%v in %s", err, out.String())
			}
			a := x.Credential.AWS
			if call := strings.Join([]string{a.Service, a.Operation, a.Region, a.Account}, " "); tt.call != "" && call != tt.call {
				t.Errorf("got %q, want %q", call, tt.call)
			}
			if !strings.Contains(a.SessionPolicy, tt.policy) || (a.SessionPolicy == "") != (tt.denied != "") || !strings.Contains(x.Reason, tt.denied) {
				t.Errorf("got %q because %s", a.SessionPolicy, x.Reason)
			}
			if tt.role != "" && x.Credential.Role != tt.role {
				t.Errorf("got role %q, want %q", x.Credential.Role, tt.role)
			}
		})
	}
}

// TestExplainOddPath: a path that is refused without rawPaths is noted.
func TestExplainOddPath(t *testing.T) {
	dir := t.TempDir()
	text := "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p}\nspec: {rules: [{name: r, hosts: [a.example.com], action: allow}, {name: raw, hosts: [b.example.com], action: allow, rawPaths: true}]}\n"
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for target, noted := range map[string]bool{"https://a.example.com/a%2Fb": true, "https://a.example.com/a/b": false, "https://b.example.com/a%2Fb": false} {
		var out, notes bytes.Buffer
		c, _ := root()
		c.SetOut(&out)
		c.SetErr(&notes)
		c.SetArgs([]string{"policy", "explain", dir, "--as", "spiffe://attache.local/agent/curl", "GET", target})
		if err := c.ExecuteContext(t.Context()); err != nil || strings.Contains(notes.String(), "without rawPaths") != noted {
			t.Errorf("%s: got %v and the note %q", target, err, notes.String())
		}
	}
}

// TestExplainData: a body that cannot be read is a mistake of whoever asks.
func TestExplainData(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(t.TempDir(), "big")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(awsDocuments), 0o600), os.WriteFile(big, make([]byte, maxData+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"@" + filepath.Join(dir, "none"), "@" + big} {
		c, _ := root()
		c.SetArgs([]string{"policy", "explain", dir, "--as", "spiffe://attache.local/agent/curl", "POST", "https://sns.eu-west-1.amazonaws.com/", "--data", data})
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "--data") {
			t.Errorf("%s: got %v", data, err)
		}
	}
}
