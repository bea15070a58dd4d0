package pipeline

import (
	"cmp"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
)

// mayTouch refuses a call that names objects beside its path, as copies and
// batch deletions do, where no rule would let the agent ask for one of them.
func (x *exchange) mayTouch() *Refusal {
	t, err := awsscope.Match(x.awsHost(), x.provider.endpoints)
	if err != nil {
		return awsRefusal(err)
	}
	own := x.aws.call.Facts["bucket"] // empty: an access point
	for _, o := range x.aws.call.Objects {
		q := x.policyRequest()
		q.Method, q.Query = o.Method, nil
		bucket, prefix := cmp.Or(o.Bucket, own), "/"
		switch {
		case t.AccessPoint != "":
			if _, rest, ok := cutAny(q.Host, ".s3-accesspoint", ".accesspoint.s3-global"); ok && bucket != "" {
				q.Host = bucket + ".s3" + rest
			}
		case t.Bucket != "":
			q.Host = bucket + strings.TrimPrefix(q.Host, t.Bucket)
		default:
			prefix += bucket + "/"
		}
		plain := prefix + escapedPath(o.Key)
		for _, q.Path = range []string{plain, path.Clean(plain)} {
			if d := x.state.Policies.Decide(q); d.Verdict != policy.Inject {
				return &Refusal{Status: http.StatusForbidden, Code: CodeDenied,
					Reason: clip(fmt.Sprintf("the call names the object %q, for which a %s is not allowed: %s", o.Key, o.Method, d.Reason))}
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
