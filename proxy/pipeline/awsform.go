package pipeline

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/policy/awsscope"
)

// readForm reads the signature of an upload by POST (Amazon S3 API Reference,
// "POST Object"), which stands in the fields before the file.
func (x *exchange) readForm(ctx context.Context, w http.ResponseWriter) *Refusal {
	stop := cutReads(ctx, w)
	claim, form, err := sigv4.ParseForm(x.req)
	stop()
	switch {
	case ctx.Err() != nil:
		return x.upstreamRefusal(ctx, ctx.Err())
	case err == nil, errors.Is(err, sigv4.ErrUnsigned), errors.Is(err, sigv4.ErrMalformed), errors.Is(err, sigv4.ErrSeveral):
	default:
		return &Refusal{Status: 499, Code: CodeCanceled, Err: err, Reason: "the request's body broke off"}
	}
	x.aws.form = form
	return awsRefusal(x.accept(claim, err))
}

// asPut makes of an upload by POST the PutObject that it asks for, so that it is
// read and decided like one.
func (x *exchange) asPut(q *awsscope.Request) *Refusal {
	refuse := func(reason string) *Refusal {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeAWSCall, Reason: "upload by POST: " + reason}
	}
	fields := x.aws.form.Fields()
	key := fields["key"]
	switch {
	case x.aws.claim.Service != "s3" || q.RawQuery != "":
		return refuse("only S3 takes it, and without a query")
	case key == "" || strings.Contains(key, "${"):
		return refuse("the field key must name the object; ${filename} is not supported")
	}
	header := http.Header{}
	for name, value := range fields {
		switch {
		case name == "acl", name == "tagging":
			header.Set("X-Amz-"+name, value)
		case strings.HasPrefix(name, "x-minio-"): // which makes many objects
			return refuse("the field " + clip(name) + " is not supported")
		case strings.HasPrefix(name, "x-amz-") && !strings.HasPrefix(name, "x-amz-meta-") && !signsForm(name):
			header.Set(name, value)
		}
	}
	bucket := strings.TrimSuffix(q.RawPath, "/")
	q.Method, q.RawPath, q.Header, q.BodyComplete = http.MethodPut, bucket+"/"+url.PathEscape(key), header, false
	// A rule for the object's path must see it, wherever it stands and by
	// whichever method the object is made.
	p := x.policyRequest()
	plain := bucket + "/" + escapedPath(key)
	for _, p.Path = range []string{plain, path.Clean(plain)} {
		for _, p.Method = range []string{http.MethodPost, http.MethodPut} {
			if !x.sameRule(p) {
				return &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: "upload by POST: another rule decides for a PUT to the path of its key; upload by PUT"}
			}
		}
	}
	return nil
}

// signsForm reports whether a field is part of the form's signature.
func signsForm(name string) bool {
	switch name {
	case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-security-token", "x-amz-signature":
		return true
	}
	return false
}
