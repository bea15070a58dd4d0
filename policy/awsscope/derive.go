package awsscope

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/attache-dev/attache/internal/iampolicy"
)

// MaxPolicy is STS's limit for the plain text of a session policy, in
// characters. AWS has a second limit, of the packed form, that only STS can
// compute (PackedPolicySize in its answer).
const MaxPolicy = 2048

// Granularity says how much of the static policy one session may do.
type Granularity string

// The granularities, narrowest first.
const (
	GranularityRequest Granularity = "request" // the call's actions on its resources
	GranularityPrefix  Granularity = "prefix"  // S3: the call's actions below its keys' prefixes
	GranularityTask    Granularity = "task"    // what the static policy allows of the call's service
	GranularitySession Granularity = "session" // the static policy itself
)

// Options of Derive. The zero value is the safe one for AWS.
type Options struct {
	// NoEscapes: the server does not honour ${*}, ${?} and ${$}. A call that
	// needs one is refused.
	NoEscapes bool
	// NotAfter, if set, ends every Allow statement by aws:CurrentTime, rounded
	// down to a second. Round it to a coarser step for a useful cache key.
	NotAfter time.Time
}

// Derive writes the session policy for a call: what the call needs, as far as
// the static policy allows all of it, with the static policy's Deny statements.
// The text is canonical, so that equal scopes are equal strings. It is the only
// session policy that may be sent: AWS adds up what several allow.
func Derive(call Call, static Policy, g Granularity, o Options) (string, error) {
	if len(call.Access) == 0 {
		return "", fail(ErrUnsupported, "a call without an action")
	}
	derived, err := intersect(call, static, call.Access)
	if err != nil {
		return "", err
	}
	var out []outStatement
	switch g {
	case GranularityRequest:
		out = statements(derived)
	case GranularityPrefix:
		// Widen what the static policy also allows widened; the rest stays.
		out = statements(widen(call, static, derived))
	case GranularityTask:
		if out, err = static.ofService(call.Service); err != nil {
			return "", err
		}
	case GranularitySession:
		for _, s := range static.statements {
			if !s.deny {
				out = append(out, s.out())
			}
		}
	default:
		return "", fail(ErrUnsupported, "granularity %q", g)
	}
	stamp, allows := bound(out, o.NotAfter), len(out)
	for _, s := range static.statements {
		if s.deny {
			out = append(out, s.out())
		}
	}
	p, err := render(out, o)
	if err != nil {
		return "", err
	}
	return p, reserved(p, stamp, allows)
}

// intersect returns the accesses, each with the conditions that the static
// policy puts on it, or an error if the policy does not allow one of them.
func intersect(call Call, static Policy, access []Access) ([]Access, error) {
	var out []Access
	for _, a := range access {
		for _, r := range a.Resources {
			carried, err := static.allow(&call, a, r)
			if err != nil {
				return nil, err
			}
			out = append(out, Access{Action: a.Action, Resources: []Pattern{r}, Conditions: append(slices.Clone(a.Conditions), carried...)})
		}
	}
	return out, nil
}

// widen replaces an object's key by its prefix where the static policy allows
// that.
func widen(call Call, static Policy, access []Access) []Access {
	if call.Service != "s3" {
		return access
	}
	out := slices.Clone(access)
	for i, a := range access {
		w := Access{Action: a.Action, Conditions: []Condition{}}
		for _, c := range a.Conditions {
			switch c.Key {
			case "s3:VersionId":
				continue
			case "s3:prefix":
				v := c.Values[0]
				if c.Operator == "StringEquals" {
					v = string(Literal(v))
				}
				c = Condition{Operator: "StringLike", Key: c.Key, Values: []string{v[:strings.LastIndexByte(v, '/')+1] + "*"}}
			}
			w.Conditions = append(w.Conditions, c)
		}
		r := keyPrefix(a.Resources[0])
		w.Resources = []Pattern{r}
		if got, err := intersect(call, static, []Access{w}); err == nil {
			out[i] = got[0]
		}
	}
	return out
}

// keyPrefix is an object's resource with all below its last slash.
func keyPrefix(r Pattern) Pattern {
	p, ok := arnParts(string(r))
	if !ok || !strings.Contains(p[5], "/") {
		return r
	}
	if strings.HasPrefix(p[5], "accesspoint/") && !strings.Contains(p[5], "/object/") {
		return r
	}
	s := string(r)
	return Pattern(s[:strings.LastIndexByte(s, '/')+1] + "*")
}

// ofService is the Allow side of the policy as far as it speaks of a service.
func (p Policy) ofService(service string) ([]outStatement, error) {
	var out []outStatement
	for _, s := range p.statements {
		if s.deny {
			continue
		}
		if s.notAction {
			return nil, fail(ErrPolicy, "granularity task needs Action, not NotAction, in Allow statements")
		}
		var actions []string
		for _, a := range s.action {
			prefix, _, ok := strings.Cut(a, ":")
			switch {
			case a == "*":
				actions = append(actions, service+":*")
			case ok && strings.EqualFold(prefix, service):
				actions = append(actions, a)
			}
		}
		if actions != nil {
			o := s.out()
			o.actions = actions
			out = append(out, o)
		}
	}
	return out, nil
}

// An outStatement is a statement on its way out.
type outStatement struct {
	deny        bool
	actions     []string
	notAction   bool
	resources   []string
	notResource bool
	conditions  []Condition
}

func (s *statement) out() outStatement {
	o := outStatement{deny: s.deny, actions: slices.Clone(s.action), notAction: s.notAction, notResource: s.notResource, conditions: slices.Clone(s.conditions)}
	for _, r := range s.resource {
		o.resources = append(o.resources, string(r))
	}
	return o
}

// canonical sorts accesses, joins those that differ only in resource, and
// drops repetitions.
func canonical(in []Access) []Access {
	byKey := map[string]*Access{}
	var keys []string
	for _, a := range in {
		k := a.Action + "\x00" + conditionText(a.Conditions)
		if byKey[k] == nil {
			keys = append(keys, k)
			byKey[k] = &Access{Action: a.Action, Conditions: a.Conditions}
		}
		byKey[k].Resources = append(byKey[k].Resources, a.Resources...)
	}
	slices.Sort(keys)
	out := make([]Access, len(keys))
	for i, k := range keys {
		a := byKey[k]
		slices.Sort(a.Resources)
		a.Resources = slices.Compact(a.Resources)
		out[i] = *a
	}
	return out
}

// statements groups accesses: those of one action and condition by their
// resources, then actions with the same resources and condition.
func statements(access []Access) []outStatement {
	byKey := map[string]*outStatement{}
	var keys []string
	for _, a := range canonical(access) {
		var res []string
		for _, r := range a.Resources {
			res = append(res, string(r))
		}
		k := strings.Join(res, "\x00") + "\x01" + conditionText(a.Conditions)
		if byKey[k] == nil {
			keys = append(keys, k)
			byKey[k] = &outStatement{resources: res, conditions: a.Conditions}
		}
		byKey[k].actions = append(byKey[k].actions, a.Action)
	}
	slices.Sort(keys)
	var out []outStatement
	for _, k := range keys {
		out = append(out, *byKey[k])
	}
	return out
}

// bound adds the end of validity to every Allow statement and returns its text.
// Where a statement has an end already both must hold: the same key stands in
// two operators, for two values of one would be alternatives.
func bound(out []outStatement, end time.Time) string {
	if end.IsZero() {
		return ""
	}
	stamp := end.UTC().Truncate(time.Second).Format(time.RFC3339)
	for i := range out {
		op := "DateLessThan"
		if slices.ContainsFunc(out[i].conditions, endsByTime) {
			op = "DateLessThanEquals"
		}
		out[i].conditions = append(slices.Clone(out[i].conditions), Condition{Operator: op, Key: currentTime, Values: []string{stamp}})
	}
	return stamp
}

const currentTime = "aws:CurrentTime"

func endsByTime(c Condition) bool {
	return c.Operator == "DateLessThan" && strings.EqualFold(c.Key, currentTime)
}

// reserved refuses a policy in which [iampolicy.OpenEnd] stands anywhere but at
// the end of its Allow statements: it would be replaced there too.
func reserved(policy, stamp string, allows int) error {
	if stamp != iampolicy.OpenEnd {
		allows = 0
	}
	if strings.Count(policy, iampolicy.OpenEnd) != allows {
		return fail(ErrUnsupported, "a name or condition holds %s, which stands for the end of the session", iampolicy.OpenEnd)
	}
	return nil
}

func conditionText(cs []Condition) string {
	cs = slices.Clone(cs)
	slices.SortFunc(cs, compareConditions)
	b, _ := json.Marshal(cs)
	return string(b)
}

func compareConditions(a, b Condition) int {
	return cmp.Or(cmp.Compare(a.Operator, b.Operator), cmp.Compare(a.Key, b.Key), slices.Compare(a.Values, b.Values))
}

// render writes the policy: keys in a fixed order, no blanks, ASCII only.
func render(out []outStatement, o Options) (string, error) {
	var b strings.Builder
	b.WriteString(`{"Version":"2012-10-17","Statement":[`)
	for i, s := range out {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := s.render(&b); err != nil {
			return "", err
		}
	}
	b.WriteString("]}")
	p := b.String()
	if o.NoEscapes && strings.Contains(p, "${") {
		return "", fail(ErrEscape, "it has *, ? or $ in a name")
	}
	if len(p) > MaxPolicy {
		return "", fail(ErrTooLarge, "%d characters, %d over the limit of %d, in %d statements", len(p), len(p)-MaxPolicy, MaxPolicy, len(out))
	}
	return p, nil
}

func (s outStatement) render(b *strings.Builder) error {
	effect := "Allow"
	if s.deny {
		effect = "Deny"
	}
	fmt.Fprintf(b, `{"Effect":%q,"%sAction":`, effect, not(s.notAction))
	list(b, s.actions)
	fmt.Fprintf(b, `,"%sResource":`, not(s.notResource))
	list(b, s.resources)
	if len(s.conditions) > 0 {
		b.WriteString(`,"Condition":{`)
		if err := renderConditions(b, s.conditions); err != nil {
			return err
		}
		b.WriteByte('}')
	}
	b.WriteByte('}')
	return nil
}

func not(n bool) string {
	if n {
		return "Not"
	}
	return ""
}

// renderConditions writes a condition block. Two conditions with one operator
// and key cannot both stand in it: all but equal ones are refused.
func renderConditions(b *strings.Builder, cs []Condition) error {
	cs = slices.Clone(cs)
	slices.SortFunc(cs, compareConditions)
	cs = slices.CompactFunc(cs, func(a, b Condition) bool { return compareConditions(a, b) == 0 })
	for i, c := range cs {
		same := i > 0 && cs[i-1].Operator == c.Operator
		switch {
		case same && strings.EqualFold(cs[i-1].Key, c.Key):
			return fail(ErrPolicy, "two conditions %s %s that cannot be joined", c.Operator, c.Key)
		case same:
			b.WriteByte(',')
		case i > 0:
			b.WriteString("},")
		}
		if !same {
			b.WriteString(quote(c.Operator) + ":{")
		}
		b.WriteString(quote(c.Key) + ":")
		list(b, c.Values)
	}
	b.WriteByte('}')
	return nil
}

// list writes one string bare and several sorted in brackets.
func list(b *strings.Builder, v []string) {
	v = slices.Clone(v)
	slices.Sort(v)
	v = slices.Compact(v)
	if len(v) == 1 {
		b.WriteString(quote(v[0]))
		return
	}
	b.WriteByte('[')
	for i, s := range v {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quote(s))
	}
	b.WriteByte(']')
}

// quote is a JSON string of ASCII alone: STS takes no character over U+00FF.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r >= 0x20 && r < 0x7f:
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
