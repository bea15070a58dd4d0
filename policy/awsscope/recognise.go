package awsscope

import (
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Recognise reads what a request asks for. An error means that nothing may be
// minted for it; a Call with ScopeActionOnly that its resource is not known.
func Recognise(r Request) (Call, error) {
	t, err := Match(r.Host, r.Endpoints)
	if err != nil {
		return Call{}, err
	}
	if err := t.agree(&r); err != nil {
		return Call{}, err
	}
	services, signing := candidates(t, r.ClaimedService)
	if len(services) == 0 {
		return Call{}, fail(ErrMismatch, "the signature claims service %q, which %s does not serve", r.ClaimedService, r.Host)
	}
	if strings.ContainsAny(r.RawPath+r.RawQuery, "#\\") { // clients encode them; servers may cut or turn them
		return Call{}, fail(ErrAmbiguous, "a bare # or backslash in path or query")
	}
	if r.Account != "" && !isAccount(r.Account) {
		return Call{}, fail(ErrMalformed, "account is not 12 digits")
	}
	if r.Header, err = plainHeaders(r.Header); err != nil {
		return Call{}, err
	}
	c := &reading{req: &r, target: t, call: Call{
		Partition: t.Partition, Region: t.Region, Account: r.Account, Signing: signing,
		ScopeKind: ScopeRequest, Cleartext: r.Cleartext, Facts: map[string]string{},
	}}
	if t.Account != "" {
		c.call.Account = t.Account
	}
	if c.query, err = parseQuery(r.RawQuery); err != nil {
		return Call{}, err
	}
	if err := c.dispatch(services); err != nil {
		return Call{}, err
	}
	return c.finish()
}

// candidates are the services of the host that are signed as claimed.
func candidates(t Target, claimed string) ([]*service, string) {
	var out []*service
	all := table().byEndpoint[t.Endpoint]
	if t.Custom {
		all = customServices(t.Endpoint)
	}
	for _, s := range all {
		if s.sign == claimed {
			out = append(out, s)
		}
	}
	return out, claimed
}

// customServices are the services that a custom endpoint's signing name stands for.
func customServices(sign string) []*service {
	if sign == "s3" {
		return table().byEndpoint["s3"]
	}
	var out []*service
	for _, list := range table().byEndpoint {
		for _, s := range list {
			if s.sign == sign {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b *service) int { return strings.Compare(a.name, b.name) })
	return out
}

// Signs reports whether a service of the table is signed by this name: those
// that a custom endpoint may stand for.
func Signs(name string) bool { return len(customServices(name)) > 0 }

// plainHeaders returns the headers by their canonical names, and refuses a
// second line of one that decides anything.
func plainHeaders(h http.Header) (http.Header, error) {
	out := make(http.Header, len(h))
	for k, v := range h {
		k = http.CanonicalHeaderKey(k)
		out[k] = append(out[k], v...)
	}
	for k, v := range out {
		if len(v) > 1 && (strings.HasPrefix(k, "X-Amz-") || k == "Content-Type" || k == "Content-Encoding" || k == "Smithy-Protocol") {
			return nil, fail(ErrAmbiguous, "header %s is given twice", k)
		}
	}
	return out, nil
}

// A reading is a request on its way to becoming a Call.
type reading struct {
	req    *Request
	target Target
	query  params

	svc    *service
	op     *operation
	labels params  // from a rest path
	form   params  // from a query-protocol body
	body   *object // from a JSON or CBOR body
	call   Call
}

// dispatch finds protocol, service and operation.
func (c *reading) dispatch(services []*service) error {
	h := c.req.Header
	target, cbor := h.Get("X-Amz-Target"), h.Get("Smithy-Protocol") != ""
	if services[0].protocol == "rest-xml" && services[0].name == "s3" {
		if target != "" || cbor {
			return fail(ErrAmbiguous, "S3 takes no X-Amz-Target")
		}
		return c.s3()
	}
	if target != "" && cbor {
		return fail(ErrAmbiguous, "two protocols in one request")
	}
	switch {
	case cbor:
		return c.rpcCBOR(services)
	case target != "":
		return c.json(services)
	}
	if slices.ContainsFunc(services, func(s *service) bool { return s.protocol == "query" || s.protocol == "ec2" }) {
		return c.queryProtocol(services)
	}
	return c.rest(services)
}

// wholeBody returns the body of a call whose meaning is in it.
func (c *reading) wholeBody() ([]byte, error) {
	if e := c.req.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, fail(ErrUnsupported, "a body in content encoding %q", e)
	}
	if c.req.Header.Get("X-Amz-Decoded-Content-Length") != "" {
		return nil, fail(ErrUnsupported, "a chunked signature on a body that must be read")
	}
	_, media, _ := mime.ParseMediaType(c.req.Header.Get("Content-Type"))
	if set := media["charset"]; set != "" && !strings.EqualFold(set, "utf-8") {
		return nil, fail(ErrUnsupported, "a body in charset %q", set)
	}
	if !c.req.BodyComplete {
		return nil, ErrBodyNeeded
	}
	return c.req.Body, nil
}

// jsonTarget returns the X-Amz-Target prefix of a service. Those that speak
// JSON beside the protocol of the table are named here.
func jsonTarget(s *service) string {
	switch s.name {
	case "sqs":
		return "AmazonSQS"
	case "cloudwatch":
		return "GraniteServiceVersion20100801"
	}
	return s.target
}

func (c *reading) json(services []*service) error {
	prefix, op, ok := strings.Cut(c.req.Header.Get("X-Amz-Target"), ".")
	if i := strings.LastIndexByte(op, '.'); i >= 0 { // prefixes may have dots
		prefix, op = prefix+"."+op[:i], op[i+1:]
	}
	if !ok || !isName(op) {
		return fail(ErrMalformed, "X-Amz-Target")
	}
	media, _, _ := mime.ParseMediaType(c.req.Header.Get("Content-Type"))
	if media == "application/x-www-form-urlencoded" || len(c.query) > 0 {
		return fail(ErrAmbiguous, "two protocols in one request")
	}
	if c.req.Method != http.MethodPost || c.req.RawPath != "/" && c.req.RawPath != "" {
		return fail(ErrMalformed, "a JSON call is a POST to /")
	}
	for _, s := range services {
		if t := jsonTarget(s); t != "" && t == prefix {
			b, err := c.wholeBody()
			if err != nil {
				return err
			}
			if c.body, err = parseJSON(b); err != nil {
				return err
			}
			c.call.Protocol = "json"
			return c.operation(s, op)
		}
	}
	return fail(ErrMismatch, "X-Amz-Target %q is not of service %s", prefix, c.call.Signing)
}

func (c *reading) rpcCBOR(services []*service) error {
	if c.req.Header.Get("Smithy-Protocol") != "rpc-v2-cbor" {
		return fail(ErrUnsupported, "protocol %q", c.req.Header.Get("Smithy-Protocol"))
	}
	f := strings.Split(c.req.RawPath, "/")
	n := len(f)
	if c.req.Method != http.MethodPost || n != 5 || f[1] != "service" || f[3] != "operation" || !isName(f[2]) || !isName(f[4]) {
		return fail(ErrMalformed, "an rpc-v2-cbor call is a POST to /service/NAME/operation/NAME")
	}
	if len(c.query) > 0 {
		return fail(ErrAmbiguous, "an rpc-v2-cbor call has no query")
	}
	for _, s := range services {
		if strings.HasPrefix(s.protocol, "rest") {
			continue
		}
		b, err := c.wholeBody()
		if err != nil {
			return err
		}
		if c.body, err = parseCBOR(b); err != nil {
			return err
		}
		if t := jsonTarget(s); t != "" && t != f[2] {
			continue
		}
		c.call.Protocol = "rpc-v2-cbor"
		return c.operation(s, f[4])
	}
	return fail(ErrMismatch, "service %q is not of %s", f[2], c.call.Signing)
}

func (c *reading) queryProtocol(services []*service) error {
	p := c.query
	if c.req.Method == http.MethodPost {
		media, _, _ := mime.ParseMediaType(c.req.Header.Get("Content-Type"))
		if media != "application/x-www-form-urlencoded" {
			return fail(ErrUnsupported, "content type %q", media)
		}
		b, err := c.wholeBody()
		if err != nil {
			return err
		}
		if c.form, err = parseQuery(string(b)); err != nil {
			return err
		}
		for k := range c.form {
			for q := range c.query {
				if strings.EqualFold(k, q) {
					return fail(ErrAmbiguous, "parameter %q in query and body", k)
				}
			}
		}
		if c.query["Action"] == "" {
			p = c.form
		}
	} else if c.req.Method != http.MethodGet || len(c.req.Body) > 0 {
		return fail(ErrUnsupported, "method %s, or a body that it does not have", c.req.Method)
	}
	action := p["Action"]
	if !isName(action) {
		return fail(ErrMalformed, "no Action parameter")
	}
	if c.req.RawPath != "/" && c.req.RawPath != "" && services[0].name != "sqs" {
		return fail(ErrMalformed, "a query call goes to /")
	}
	c.call.Protocol = "query"
	// Services of one host are told apart by version, then by operation.
	s := services[0]
	for _, x := range services {
		if x.version == p["Version"] && x.ops[action] != nil {
			s = x
			break
		}
		if s.ops[action] == nil && x.ops[action] != nil {
			s = x
		}
	}
	return c.operation(s, action)
}

// rest finds the operation by method, path and query.
func (c *reading) rest(services []*service) error {
	segs, err := segments(c.req.RawPath)
	if err != nil {
		return err
	}
	var best *operation
	var bestSvc *service
	bestScore := -1
	for _, s := range services {
		for _, o := range s.paths[c.req.Method] {
			score := o.matches(segs, c.query)
			if score > bestScore {
				best, bestSvc, bestScore = o, s, score
			} else if score == bestScore && score >= 0 && o.action != best.action {
				return fail(ErrAmbiguous, "path means %s and %s", best.name, o.name)
			}
		}
	}
	if best == nil {
		return fail(ErrUnsupported, "no operation of service %s has this method and path", c.call.Signing)
	}
	c.labels = best.labelsOf(segs)
	c.call.Protocol = bestSvc.protocol
	return c.operation(bestSvc, best.name)
}

// segments splits a raw path and decodes each segment once. What the server
// could normalise is refused.
func segments(raw string) ([]string, error) {
	var out []string
	for seg := range strings.SplitSeq(strings.TrimPrefix(raw, "/"), "/") {
		d, err := url.PathUnescape(seg)
		if err != nil {
			return nil, fail(ErrMalformed, "path: %v", err)
		}
		if d == "." || d == ".." {
			return nil, fail(ErrMalformed, "path has dot segments")
		}
		if d != "" {
			if err := checkValue("a path segment", d); err != nil {
				return nil, err
			}
		}
		out = append(out, d)
	}
	for len(out) > 1 && out[len(out)-1] == "" {
		out = out[:len(out)-1] // one trailing slash is the same resource
	}
	if len(out) > 1 && slices.Contains(out, "") {
		return nil, fail(ErrMalformed, "path has an empty segment")
	}
	return out, nil
}

// matches scores the operation's path: literals count, -1 is no match.
func (o *operation) matches(segs []string, q params) int {
	score := 0
	for i, p := range o.path {
		if i >= len(segs) {
			return -1
		}
		if strings.HasPrefix(p, "{") && strings.HasSuffix(p, "+}") {
			if len(segs)-i < len(o.path)-i {
				return -1
			}
			// A greedy label takes all but what the template has after it.
			for k := 1; k < len(o.path)-i; k++ {
				if o.path[len(o.path)-k] != segs[len(segs)-k] && !strings.HasPrefix(o.path[len(o.path)-k], "{") {
					return -1
				}
			}
			return score + querySpecificity(o.query, q)
		}
		if !strings.HasPrefix(p, "{") {
			if p != segs[i] {
				return -1
			}
			score += 10
		} else if segs[i] == "" {
			return -1
		}
	}
	if len(segs) != len(o.path) {
		return -1
	}
	s := querySpecificity(o.query, q)
	if s < 0 {
		return -1
	}
	return score + s
}

// querySpecificity checks the query that a template names.
func querySpecificity(want string, q params) int {
	if want == "" {
		return 0
	}
	n := 0
	for kv := range strings.SplitSeq(want, "&") {
		k, v, has := strings.Cut(kv, "=")
		got, ok := q[k]
		if !ok || has && v != "" && got != v {
			return -1000
		}
		n++
	}
	return n
}

func (o *operation) labelsOf(segs []string) params {
	l := params{}
	for i, p := range o.path {
		name, ok := strings.CutPrefix(p, "{")
		if !ok || i >= len(segs) {
			continue
		}
		name = strings.TrimSuffix(name, "}")
		if g, greedy := strings.CutSuffix(name, "+"); greedy {
			l[g] = strings.Join(segs[i:len(segs)-(len(o.path)-i-1)], "/")
			return l
		}
		l[name] = segs[i]
	}
	return l
}

// operation fills the call in for one operation.
func (c *reading) operation(s *service, name string) error {
	c.svc = s
	c.call.Service, c.call.Operation = s.iam, name
	c.op = s.ops[name]
	if c.op == nil {
		c.op = &operation{name: name, action: name}
	}
	if s.name == "dynamodb" {
		if done, err := c.dynamo(); done || err != nil {
			return err
		}
	}
	if len(c.op.rules) > 0 {
		return c.applyRules()
	}
	action := c.op.action
	if action == "" {
		action = name // no action by that name: AWS refuses, or knows better than our table
	}
	c.actionOnly(s.iam+":"+action, c.op.types)
	return nil
}

// maxTypes bounds how many resource patterns an action-only scope lists before
// it says `*`.
const maxTypes = 6

// actionOnly adds an action on the patterns that the action accepts.
func (c *reading) actionOnly(action string, types []string) {
	c.call.ScopeKind = ScopeActionOnly
	var res []Pattern
	for _, t := range types {
		res = append(res, Pattern(c.expand(t)))
	}
	if len(res) == 0 || len(res) > maxTypes {
		res = []Pattern{"*"}
	}
	c.call.Access = append(c.call.Access, Access{Action: action, Resources: res})
}

// expand fills partition, region and account into one of our own patterns.
func (c *reading) expand(t string) string {
	account := c.call.Account
	if account == "" {
		account = "*"
	}
	return strings.NewReplacer("$P", c.call.Partition, "$R", c.call.Region, "$A", account).Replace(t)
}

func isName(s string) bool {
	return s != "" && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// finish settles what holds for every call.
func (c *reading) finish() (Call, error) {
	for _, a := range c.call.Access {
		if secrets, ok := table().handsOut(a.Action); ok {
			c.handsOut(secrets)
		}
	}
	if err := c.decrypted(); err != nil {
		return Call{}, err
	}
	if len(c.call.Access) == 0 {
		return Call{}, fail(ErrUnsupported, "no action is known for this request")
	}
	c.call.Access = canonical(c.call.Access)
	return c.call, nil
}

// secretParameter is where Parameter Store shows Secrets Manager's secrets.
const secretParameter = "/aws/reference/secretsmanager/"

// decrypted marks the reading of SSM parameters with decryption.
func (c *reading) decrypted() error {
	if c.call.Service != "ssm" || !strings.HasPrefix(c.call.Operation, "GetParameter") {
		return nil
	}
	plain, err := c.flag("WithDecryption")
	if err != nil {
		return err
	}
	for _, a := range c.call.Access {
		for _, r := range a.Resources {
			plain = plain || strings.Contains(string(r), ":parameter"+secretParameter)
		}
	}
	if plain {
		c.handsOut([]string{"Value"})
	}
	return nil
}

// handsOut marks the call. Where one of its secrets is unknown, so are all.
func (c *reading) handsOut(secrets []string) {
	known := len(secrets) > 0 && (!c.call.HandsOutCredentials || len(c.call.Secrets) > 0)
	c.call.HandsOutCredentials = true
	if !known {
		c.call.Secrets = nil
		return
	}
	for _, s := range secrets {
		if !slices.Contains(c.call.Secrets, s) {
			c.call.Secrets = append(c.call.Secrets, s)
		}
	}
}
