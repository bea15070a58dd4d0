package pipeline

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/injector/sigv4"
)

// sendAWS mints, signs and sends. Where AWS refuses the session or our clock,
// nothing was done there, so that any call is sent once more if its body can be.
func (x *exchange) sendAWS(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	if f := x.mint(ctx); f != nil {
		return nil, f
	}
	guard.Request(x.req, x.decision.EchoRisk)
	again, length := x.keepSigned(), x.req.ContentLength
	head := x.req.Header.Clone() // signing changes what frames the body
	resp, f := x.signAndSend(ctx, w)
	if f != nil {
		return nil, f
	}
	code, refused := refusedSignature(resp)
	if !refused && x.req.Method == http.MethodHead && resp.StatusCode == http.StatusBadRequest {
		code = "ExpiredToken" // S3 says so with this status; the answer to HEAD has no room for the code
	}
	if code == "" {
		return resp, nil
	}
	if !x.remedy(ctx, resp, code, again != nil) {
		if !refused {
			return resp, nil
		}
		return nil, x.signatureRefusal(resp, code)
	}
	x.leave(func() { _ = resp.Body.Close() })
	x.result.Retried = true
	x.req.Header, x.req.Body, x.req.ContentLength = head, again(), length
	if resp, f = x.signAndSend(ctx, w); f != nil {
		return nil, f
	}
	if code, refused = refusedSignature(resp); refused {
		return nil, x.signatureRefusal(resp, code)
	}
	return resp, nil
}

// keepSigned returns a function that gives the body again, or nil if it is too
// large to be kept.
func (x *exchange) keepSigned() func() io.ReadCloser {
	r := x.req
	switch {
	case !hasBody(r):
		return func() io.ReadCloser { return http.NoBody }
	case x.aws.body != nil:
		return func() io.ReadCloser { return io.NopCloser(bytes.NewReader(x.aws.body)) }
	case r.ContentLength < 0 || r.ContentLength > int64(x.p.cfg.Limits.MaxReplayBytes) || r.Header.Get("Expect") != "":
		return nil
	}
	kept := &keptBody{src: r.Body}
	r.Body = kept.again()
	return kept.again
}

// signAndSend signs as the last change before the transport.
func (x *exchange) signAndSend(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	if f := x.sign(ctx); f != nil {
		return nil, f
	}
	x.steps.Injected = x.since()
	x.aws.sent = x.p.cfg.Now()
	resp, f := x.roundTrip(ctx, w)
	if err := x.aws.broken.get(); f != nil && err != nil && f.Code != CodeRevoked && f.Code != CodeCanceled {
		return nil, awsRefusal(err) // the body was at fault, not the origin
	}
	return resp, f
}

// sign puts our signature on the request, over the bytes that roundTrip sends.
func (x *exchange) sign(ctx context.Context) *Refusal {
	a, c := x.aws, x.cred
	out := *x.req
	out.URL, out.Host = x.outURL(), x.dest.Authority()
	p := a.claim.Params(x.p.skew.Time(x.dest.HostPort(), x.p.cfg.Now()))
	p.TLS = x.dest.Scheme == "https"
	creds := sigv4.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret, SessionToken: c.SessionToken}
	if a.held == 0 && a.claim.Payload == "" && hasBody(x.req) && !(a.claim.Service == "s3" && p.TLS) { // it is hashed whole
		if f := x.hold(ctx, sigv4.MaxHashedBody); f != nil {
			return f
		}
	}
	sign := x.p.signer.Sign
	if a.form != nil {
		sign = a.form.Sign
	}
	if err := sign(ctx, &out, creds, p); err != nil {
		if ctx.Err() != nil {
			return x.upstreamRefusal(ctx, err)
		}
		return awsRefusal(err)
	}
	x.req.ContentLength, x.req.Body = out.ContentLength, out.Body
	if hasBody(&out) {
		x.req.Body = &watchedBody{out.Body, &a.broken}
	}
	return nil
}

// remedy learns from a refused signature, and reports whether the call may be
// accepted now.
func (x *exchange) remedy(ctx context.Context, resp *http.Response, code string, repeatable bool) bool {
	now, dest := x.p.cfg.Now(), x.dest.HostPort()
	before := x.p.skew.Time(dest, now)
	x.p.skew.Learn(dest, resp.Header.Get("Date"), x.aws.sent, now)
	if !x.p.skew.Time(dest, now).Equal(before) {
		x.p.cfg.Metrics.resigned("clock")
		return repeatable
	}
	// A session that was minted for this very call is not stale.
	if !slices.Contains(staleCodes(), code) || !x.cred.Cached {
		return false
	}
	x.p.cfg.Minter.Forget(x.cred.Handle)
	x.p.signer.Forget(x.cred.AccessKeyID)
	x.p.cfg.Metrics.resigned("session")
	return repeatable && x.mintAnew(ctx)
}

// staleCodes are the errors that another session may cure.
func staleCodes() []string {
	return []string{
		"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidTokenException", "InvalidTokenId", "TokenRefreshRequired",
		"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "RequestExpired",
	}
}

// refusedBytes is how much of a refusal is read for its code.
const refusedBytes = 64 << 10

// refusedSignature reports whether AWS refused our signature or session, and
// with which code. Such an answer may repeat the session token and never reaches
// the agent. Any other answer can still be read from its beginning.
func refusedSignature(resp *http.Response) (code string, refused bool) {
	if resp.StatusCode < 400 || resp.StatusCode > 499 {
		return "", false
	}
	var head []byte
	if resp.Body != nil && resp.Body != http.NoBody {
		head, _ = io.ReadAll(io.LimitReader(resp.Body, refusedBytes)) // a failure shows again when the rest is read
		resp.Body = &rewound{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	}
	return sigv4.IsSignatureError(resp.StatusCode, resp.Header, decoded(resp.Header.Get("Content-Encoding"), head))
}

// decoded undoes gzip, the one coding that AWS answers with. What is in
// another is looked at as it stands; the guard refuses it afterwards.
func decoded(coding string, head []byte) []byte {
	if !strings.EqualFold(coding, "gzip") {
		return head
	}
	z, err := gzip.NewReader(bytes.NewReader(head))
	if err != nil {
		return head
	}
	plain, _ := io.ReadAll(io.LimitReader(z, refusedBytes)) // as far as it goes
	return plain
}

type rewound struct {
	io.Reader
	io.Closer
}

// signatureRefusal replaces an answer that refuses our signature: the reason is
// ours, code and request id are AWS's.
func (x *exchange) signatureRefusal(resp *http.Response, code string) *Refusal {
	x.leave(func() { _ = resp.Body.Close() })
	x.steps.FirstByte = x.since()
	x.result.UpstreamRequestID = upstreamID(resp.Header)
	return &Refusal{Status: resp.StatusCode, Code: CodeSignature, AWSCode: code, Err: errors.New("the origin answered " + code),
		Reason: "AWS refused the session or signature that Attaché put on this call (" + code + "); send the call again, or ask the operator"}
}

// brokenBody is why a request's body could not be read to its end.
type brokenBody struct{ err atomic.Pointer[error] }

func (b *brokenBody) get() error {
	if p := b.err.Load(); p != nil {
		return *p
	}
	return nil
}

// watchedBody notes what is wrong with a body that is signed as it streams: the
// transport only says that it broke off.
type watchedBody struct {
	io.ReadCloser
	broken *brokenBody
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, sigv4.ErrMalformed) || errors.Is(err, sigv4.ErrTooLarge) {
		b.broken.err.CompareAndSwap(nil, &err)
	}
	return n, err
}

// storedData reports whether an answer's body is what somebody stored in S3.
func (x *exchange) storedData(resp *http.Response) bool {
	return x.decision.Grant.AWS != nil && x.aws.call.Service == "s3" && len(x.aws.call.Secrets) == 0 && resp.StatusCode < 300
}

// guardData looks for our session in an object's bytes. Nothing in them is
// sealed: S3 does not make them, and a checksum covers them. Nor are they
// decoded: their content coding was the uploader's to say, and a range of them
// begins anywhere.
func guardData(resp *http.Response, o guard.Options) (*guard.Guarded, error) {
	o.Vault = nil
	coding, coded := resp.Header["Content-Encoding"]
	delete(resp.Header, "Content-Encoding")
	g, err := guard.Response(resp, o)
	if coded {
		resp.Header["Content-Encoding"] = coding
	}
	return g, err
}
