package awsscope

import (
	"net/url"
	"slices"
	"strings"
)

// found is what one resource term of a rule came to.
type found struct {
	res   []Pattern
	conds []Condition
	wide  bool // the resource is a pattern, since the request does not name it
	done  bool // the accesses are in the call already
}

// applyRules turns the operation's rules into accesses.
func (c *reading) applyRules() error {
	for _, r := range c.op.rules {
		var all found
		for _, term := range r.resources {
			f, err := c.term(term)
			if err != nil {
				return err
			}
			if f.done {
				return nil
			}
			all.res = append(all.res, f.res...)
			all.conds = append(all.conds, f.conds...)
			all.wide = all.wide || f.wide
		}
		if all.wide {
			c.call.ScopeKind = ScopeActionOnly
		}
		for _, a := range r.actions {
			c.call.Access = append(c.call.Access, Access{Action: a, Resources: all.res, Conditions: all.conds})
		}
	}
	return nil
}

// term evaluates one resource term: alternatives joined by " or ", of which
// the request must name at most one resource.
func (c *reading) term(term string) (found, error) {
	var got found
	for alt := range strings.SplitSeq(term, " or ") {
		f, ok, err := c.alternative(strings.TrimSpace(alt))
		if err != nil {
			return found{}, err
		}
		if !ok {
			continue
		}
		if f.done {
			return f, nil
		}
		if got.res != nil && got.res[0] != f.res[0] {
			return found{}, fail(ErrAmbiguous, "the request names two resources: %s and %s", got.res[0], f.res[0])
		}
		got = f
	}
	if got.res != nil {
		return got, nil
	}
	return c.wildcard(term), nil
}

// wildcard is the narrowest pattern for a resource that the request does not name.
func (c *reading) wildcard(term string) found {
	f := found{wide: true}
	for alt := range strings.SplitSeq(term, " or ") {
		alt = strings.TrimSpace(alt)
		if strings.HasPrefix(alt, "arn{") || strings.Contains(alt, "(") {
			continue
		}
		f.res = append(f.res, Pattern(c.head(starred(alt))))
		return f
	}
	for _, t := range c.op.types {
		f.res = append(f.res, Pattern(c.expand(t)))
	}
	if len(f.res) == 0 || len(f.res) > maxTypes {
		f.res = []Pattern{"*"}
	}
	return f
}

// starred puts a star for each {Member}.
func starred(t string) string {
	for {
		i := strings.IndexByte(t, '{')
		j := strings.IndexByte(t, '}')
		if i < 0 || j < i {
			return t
		}
		t = t[:i] + "*" + t[j+1:]
	}
}

// head puts the service's usual ARN head before a tail.
func (c *reading) head(tail string) string {
	if !strings.HasPrefix(tail, "arn:") {
		tail = "arn:$P:" + c.svc.iam + ":$R:$A:" + tail
	}
	return c.expand(tail)
}

func (c *reading) alternative(alt string) (found, bool, error) {
	if alt == "*" {
		return found{res: []Pattern{"*"}}, true, nil
	}
	if m, ok := strings.CutPrefix(alt, "arn{"); ok {
		v, ok, err := c.str(strings.TrimSuffix(m, "}"))
		if err != nil || !ok {
			return found{}, false, err
		}
		p, err := c.arn(v, "")
		return found{res: []Pattern{p}}, true, err
	}
	if name, args, ok := strings.Cut(alt, "("); ok {
		return c.special(name, strings.TrimSuffix(args, ")"))
	}
	return c.template(alt)
}

// arn checks an ARN from the request: of this partition and service, its
// resource of the kind that the rule expects.
func (c *reading) arn(v, tail string) (Pattern, error) { return c.arnOf(c.svc.iam, v, tail) }

func (c *reading) arnOf(service, v, tail string) (Pattern, error) {
	p, ok := arnParts(v)
	if !ok {
		return "", fail(ErrMalformed, "%q is no ARN", v)
	}
	if p[1] != c.call.Partition || p[2] != service {
		return "", fail(ErrMismatch, "ARN %q is not of partition %s and service %s", v, c.call.Partition, service)
	}
	if !strings.HasPrefix(p[5], tail) || p[5] == tail {
		return "", fail(ErrMismatch, "ARN %q is not of kind %q", v, tail)
	}
	if strings.ContainsAny(strings.Join(p[:5], ""), "*?$") {
		return "", fail(ErrMalformed, "ARN %q has a wildcard", v)
	}
	c.fact(strings.TrimRight(tail, "/:"), v)
	return Literal(v), nil
}

// fact notes a name for the record.
func (c *reading) fact(name, v string) {
	if name == "" {
		name = "arn"
	}
	c.call.Facts[name] = v
}

// template evaluates tail{Member}tail{Member=default}.
func (c *reading) template(t string) (found, bool, error) {
	var out strings.Builder
	rest, single := t, strings.Count(t, "{") == 1 && strings.HasSuffix(t, "}")
	var facts [][2]string
	for {
		lit, after, more := strings.Cut(rest, "{")
		out.WriteString(lit)
		if !more {
			break
		}
		name, tail, _ := strings.Cut(after, "}")
		name, def, _ := strings.Cut(name, "=")
		v, ok, err := c.str(name)
		if err != nil {
			return found{}, false, err
		}
		if !ok {
			if def == "" {
				return found{}, false, nil
			}
			v = def
		}
		if strings.HasPrefix(v, "arn:") {
			if !single {
				return found{}, false, fail(ErrUnsupported, "an ARN as %s", name)
			}
			service := c.svc.iam
			if p, ok := arnParts(lit); ok {
				service, lit = p[2], p[5]
			}
			p, err := c.arnOf(service, v, lit)
			return found{res: []Pattern{p}}, true, err
		}
		facts = append(facts, [2]string{name, v})
		out.WriteString(string(Literal(v)))
		rest = tail
	}
	for _, f := range facts {
		c.fact(f[0], f[1])
	}
	return found{res: []Pattern{Pattern(c.headLiteral(out.String()))}}, true, nil
}

// headLiteral is head for a tail that holds values: only our own head is expanded.
func (c *reading) headLiteral(tail string) string {
	if strings.HasPrefix(tail, "arn:$P:") {
		// Our template is absolute; its values come after the resource kind.
		p, _ := arnParts(tail)
		return c.expand(strings.Join(p[:5], ":")+":") + p[5]
	}
	return c.expand("arn:$P:"+c.svc.iam+":$R:$A:") + tail
}

// build makes a pattern of our own head and values, each escaped.
func (c *reading) build(kind string, v ...string) Pattern {
	var b strings.Builder
	b.WriteString(c.expand("arn:$P:" + c.svc.iam + ":$R:$A:"))
	b.WriteString(kind)
	for _, s := range v {
		b.WriteString(string(Literal(s)))
	}
	return Pattern(b.String())
}

// special evaluates the terms that need more than a template.
func (c *reading) special(name, arg string) (found, bool, error) {
	if name == "params" {
		return c.parameters(arg)
	}
	if name == "busentries" {
		return c.busEntries(arg)
	}
	if name == "secrets" {
		return c.secrets(arg)
	}
	v, ok, err := c.str(arg)
	if err != nil {
		return found{}, false, err
	}
	if !ok && name == "queue" {
		return c.queuePath()
	}
	if !ok && (name == "bus" || name == "busrule") && arg == "EventBusName" {
		v, ok = "default", true
	}
	if !ok {
		return found{}, false, nil
	}
	f := found{}
	switch name {
	case "queue":
		f.res, err = c.queue(v)
	case "lambda":
		f.res, err = c.lambda(v)
	case "key":
		f, err = c.key(v)
	case "secret":
		f.res, err = c.secret(v)
	case "newsecret":
		c.fact("secret", v)
		f.res = []Pattern{c.build("secret:", v) + "-??????"}
	case "param":
		f.res, err = c.parameter(v)
	case "parampath":
		f.res, err = c.parameter(v)
		if err == nil {
			f.res = append(f.res, Pattern(strings.TrimSuffix(string(f.res[0]), "/")+"/*"))
		}
	case "loggroup":
		f.res, err = c.logGroup(v)
	case "logstream":
		f, err = c.logStream(v)
	case "bus":
		f.res, err = c.bus(v)
	case "busrule":
		f, err = c.busRule(v)
	case "model":
		f, err = c.model(v)
	case "subscription":
		f.res, err = c.subscription(v)
	case "repository":
		f.res, err = c.repository(v)
	case "execution":
		f.res, err = c.execution(v)
	default:
		return found{}, false, fail(ErrUnsupported, "rule term %s", name)
	}
	return f, true, err
}

// queue reads SQS's queue URL: https://HOST/ACCOUNT/NAME.
func (c *reading) queue(v string) ([]Pattern, error) {
	u, err := url.Parse(v)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.RawPath != "" {
		return nil, fail(ErrMalformed, "QueueUrl %q", v)
	}
	if c.req.RawPath != "/" && c.req.RawPath != "" && c.req.RawPath != u.Path {
		return nil, fail(ErrAmbiguous, "QueueUrl and path name two queues")
	}
	return c.queueARN(u.Path)
}

func (c *reading) queuePath() (found, bool, error) {
	if c.req.RawPath == "/" || c.req.RawPath == "" {
		return found{}, false, nil
	}
	p, err := c.queueARN(c.req.RawPath)
	return found{res: p}, true, err
}

func (c *reading) queueARN(path string) ([]Pattern, error) {
	f := strings.Split(path, "/")
	if len(f) != 3 || !isAccount(f[1]) || f[2] == "" || strings.Trim(strings.TrimSuffix(f[2], ".fifo"), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		return nil, fail(ErrMalformed, "queue path %q is not /ACCOUNT/NAME", path)
	}
	c.fact("queue", f[2])
	head := c.expand("arn:$P:sqs:$R:")
	return []Pattern{Pattern(head + f[1] + ":" + f[2])}, nil
}

// lambda reads a function: NAME, ACCOUNT:function:NAME or an ARN, each with an
// optional qualifier, which may also be a parameter of its own.
func (c *reading) lambda(v string) ([]Pattern, error) {
	q, hasQ, err := c.str("Qualifier")
	if err != nil {
		return nil, err
	}
	account, region := c.call.Account, c.call.Region
	if p, ok := arnParts(v); ok {
		if p[1] != c.call.Partition || p[2] != "lambda" {
			return nil, fail(ErrMismatch, "ARN %q is not of this service", v)
		}
		region, account, v = p[3], p[4], p[5]
		v, ok = strings.CutPrefix(v, "function:")
		if !ok {
			return nil, fail(ErrMismatch, "ARN of no function")
		}
	} else if f := strings.SplitN(v, ":", 3); len(f) == 3 && isAccount(f[0]) && f[1] == "function" {
		account, v = f[0], f[2]
	}
	name, inline, both := strings.Cut(v, ":")
	if both && hasQ && inline != q {
		return nil, fail(ErrAmbiguous, "two qualifiers")
	}
	if both {
		q, hasQ = inline, true
	}
	for _, s := range []string{name, q} {
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-$.") != "" {
			return nil, fail(ErrMalformed, "function name")
		}
	}
	if name == "" || account != "" && !isAccount(account) || partitionOf(region) == "" && !c.target.Custom {
		return nil, fail(ErrMalformed, "function name")
	}
	if account == "" {
		account = "*"
	}
	c.fact("function", name)
	arn := "arn:" + c.call.Partition + ":lambda:" + region + ":" + account + ":function:" + string(Literal(name))
	if hasQ {
		c.fact("qualifier", q)
		arn += ":" + string(Literal(q))
	}
	return []Pattern{Pattern(arn)}, nil
}

// key reads KMS's KeyId. An alias is no resource of a key's permissions: any
// key is allowed, on condition that the request names it by that alias.
func (c *reading) key(v string) (found, error) {
	if p, ok := arnParts(v); ok {
		if alias := p[5]; strings.HasPrefix(alias, "alias/") {
			if _, err := c.arn(v, "alias/"); err != nil {
				return found{}, err
			}
			head := Pattern(strings.Join(p[:5], ":") + ":key/*")
			return found{res: []Pattern{head}, conds: equals("kms:RequestAlias", alias)}, nil
		}
		r, err := c.arn(v, "key/")
		return found{res: []Pattern{r}}, err
	}
	if strings.HasPrefix(v, "alias/") {
		c.fact("alias", v)
		return found{res: []Pattern{c.build("key/") + "*"}, conds: equals("kms:RequestAlias", v)}, nil
	}
	if strings.ContainsAny(v, "/:") {
		return found{}, fail(ErrMalformed, "KeyId %q", v)
	}
	c.fact("key", v)
	return found{res: []Pattern{c.build("key/", v)}}, nil
}

// equals is the condition that a key has one of these values. Evaluators do not
// agree on `${$}` in StringEquals; in StringLike they do.
func equals(key string, values ...string) []Condition {
	c := Condition{Operator: "StringEquals", Key: key, Values: values}
	if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "$") }) {
		c.Operator, c.Values = "StringLike", nil
		for _, v := range values {
			c.Values = append(c.Values, string(Literal(v)))
		}
	}
	return []Condition{c}
}

// secret reads a SecretId. Secrets Manager appends a dash and six characters to
// a secret's name in its ARN; a name or partial ARN stands for that.
func (c *reading) secret(v string) ([]Pattern, error) {
	if strings.HasPrefix(v, "arn:") {
		p, err := c.arn(v, "secret:")
		if err != nil {
			return nil, err
		}
		if i := strings.LastIndexByte(v, '-'); i >= 0 && len(v)-i == 7 {
			return []Pattern{p}, nil
		}
		return []Pattern{p + "-??????"}, nil
	}
	c.fact("secret", v)
	return []Pattern{c.build("secret:", v) + "-??????"}, nil
}

func (c *reading) secrets(member string) (found, bool, error) {
	ids, err := c.strs(member)
	if err != nil || len(ids) == 0 {
		return found{}, false, err
	}
	var f found
	for _, id := range ids {
		p, err := c.secret(id)
		if err != nil {
			return f, false, err
		}
		f.res = append(f.res, p...)
	}
	return f, true, nil
}

// parameter reads an SSM parameter's name, less its version or label.
func (c *reading) parameter(v string) ([]Pattern, error) {
	if strings.HasPrefix(v, "arn:") {
		p, ok := arnParts(v)
		if !ok || len(p) != 6 {
			return nil, fail(ErrMalformed, "parameter ARN")
		}
		if i := strings.IndexByte(p[5], ':'); i >= 0 {
			v = strings.Join(p[:5], ":") + ":" + p[5][:i]
		}
		r, err := c.arn(v, "parameter/")
		return []Pattern{r}, err
	}
	v, _, _ = strings.Cut(v, ":")
	c.fact("parameter", v)
	v = strings.TrimPrefix(v, "/")
	if v == "" {
		return []Pattern{c.build("parameter")}, nil // the root, of GetParametersByPath
	}
	return []Pattern{c.build("parameter/", v)}, nil
}

func (c *reading) parameters(member string) (found, bool, error) {
	names, err := c.strs(member)
	if err != nil || len(names) == 0 {
		return found{}, false, err
	}
	var f found
	for _, n := range names {
		p, err := c.parameter(n)
		if err != nil {
			return f, false, err
		}
		f.res = append(f.res, p...)
	}
	return f, true, nil
}

// logGroup reads a log group's name or ARN. CloudWatch Logs checks some actions
// against the group's ARN and others against the group's streams.
func (c *reading) logGroup(v string) ([]Pattern, error) {
	p, err := c.group(v)
	return []Pattern{p, p + ":*"}, err
}

func (c *reading) group(v string) (Pattern, error) {
	if strings.HasPrefix(v, "arn:") {
		return c.arn(strings.TrimSuffix(v, ":*"), "log-group:")
	}
	if strings.ContainsRune(v, ':') {
		return "", fail(ErrMalformed, "log group name %q", v)
	}
	c.fact("logGroup", v)
	return c.build("log-group:", v), nil
}

func (c *reading) logStream(v string) (found, error) {
	g, err := c.group(v)
	if err != nil {
		return found{}, err
	}
	s, ok, err := c.str("logStreamName")
	if err != nil {
		return found{}, err
	}
	if !ok {
		return found{res: []Pattern{g, g + ":*"}, wide: true}, nil
	}
	c.fact("logStream", s)
	return found{res: []Pattern{g + ":log-stream:" + Literal(s)}}, nil
}

// bus reads an event bus by name or ARN.
func (c *reading) bus(v string) ([]Pattern, error) {
	if strings.HasPrefix(v, "arn:") {
		p, err := c.arn(v, "event-bus/")
		return []Pattern{p}, err
	}
	c.fact("eventBus", v)
	return []Pattern{c.build("event-bus/", v)}, nil
}

func (c *reading) busEntries(member string) (found, bool, error) {
	entries, err := c.list(member)
	if err != nil || len(entries) == 0 {
		return found{}, false, err
	}
	var f found
	for _, e := range entries {
		v, ok, err := e.text("EventBusName")
		if err != nil {
			return f, false, err
		}
		if !ok {
			v = "default"
		}
		p, err := c.bus(v)
		if err != nil {
			return f, false, err
		}
		f.res = append(f.res, p...)
	}
	return f, true, nil
}

// busRule is a rule on the event bus v; the rule's name is Name or Rule.
func (c *reading) busRule(v string) (found, error) {
	name, ok, err := c.str("Name")
	if err == nil && !ok {
		name, ok, err = c.str("Rule")
	}
	if err != nil {
		return found{}, err
	}
	if p, isARN := arnParts(v); isARN {
		if _, err := c.arn(v, "event-bus/"); err != nil {
			return found{}, err
		}
		v = strings.TrimPrefix(p[5], "event-bus/")
	}
	kind := "rule/"
	if v != "default" {
		kind += string(Literal(v)) + "/"
	}
	if !ok {
		return found{res: []Pattern{c.build(kind) + "*"}, wide: true}, nil
	}
	c.fact("rule", name)
	return found{res: []Pattern{c.build(kind, name)}}, nil
}

// model reads Bedrock's model: a foundation model's id, an inference profile's
// id, or an ARN of any kind. A profile routes to foundation models in regions
// that the request does not name, so they are allowed on condition that they
// are reached through it.
func (c *reading) model(v string) (found, error) {
	c.fact("model", v)
	if p, ok := arnParts(v); ok {
		r, err := c.arn(v, "")
		if err != nil {
			return found{}, err
		}
		if !strings.Contains(p[5], "inference-profile/") {
			return found{res: []Pattern{r}}, nil
		}
		return found{done: true}, c.viaProfile(r)
	}
	if strings.ContainsAny(v, "/*?$") {
		return found{}, fail(ErrMalformed, "model id %q", v)
	}
	geo, rest, _ := strings.Cut(v, ".")
	switch geo {
	case "us", "eu", "apac", "us-gov", "global", "jp", "au", "ca":
		if strings.Contains(rest, ".") {
			return found{done: true}, c.viaProfile(c.build("inference-profile/", v))
		}
	}
	return found{res: []Pattern{Pattern(c.expand("arn:$P:bedrock:$R::foundation-model/")) + Literal(v)}}, nil
}

// viaProfile adds the foundation models behind an inference profile.
func (c *reading) viaProfile(profile Pattern) error {
	models := Pattern("arn:" + c.call.Partition + ":bedrock:*::foundation-model/*")
	if p, ok := arnParts(string(profile)); ok && strings.HasPrefix(p[5], "inference-profile/") {
		// A system profile is a geography and the model's id.
		if _, id, ok := strings.Cut(strings.TrimPrefix(p[5], "inference-profile/"), "."); ok {
			models = Pattern("arn:" + c.call.Partition + ":bedrock:*::foundation-model/" + id)
		}
	}
	for _, r := range c.op.rules {
		for _, a := range r.actions {
			c.call.Access = append(c.call.Access,
				Access{Action: a, Resources: []Pattern{profile}},
				Access{Action: a, Resources: []Pattern{models}, Conditions: []Condition{{Operator: "StringEquals", Key: "bedrock:InferenceProfileArn", Values: []string{string(profile)}}}})
		}
	}
	return nil
}

// subscription is the topic of a subscription's ARN.
func (c *reading) subscription(v string) ([]Pattern, error) {
	i := strings.LastIndexByte(v, ':')
	if strings.Count(v, ":") != 6 || i < 0 {
		return nil, fail(ErrMalformed, "SubscriptionArn %q", v)
	}
	p, err := c.arn(v[:i], "")
	return []Pattern{p}, err
}

// repository is an ECR repository, perhaps of another account's registry.
func (c *reading) repository(v string) ([]Pattern, error) {
	registry, ok, err := c.str("registryId")
	if err != nil {
		return nil, err
	}
	if !ok {
		c.fact("repository", v)
		return []Pattern{c.build("repository/", v)}, nil
	}
	if !isAccount(registry) {
		return nil, fail(ErrMalformed, "registryId %q", registry)
	}
	c.fact("repository", v)
	return []Pattern{Pattern(c.expand("arn:$P:ecr:$R:")+registry+":repository/") + Literal(v)}, nil
}

// execution reads a Step Functions execution's ARN: of a standard, an express
// or a labelled run.
func (c *reading) execution(v string) ([]Pattern, error) {
	tail := "execution:"
	if p, ok := arnParts(v); ok && strings.HasPrefix(p[5], "express:") {
		tail = "express:"
	}
	p, err := c.arn(v, tail)
	return []Pattern{p}, err
}
