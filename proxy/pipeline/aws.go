package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
)

// awsCall is what an exchange knows of a request that carries an AWS signature,
// or should.
type awsCall struct {
	service string // signing name, as claimed or as the host has it: how errors look
	claim   sigv4.Claim
	form    *sigv4.Form // of an upload by POST, whose signature stands in its fields
	call    awsscope.Call
	scope   string // how far the session is cut
	cut     awsscope.Granularity
	policy  string // the session policy
	role    string // ARN of the role that is assumed first
	body    []byte // the whole body, where it had to be read
	held    int64  // bytes that are reserved for it
	sent    time.Time
	broken  brokenBody
}

// awsEndpoints are a provider's own endpoints in the form that awsscope reads.
func awsEndpoints(s *v1alpha1.AWS) []awsscope.Endpoint {
	if s == nil {
		return nil
	}
	var list []awsscope.Endpoint
	for _, e := range s.Endpoints {
		host := e.Host
		if e.Port != 0 && e.Port != 443 {
			host = net.JoinHostPort(host, strconv.Itoa(e.Port))
		}
		list = append(list, awsscope.Endpoint{Host: host, Service: e.Service, Region: e.Region, VirtualHost: e.VirtualHost})
	}
	return list
}

// signedCall looks for an AWS signature and tells which service it names. It
// trusts nothing: refusals take their form from it. Other requests get nil.
func signedCall(r *http.Request) *awsCall {
	credential := ""
	if auth := r.Header["Authorization"]; len(auth) > 0 && strings.HasPrefix(auth[0], "AWS4-") {
		_, credential, _ = strings.Cut(auth[0], "Credential=")
		credential, _, _ = strings.Cut(credential, ",")
	} else if strings.Contains(r.URL.RawQuery, "X-Amz-Signature=") {
		credential = r.URL.Query().Get("X-Amz-Credential")
	} else {
		return nil
	}
	a := &awsCall{}
	if part := strings.Split(credential, "/"); len(part) > 1 {
		a.service = part[len(part)-2]
	}
	return a
}

// awsHost is the destination as awsscope names it: AWS's own hosts have no port.
func (x *exchange) awsHost() string {
	if x.dest.Port == 443 {
		return x.dest.Host
	}
	return x.dest.HostPort()
}

// readClaim reads the agent's signature while the request is still as it was
// sent, and refuses one that was not made with this run's placeholder.
func (x *exchange) readClaim() *Refusal {
	if x.aws == nil {
		x.aws = &awsCall{}
		if t, err := awsscope.Match(x.awsHost(), x.provider.endpoints); err == nil {
			x.aws.service = t.Endpoint
		}
	}
	if x.protocol != policy.HTTP {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeAWSCall, Reason: "calls to AWS over " + x.protocol + " are signed message by message and cannot be signed anew"}
	}
	claim, err := sigv4.Parse(x.req)
	if errors.Is(err, sigv4.ErrUnsigned) && sigv4.IsForm(x.req) {
		return nil // readForm looks for it in the body
	}
	return awsRefusal(x.accept(claim, err))
}

// accept takes a claim that was made with this run's placeholder.
func (x *exchange) accept(claim sigv4.Claim, err error) error {
	if err == nil {
		err = x.provider.injector.OwnKey(claim.AccessKeyID, x.p.cfg.Placeholders)
	}
	if err == nil {
		err = claim.Check(x.p.cfg.Now())
	}
	x.aws.claim = claim
	return err
}

// cutSession reads what the call asks for, from the bytes that will be signed,
// and writes the session policy that allows that and no more. The request has
// been cleaned; nothing has left us.
func (x *exchange) cutSession(ctx context.Context, w http.ResponseWriter) *Refusal {
	a, spec := x.aws, x.provider.Spec.AWS
	if a.claim.Place == "" {
		if f := x.readForm(ctx, w); f != nil {
			return f
		}
	}
	sigv4.Strip(x.req)
	account, err := x.awsRole()
	if err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeMintDenied, Err: err,
			Reason: "provider " + x.decision.Grant.Provider + ": no role is named for this workload and task; the operator finds the cause in Attaché's log under this record"}
	}
	q := awsscope.Request{
		Method: x.req.Method, Host: x.awsHost(), RawPath: x.path, RawQuery: x.req.URL.RawQuery, Header: x.req.Header,
		ClaimedService: a.claim.Service, ClaimedRegion: a.claim.Region, Account: account.Account, Partition: account.Partition,
		Endpoints: x.provider.endpoints, PartitionKeys: spec.PartitionKeys, BodyComplete: !hasBody(x.req),
		NoACLs: awsrole.IsMinIO(a.role), Cleartext: x.dest.Scheme != "https",
	}
	if a.form != nil {
		if f := x.asPut(&q); f != nil {
			return f
		}
	}
	if a.call, err = awsscope.Recognise(q); errors.Is(err, awsscope.ErrBodyNeeded) {
		if f := x.readBody(ctx, w); f != nil {
			return f
		}
		q.Body, q.BodyComplete = a.body, true
		a.call, err = awsscope.Recognise(q)
	}
	if err != nil {
		return awsRefusal(err)
	}
	// Below a bucket's path S3 would still make the object that the form names.
	if a.form != nil && (a.call.Operation != "PutObject" || a.call.Facts["key"] != a.form.Fields()["key"]) {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeAWSCall, Reason: "upload by POST: it goes to a bucket, and makes one object"}
	}
	if f := x.mayTouch(); f != nil {
		return f
	}
	if err := x.decision.MayHandOut(a.call); err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: err.Error()}
	}
	return x.derive()
}

// sameDecoded refuses an odd path that another rule would have decided had it
// been plain. S3 does not tell encoded slashes from plain ones, policy does; and
// some servers of its protocol take empty and dot segments out.
func (x *exchange) sameDecoded() *Refusal {
	decoded, err := url.PathUnescape(x.path)
	if err != nil {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeBadPath, Reason: "the path is not valid percent-encoding"}
	}
	plain := escapedPath(decoded)
	cleaned := path.Clean(plain)
	if strings.HasSuffix(plain, "/") && cleaned != "/" {
		cleaned += "/"
	}
	for _, p := range []string{plain, cleaned} {
		q := x.policyRequest()
		q.Path = p
		if !x.sameRule(q) {
			return &Refusal{Status: http.StatusBadRequest, Code: CodeBadPath,
				Reason: "another rule applies to this path once its encoded slashes, empty and dot segments are resolved; send it plain"}
		}
	}
	return nil
}

// escapedPath encodes all of a decoded path but its slashes.
func escapedPath(s string) string { return strings.ReplaceAll(url.PathEscape(s), "%2F", "/") }

// sameRule reports whether the rule that decided would decide q too.
func (x *exchange) sameRule(q *policy.Request) bool {
	d := x.state.Policies.Decide(q)
	return d.Verdict == x.decision.Verdict && d.Policy == x.decision.Policy && d.Rule == x.decision.Rule
}

// derive writes the session policy.
func (x *exchange) derive() *Refusal {
	err := x.deriveBy(x.decision.Grant.AWS)
	f := awsRefusal(err)
	if errors.Is(err, awsscope.ErrNotAllowed) {
		f.Reason += fmt.Sprintf("; to get access, ask the owner of policy %q about its rule %q", x.decision.Policy, x.decision.Rule)
	}
	return f
}

func (x *exchange) deriveBy(g *policy.AWSGrant) error {
	a := x.aws
	text, cut, err := g.SessionPolicy(a.call, *x.provider.Spec.AWS.NoEscapes)
	if err != nil {
		return err
	}
	a.policy, a.cut, a.scope = text, cut, string(cut)
	if cut == awsscope.GranularityRequest || cut == awsscope.GranularityPrefix && a.call.Service != "s3" {
		a.scope = string(a.call.ScopeKind)
	}
	return nil
}

// coarser derives the session policy anew by the rule's onTooLarge, for one
// that only STS found too large: the limit of its packed form is its secret.
// It reports whether there is another policy to try.
func (x *exchange) coarser() bool {
	g := x.decision.Grant.AWS
	if g == nil || g.OnTooLarge == "" || x.aws.cut == g.OnTooLarge {
		return false
	}
	wide := *g
	wide.Granularity, wide.OnTooLarge = g.OnTooLarge, ""
	return x.deriveBy(&wide) == nil
}

// awsRole expands the role's ARN and returns whose account the call is made in:
// that of the last role that is assumed.
func (x *exchange) awsRole() (awsrole.ARN, error) {
	spec, workload := x.provider.Spec.AWS, x.conn.Caller.Workload
	role := x.decision.Grant.Role
	if role == "" {
		role = spec.RoleARN
	}
	var err error
	if x.aws.role, err = awsrole.Expand(role, workload, x.task); err != nil {
		return awsrole.ARN{}, fmt.Errorf("role: %w", err)
	}
	last := x.aws.role
	if spec.Chain != nil {
		if last, err = awsrole.Expand(spec.Chain.RoleARN, workload, x.task); err != nil {
			return awsrole.ARN{}, fmt.Errorf("chain.roleARN: %w", err)
		}
	}
	arn, err := awsrole.Parse(last)
	if !strings.HasPrefix(arn.Partition, "aws") {
		arn.Partition = "aws" // MinIO names its roles otherwise than its resources
	}
	return arn, err
}

// session adds to a mint request what an AWS session is cut to. It serves
// every host of the partition that its policy opens.
func (a *awsCall) session(q *minting.Request) {
	q.Destination, q.Role, q.SessionPolicy = "aws:"+a.call.Partition, a.role, a.policy
}

// describe says in the record what the session is for.
func (a *awsCall) describe(u *audit.Use) {
	u.AWS = &audit.AWSUse{Service: a.call.Service, Operation: a.call.Operation, Region: a.call.Region, Account: a.call.Account, Scope: a.scope}
	var resources, asked clipped
	for _, access := range a.call.Access {
		u.AWS.Actions = append(u.AWS.Actions, access.Action)
		for _, r := range access.Resources {
			resources.add(string(r))
			asked.add(access.Action + " " + string(r))
		}
	}
	u.AWS.Resources, u.ScopeAsked = resources.list, asked.list
	switch a.scope {
	case string(awsscope.ScopeActionOnly):
		u.ScopeSource = a.scope
	case string(awsscope.GranularitySession):
		u.ScopeSource = "static"
	default:
		u.ScopeSource = "derived"
	}
}

// clipped is a list of texts that leaves room in a record: one of 8 texts and
// 700 bytes ends in "…".
type clipped struct {
	list []string
	size int
}

func (c *clipped) add(s string) {
	const texts, bytes = 8, 700
	switch {
	case c.size > bytes || len(c.list) == texts:
		if c.list[len(c.list)-1] != "…" {
			c.list = append(c.list, "…")
		}
	default:
		c.list, c.size = append(c.list, s), c.size+len(s)
	}
}
