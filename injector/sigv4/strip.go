package sigv4

import (
	"net/http"
	"strings"

	"github.com/attache-dev/attache/injector/internal/names"
)

// Strip takes every trace of a signature off the header and the query of r. The
// other query parameters keep their bytes and their order. What says how the body is
// encoded (X-Amz-Content-Sha256 in a header, X-Amz-Decoded-Content-Length,
// X-Amz-Trailer) stays: [Signer.Sign] needs it.
func Strip(r *http.Request) {
	for name := range r.Header {
		switch names.Fold(name) {
		case "authorization", "x-amz-date", "x-amz-security-token", "x-amz-s3session-token", "x-amz-region-set",
			"x-amz-signature", "x-amz-credential", "x-amz-algorithm", "x-amz-signedheaders", "x-amz-expires":
			delete(r.Header, name)
		case "date":
			// A client that signs Date means the time of its signature, which is
			// not ours; one that does not has no use for it either.
			delete(r.Header, name)
		}
	}
	if r.URL.RawQuery != "" {
		r.URL.RawQuery = stripQuery(r.URL.RawQuery)
	}
}

func stripQuery(raw string) string {
	var kept []string
	for pair := range strings.SplitSeq(raw, "&") {
		if name, _, err := splitPair(pair); err == nil && isQueryName(strings.ToLower(name)) {
			continue
		}
		kept = append(kept, pair)
	}
	return strings.Join(kept, "&")
}
