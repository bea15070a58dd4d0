package policy

import (
	"cmp"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/attache-dev/attache/policy/awsscope"
)

// Untouchable is an error if call names an object beside its path, as copies and
// batch deletions do, for which no rule would let the caller of r ask. target is
// what r's host serves.
func (s *Set) Untouchable(r *Request, call awsscope.Call, target awsscope.Target) error {
	own := call.Facts["bucket"] // empty: an access point
	for _, o := range call.Objects {
		q := *r
		q.Method, q.Query = o.Method, nil
		bucket, prefix := cmp.Or(o.Bucket, own), "/"
		switch {
		case target.AccessPoint != "":
			if _, rest, ok := cutAny(q.Host, ".s3-accesspoint", ".accesspoint.s3-global"); ok && bucket != "" {
				q.Host = bucket + ".s3" + rest
			}
		case target.Bucket != "":
			q.Host = bucket + strings.TrimPrefix(q.Host, target.Bucket)
		default:
			prefix += bucket + "/"
		}
		plain := prefix + strings.ReplaceAll(url.PathEscape(o.Key), "%2F", "/")
		for _, q.Path = range []string{plain, path.Clean(plain)} {
			if d := s.Decide(&q); d.Verdict != Inject {
				return fmt.Errorf("the call names the object %q, for which a %s is not allowed: %s", o.Key, o.Method, d.Reason)
			}
		}
	}
	return nil
}

// cutAny is [strings.Cut] by the first of seps that is in s.
func cutAny(s string, seps ...string) (before, after string, found bool) {
	for _, sep := range seps {
		if before, after, found = strings.Cut(s, sep); found {
			break
		}
	}
	return before, after, found
}
