package main

import (
	"bytes"
	"os"
	"path/filepath"
	"text/template"
)

// issuerDocument is the configuration of the run that serves the issuer.
const issuerDocument = `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: issuer}
spec:
  workload: {name: issuer, owner: aws-team}
  identity: {issuerURL: {{.Issuer}}, sshAgent: {{.Dir}}/agent.sock, listen: "{{.Listen}}", tlsCertFile: {{.Dir}}/issuer.pem, tlsKeyFile: {{.Dir}}/issuer.key}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: none}
spec:
  rules:
  - {name: nothing, hosts: ["*"], action: deny}
`

// agentDocuments is what an operator would write for agents that use MinIO,
// with the servers' names pinned to where they listen here.
const agentDocuments = `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: aws}
spec:
  workload: {name: aws, owner: aws-team}
  identity: {issuerURL: {{.Issuer}}, sshAgent: {{.Dir}}/{{.Key}}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: minio}
spec:
  ttl: 15m
  destinations:
  - {host: {{.Store}}, addresses: ["{{.StoreAddr}}"], caFile: {{.Dir}}/ca.pem}
  - {host: "*.{{.Store}}", addresses: ["{{.StoreAddr}}"], caFile: {{.Dir}}/ca.pem}
  aws:
    roleARN: {{.RoleARN}}
    region: {{.Region}}
    endpoint: https://{{.STS}}
    addresses: ["{{.STSAddr}}"]
    caFile: {{.Dir}}/ca.pem
    audience: {{.Audience}}
    callsPerSecond: 200
    timeout: {{.Timeout}}
    noEscapes: true
    endpoints:
    - {host: {{.Store}}, service: s3, virtualHost: true}
    policy:
      Version: "2012-10-17"
      Statement:
      - Effect: Allow
        Action: ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource: ["arn:aws:s3:::alpha/desk/*"]
      - Effect: Allow
        Action: ["s3:GetObject"]
        Resource: ["arn:aws:s3:::alpha/readonly/*"]
      - Effect: Allow
        Action: ["s3:GetBucketLocation"]
        Resource: ["arn:aws:s3:::alpha"]
      - Effect: Allow
        Action: ["s3:ListBucket"]
        Resource: ["arn:aws:s3:::alpha"]
        Condition: {StringLike: {"s3:prefix": "desk/*"}}
  baseURLs:
  - {env: STORE_BASE_URL, host: {{.Store}}}
  - {env: STORE_SECURE_BASE_URL, host: {{.Store}}, scheme: https}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: aws}
spec:
  rules:
  - name: objects
    hosts: [{{.Store}}, "*.{{.Store}}"]
    action: allow
    rawPaths: true
    credential: {provider: minio}
`

// settings fill the documents.
type settings struct {
	Issuer, Dir, Listen, Key, Store, StoreAddr, RoleARN, Region, STS, STSAddr, Audience, Timeout string
}

func (w *world) issuerConfig(listen string) []byte {
	return render(issuerDocument, settings{Issuer: w.issuer, Dir: w.dir, Listen: listen})
}

// agentConfig are the documents as a change of their settings leaves them.
func (w *world) agentConfig(change func(*settings)) []byte {
	s := settings{
		Issuer: w.issuer, Dir: w.dir, Key: "agent.sock", Store: storeHost, StoreAddr: w.minio.Addr, RoleARN: w.minio.RoleARN, Region: region,
		STS: stsHost, STSAddr: w.tapAddr, Audience: audience, Timeout: "20s",
	}
	if change != nil {
		change(&s)
	}
	return render(agentDocuments, s)
}

func render(text string, s settings) []byte {
	var b bytes.Buffer
	if err := template.Must(template.New("").Parse(text)).Execute(&b, s); err != nil {
		panic(err) // the templates are ours
	}
	return b.Bytes()
}

// writeConfig makes dir a folder of configuration.
func writeConfig(dir string, documents []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "aws.yaml"), documents, 0o600)
}
