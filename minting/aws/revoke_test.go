package aws_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
)

// TestMinIORefusesToRevoke: a revocation is done when the server says so, or
// knows the key no more. What it says otherwise is an error without keys.
func TestMinIORefusesToRevoke(t *testing.T) {
	for _, tc := range []struct {
		status int
		body   string
		want   error
	}{
		{http.StatusNoContent, "", nil},
		{http.StatusForbidden, `{"Code":"InvalidAccessKeyId","Message":"x"}`, nil},
		{http.StatusForbidden, `{"Code":"AccessDenied","Message":"TOKEN"}`, minting.ErrDenied},
		{http.StatusBadRequest, `{"Code":"ErrNoTokenRevokeType"}`, minting.ErrDenied},
		{http.StatusServiceUnavailable, `{"Code":"SlowDownRead"}`, minting.ErrUnavailable},
		{http.StatusNotFound, `<html>`, minting.ErrDenied},
	} {
		f := newSTS(t)
		var token string
		m := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/" {
				// The one parameter that AWS's STS does not know.
				b, _ := io.ReadAll(r.Body)
				before, handle, ok := strings.Cut(string(b), "&TokenRevokeType=")
				if !ok || !strings.Contains(before, "RoleSessionName="+handle) {
					t.Errorf("no revoke type in %s", b)
				}
				r.Body = io.NopCloser(strings.NewReader(before))
				f.ServeHTTP(w, r)
				return
			}
			f.mu.Lock()
			ok := f.signed(r, nil, "s3", "eu-west-1")
			f.mu.Unlock()
			if !ok || r.URL.Path != "/minio/admin/v3/revoke-tokens/openid" || r.Method != http.MethodPost {
				t.Errorf("%s %s, signed %v", r.Method, r.URL, ok)
			}
			w.WriteHeader(tc.status)
			_, _ = io.WriteString(w, strings.Replace(tc.body, "TOKEN", token, 1))
		}), func(s *v1alpha1.AWS) { s.Revocation = &v1alpha1.AWSRevocation{Kind: provider.RevokeMinIO} })
		c := mintOne(t, m, f)
		token = c.SessionToken.Reveal()
		err := minting.Revoke(t.Context(), m, c)
		if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%d %s: %v, want %v", tc.status, tc.body, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("the error repeats the session token: %v", err)
		}
	}
}
