package pipeline_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
)

// proofHolds reports whether a DPoP proof has the nonce.
func proofHolds(proof, nonce string) bool {
	parts := strings.Split(proof, ".")
	if len(parts) != 3 {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Nonce string }
	return err == nil && json.Unmarshal(b, &claims) == nil && claims.Nonce == nonce
}

// hinted is a GET that notes informational answers.
func (r *rig) hinted(c *http.Client, u string, hints io.Writer) result {
	r.t.Helper()
	ctx := httptrace.WithClientTrace(r.t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			_, _ = fmt.Fprintln(hints, code, h)
			return nil
		},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return result{resp, string(b), err}
}
