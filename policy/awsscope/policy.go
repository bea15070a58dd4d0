package awsscope

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/internal/iampolicy"
)

// A Policy is a static IAM policy: the most that a rule's sessions may do.
type Policy struct {
	statements []statement
}

// AllowAll is the policy that allows everything: what bounds a session is then
// its role.
func AllowAll() Policy {
	return Policy{statements: []statement{{action: []string{"*"}, resource: []Pattern{"*"}}}}
}

// NotUnderstood lists the statements whose conditions are beyond Derive: those
// that allow nothing, and those that deny whatever they might touch.
func (p Policy) NotUnderstood() (allows, denies []string) {
	for i, s := range p.statements {
		text := fmt.Sprintf("Statement[%d] with condition %s", i, s.unknownConds)
		switch {
		case s.unknownConds == "":
		case s.deny:
			denies = append(denies, text)
		default:
			allows = append(allows, text)
		}
	}
	return allows, denies
}

// A statement is one statement, parsed; lists are never empty where present.
type statement struct {
	deny         bool
	action       []string
	notAction    bool
	resource     []Pattern
	notResource  bool
	conditions   []Condition
	unknownConds string // the first condition that is not understood
}

// ParsePolicy reads an IAM policy document strictly: duplicate keys, keys that
// differ in case, unknown elements and policy variables are errors. Of
// conditions it understands the operators StringEquals, StringLike,
// StringNotEquals, StringNotLike, Bool, DateLessThan and DateGreaterThan over
// aws:SecureTransport, aws:RequestedRegion, aws:CurrentTime, s3:prefix,
// s3:VersionId and kms:RequestAlias; any other makes an Allow statement allow
// nothing and a Deny statement refuse.
func ParsePolicy(doc []byte) (Policy, error) {
	o, err := parseJSON(doc)
	if err != nil {
		return Policy{}, fail(ErrPolicy, "%v", err)
	}
	for _, k := range o.keys {
		if k != "Version" && k != "Id" && k != "Statement" {
			return Policy{}, fail(ErrPolicy, "unknown element %q; there are Version, Id and Statement", k)
		}
	}
	if o.vals["Version"] != "2012-10-17" {
		return Policy{}, fail(ErrPolicy, "Version is %v; must be 2012-10-17", o.vals["Version"])
	}
	list, ok := o.vals["Statement"].([]any)
	if one, single := o.vals["Statement"].(*object); single {
		list, ok = []any{one}, true
	}
	if !ok || len(list) == 0 {
		return Policy{}, fail(ErrPolicy, "no Statement")
	}
	var p Policy
	for i, e := range list {
		so, ok := e.(*object)
		if !ok {
			return Policy{}, fail(ErrPolicy, "Statement[%d] is no object", i)
		}
		s, err := parseStatement(so)
		if err != nil {
			return Policy{}, fail(ErrPolicy, "Statement[%d]: %s", i, strings.TrimPrefix(err.Error(), ErrPolicy.Error()+": "))
		}
		p.statements = append(p.statements, s)
	}
	return p, nil
}

func parseStatement(o *object) (statement, error) {
	var s statement
	if err := o.foldUnique(); err != nil {
		return s, err
	}
	effect := ""
	for _, k := range o.keys {
		var err error
		switch k {
		case "Sid":
		case "Effect":
			effect, _ = o.vals[k].(string)
		case "Action", "NotAction":
			if s.action != nil {
				return s, fail(ErrPolicy, "Action and NotAction")
			}
			s.action, err = stringList(o.vals[k])
			s.notAction = k == "NotAction"
		case "Resource", "NotResource":
			if s.resource != nil {
				return s, fail(ErrPolicy, "Resource and NotResource")
			}
			var list []string
			list, err = stringList(o.vals[k])
			for _, r := range list {
				if _, ok := Pattern(r).tokens(); !ok {
					return s, fail(ErrPolicy, "policy variable in %q; write the name itself, or a wildcard", r)
				}
				s.resource = append(s.resource, Pattern(r))
			}
			s.notResource = k == "NotResource"
		case "Condition":
			err = s.parseConditions(o.vals[k])
		default:
			err = fail(ErrPolicy, "unknown element %q; there are Sid, Effect, Action, NotAction, Resource, NotResource and Condition", k)
		}
		if err != nil {
			return s, err
		}
	}
	if s.mentions(iampolicy.OpenEnd) {
		return s, fail(ErrPolicy, "%s stands for the end of a session; choose another time", iampolicy.OpenEnd)
	}
	s.deny = effect == "Deny"
	if effect != "Allow" && effect != "Deny" || s.action == nil || s.resource == nil {
		return s, fail(ErrPolicy, "needs Effect, Action and Resource")
	}
	return s, nil
}

// mentions reports whether text stands anywhere in the statement.
func (s *statement) mentions(text string) bool {
	has := func(v string) bool { return strings.Contains(v, text) }
	return slices.ContainsFunc(s.action, has) ||
		slices.ContainsFunc(s.resource, func(r Pattern) bool { return has(string(r)) }) ||
		slices.ContainsFunc(s.conditions, func(c Condition) bool {
			return has(c.Operator) || has(c.Key) || slices.ContainsFunc(c.Values, has)
		})
}

func stringList(v any) ([]string, error) {
	if one, ok := v.(string); ok && one != "" {
		return []string{one}, nil
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, fail(ErrPolicy, "%v is no string nor list of strings", v)
	}
	var out []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok || s == "" {
			return nil, fail(ErrPolicy, "%v is no string", e)
		}
		out = append(out, s)
	}
	return out, nil
}

func (s *statement) parseConditions(v any) error {
	o, ok := v.(*object)
	if !ok {
		return fail(ErrPolicy, "Condition is no object")
	}
	for _, op := range o.keys {
		keys, ok := o.vals[op].(*object)
		if !ok {
			return fail(ErrPolicy, "Condition %s is no object", op)
		}
		if err := keys.foldUnique(); err != nil {
			return err
		}
		for _, k := range keys.keys {
			vals, err := scalarList(keys.vals[k])
			if err != nil {
				return err
			}
			c := Condition{Operator: op, Key: k, Values: vals}
			s.conditions = append(s.conditions, c)
			if !c.understood() && s.unknownConds == "" {
				s.unknownConds = op + " " + k
			}
		}
	}
	return nil
}

// scalarList is stringList that also takes booleans and numbers.
func scalarList(v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, e := range list {
		switch e := e.(type) {
		case string:
			out = append(out, e)
		case bool:
			out = append(out, map[bool]string{true: "true", false: "false"}[e])
		case json.Number:
			out = append(out, string(e))
		default:
			return nil, fail(ErrPolicy, "condition value %v", e)
		}
	}
	if len(out) == 0 {
		return nil, fail(ErrPolicy, "a condition without values")
	}
	return out, nil
}

func (c Condition) understood() bool {
	for _, v := range c.Values {
		if _, ok := Pattern(v).tokens(); !ok {
			return false
		}
	}
	date := strings.EqualFold(c.Key, "aws:CurrentTime")
	switch c.Operator {
	case "StringEquals", "StringLike", "StringNotEquals", "StringNotLike":
		return !date && slices.ContainsFunc([]string{"aws:RequestedRegion", "s3:prefix", "s3:VersionId", "kms:RequestAlias"}, func(k string) bool { return strings.EqualFold(k, c.Key) })
	case "Bool":
		return strings.EqualFold(c.Key, "aws:SecureTransport") && len(c.Values) == 1
	case "DateLessThan", "DateGreaterThan":
		return date && len(c.Values) == 1
	}
	return false
}

// holds evaluates an understood condition for an access of a call. Where the
// derived access leaves the key open, known is false.
func (c Condition) holds(call *Call, a Access) (holds, known bool) {
	switch {
	case strings.EqualFold(c.Key, "aws:SecureTransport"):
		return strings.EqualFold(c.Values[0], "true") != call.Cleartext, true
	case strings.EqualFold(c.Key, "aws:CurrentTime"):
		return true, false // the issuer's to judge: carried into the session policy
	case strings.EqualFold(c.Key, "aws:RequestedRegion"):
		return c.compare(call.Region), call.Region != ""
	}
	for _, mine := range a.Conditions {
		if !strings.EqualFold(mine.Key, c.Key) || len(mine.Values) != 1 {
			continue
		}
		switch v := mine.Values[0]; mine.Operator {
		case "StringEquals":
			return c.compare(v), true
		case "StringLike":
			t, ok := Pattern(v).tokens()
			wild := slices.Contains(t, anyMany) || slices.Contains(t, anyOne)
			if ok && (!wild || c.Operator == "StringLike") {
				return c.compareTokens(t), true
			}
		}
	}
	return false, false
}

func (c Condition) compare(v string) bool {
	t, _ := Literal(v).tokens()
	return c.compareTokens(t)
}

func (c Condition) compareTokens(v []rune) bool {
	like := strings.HasSuffix(c.Operator, "Like")
	any := false
	for _, p := range c.Values {
		t, _ := Pattern(p).tokens()
		if !like { // wildcards mean themselves
			for i, r := range t {
				switch r {
				case anyMany:
					t[i] = '*'
				case anyOne:
					t[i] = '?'
				}
			}
		}
		any = any || covers(t, v)
	}
	return any != strings.Contains(c.Operator, "Not")
}

// actionMatches reports whether the statement speaks of an action. IAM actions
// know no case.
func (s *statement) actionMatches(action string) bool {
	at, _ := Literal(strings.ToLower(action)).tokens()
	hit := slices.ContainsFunc(s.action, func(p string) bool {
		t, ok := Pattern(strings.ToLower(p)).tokens()
		return ok && covers(t, at)
	})
	return hit != s.notAction
}

// covers reports whether the statement's resources hold all of r.
func (s *statement) covers(r Pattern) bool {
	if s.notResource {
		return !slices.ContainsFunc(s.resource, func(p Pattern) bool { return resourceOverlaps(p, r) })
	}
	return slices.ContainsFunc(s.resource, func(p Pattern) bool { return resourceCovers(p, r) })
}

// denies reports whether a Deny statement certainly denies the access, or has
// something that cannot be judged.
func (s *statement) denies(call *Call, a Access, r Pattern) error {
	if !s.actionMatches(a.Action) {
		return nil
	}
	touched := slices.ContainsFunc(s.resource, func(p Pattern) bool { return resourceOverlaps(p, r) })
	if s.notResource {
		touched = !slices.ContainsFunc(s.resource, func(p Pattern) bool { return resourceCovers(p, r) })
	}
	if !touched {
		return nil
	}
	if s.unknownConds != "" {
		return fail(ErrNotAllowed, "a Deny statement for %s has condition %s, which is not understood", a.Action, s.unknownConds)
	}
	for _, c := range s.conditions {
		holds, known := c.holds(call, a)
		if known && !holds {
			return nil
		}
		if !known {
			return nil // copied into the session policy; the issuer judges it
		}
	}
	literal := !strings.ContainsAny(strings.NewReplacer("${*}", "", "${?}", "").Replace(string(r)), "*?")
	whole := literal || s.notResource || slices.ContainsFunc(s.resource, func(p Pattern) bool { return resourceCovers(p, r) })
	if !whole {
		return nil // denies a part; copied
	}
	return fail(ErrNotAllowed, "%s on %s is denied by a Deny statement", a.Action, r)
}

// allow returns the conditions under which the policy allows the access on r.
func (p Policy) allow(call *Call, a Access, r Pattern) ([]Condition, error) {
	for i := range p.statements {
		if s := &p.statements[i]; s.deny {
			if err := s.denies(call, a, r); err != nil {
				return nil, err
			}
		}
	}
	why := ""
	for i := range p.statements {
		s := &p.statements[i]
		if s.deny || !s.actionMatches(a.Action) || !s.covers(r) {
			continue
		}
		if s.unknownConds != "" {
			why = "; a statement that would has condition " + s.unknownConds + ", which is not understood"
			continue
		}
		if carried, ok := s.carry(call, a); ok {
			return carried, nil
		}
		why = "; a statement that would has a condition that does not hold"
	}
	return nil, fail(ErrNotAllowed, "%s on %s%s", a.Action, r, why)
}

// carry checks an Allow statement's conditions: those that hold are done with,
// those on the time go into the session policy, any other refuses.
func (s *statement) carry(call *Call, a Access) ([]Condition, bool) {
	var out []Condition
	for _, c := range s.conditions {
		if strings.EqualFold(c.Key, "aws:CurrentTime") {
			out = append(out, c)
			continue
		}
		if holds, known := c.holds(call, a); !known || !holds {
			return nil, false
		}
	}
	return out, true
}
