package pipeline_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// postForm is an upload by POST as boto3's generate_presigned_post makes it
// (Amazon S3 API Reference, "Creating an HTML form (using AWS Signature Version 4)").
func (a *awsRig) postForm(url, id string, fields ...string) *http.Request {
	a.t.Helper()
	now := time.Now().UTC()
	stamp := now.Format("20060102T150405Z")
	policy := fmt.Sprintf(`{"expiration":%q,"conditions":[["starts-with","$key",""],{"x-amz-credential":"%s/%s/eu-west-1/s3/aws4_request"},{"x-amz-date":%q}]}`,
		now.Add(time.Hour).Format("2006-01-02T15:04:05.000Z"), id, stamp[:8], stamp)
	fields = append(fields, "x-amz-algorithm", "AWS4-HMAC-SHA256", "x-amz-credential", id+"/"+stamp[:8]+"/eu-west-1/s3/aws4_request",
		"x-amz-date", stamp, "policy", base64.StdEncoding.EncodeToString([]byte(policy)), "x-amz-signature", strings.Repeat("0", 64))
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = m.WriteField(fields[i], fields[i+1])
	}
	file, _ := m.CreateFormFile("file", "name.txt")
	_, _ = io.WriteString(file, "the file")
	_ = m.Close()
	r, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, url, &b)
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Content-Type", m.FormDataContentType())
	return r
}

// verifyForm checks a form's signature as S3 does, and returns its fields.
func (a *awsRig) verifyForm(r *http.Request) (map[string]string, error) {
	if err := r.ParseMultipartForm(1 << 20); err != nil {
		return nil, err
	}
	f := map[string]string{}
	for k, v := range r.MultipartForm.Value {
		if f[k] = v[0]; len(v) > 1 {
			return nil, fmt.Errorf("%s stands twice", k)
		}
	}
	scope := strings.Split(f["x-amz-credential"], "/")
	secret, token, ok := a.sts.lookup(scope[0])
	if !ok || f["x-amz-security-token"] != token || r.Header.Get("Authorization") != "" {
		return nil, fmt.Errorf("credential %q", scope[0])
	}
	k := []byte("AWS4" + secret)
	for _, part := range append(scope[1:], f["policy"]) {
		m := hmac.New(sha256.New, k)
		_, _ = io.WriteString(m, part)
		k = m.Sum(nil)
	}
	policy, err := base64.StdEncoding.DecodeString(f["policy"])
	if err != nil || hex.EncodeToString(k) != f["x-amz-signature"] || !strings.Contains(string(policy), token) || !strings.Contains(string(policy), `"$key"`) {
		return nil, fmt.Errorf("signature over %s (%v)", policy, err)
	}
	file, _, err := r.FormFile("file")
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(file)
	f["file"] = string(b)
	return f, err
}

// TestAWSForm checks uploads by POST: they are decided and scoped like the
// PutObject that they are.
func TestAWSForm(t *testing.T) {
	const media = "https://media.s3.eu-west-1.amazonaws.com/"
	a := newAWSRig(t, nil)
	var got map[string]string
	a.serve(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if got, err = a.verifyForm(r); err != nil {
			awsError(w, http.StatusForbidden, "SignatureDoesNotMatch", err.Error())
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	id, _ := a.placeholders()
	if got := a.send(a.postForm(media, id, "key", "dir/a key", "acl", "private")); got.StatusCode != 204 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if got["file"] != "the file" || got["key"] != "dir/a key" || got["acl"] != "private" {
		t.Errorf("S3 got %v", got)
	}
	if u := a.record().Credential; u == nil || u.AWS.Resources[0] != "arn:aws:s3:::media/dir/a key" || strings.Join(u.AWS.Actions, " ") != "s3:PutObject s3:PutObjectAcl" {
		t.Errorf("%+v", u)
	}
	for _, tt := range []struct {
		name   string
		url    string
		id     string
		fields []string
		status int
		code   string
	}{
		{"real key", media, "AKIAIOSFODNN7EXAMPLE", []string{"key", "k"}, 403, pipeline.CodeAmbientUse},
		{"no key", media, id, nil, 400, pipeline.CodeAWSCall},
		{"a key of the browser's", media, id, []string{"key", "dir/${filename}"}, 400, pipeline.CodeAWSCall},
		{"two keys", media, id, []string{"key", "a", "Key", "b"}, 400, pipeline.CodeAWSCall},
		{"a key that another rule denies", media, id, []string{"key", "secret/k"}, 403, pipeline.CodeDenied},
		{"a key that another rule denies once its dot segments are resolved", media, id, []string{"key", "x/../secret/k"}, 403, pipeline.CodeDenied},
		{"a key that the policy does not allow", "https://bounded.s3.eu-west-1.amazonaws.com/", id, []string{"key", "public/k"}, 403, pipeline.CodeAWSScope},
		{"no bucket", "https://s3.eu-west-1.amazonaws.com/", id, []string{"key", "bucket"}, 400, pipeline.CodeAWSCall},
		{"below the bucket's path", media + "public", id, []string{"key", "k"}, 400, pipeline.CodeAWSCall},
		{"below the bucket's path at a shared host", "https://s3.eu-west-1.amazonaws.com/media/public", id, []string{"key", "k"}, 400, pipeline.CodeAWSCall},
		{"a key that another rule denies by PUT", "https://media.s3.eu-west-1.amazonaws.com/", id, []string{"key", "kept/k"}, 403, pipeline.CodeDenied},
		{"MinIO's list of more objects", media, id, []string{"key", "k", "x-minio-fanout-list", `{"key":"secret/k"}`}, 400, pipeline.CodeAWSCall},
		{"a query", media + "?uploads", id, []string{"key", "k"}, 400, pipeline.CodeAWSCall},
		{"a query that qualifies nothing", media + "?x-id=PutObject", id, []string{"key", "k"}, 400, pipeline.CodeAWSCall},
		{"a copy", media, id, []string{"key", "k", "x-amz-copy-source", "other/k"}, 400, pipeline.CodeAWSCall},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWSRig(t, nil)
			if tt.id == id {
				tt.id, _ = a.placeholders()
			}
			got := a.send(a.postForm(tt.url, tt.id, tt.fields...))
			a.refused(got, tt.status, tt.code, audit.OutcomeDenied)
		})
	}
}
