package awsscope

import (
	_ "embed" // the tables
	"fmt"
	"strconv"
	"strings"
	"sync"
)

//go:embed data/operations.txt
var operationsText string

//go:embed data/rules.txt
var rulesText string

// A service is one service of the table.
type service struct {
	name, iam, sign, endpoint, protocol, target, version string

	types []string // resource patterns, with $P, $R and $A
	ops   map[string]*operation
	paths map[string][]*operation // rest: by method
}

// An operation is one operation of a service.
type operation struct {
	name   string
	action string   // IAM action without its prefix; empty if none by that name
	types  []string // the resource patterns that its action accepts
	path   []string // rest: segments
	query  string   // rest: what the query must have
	rules  []rule   // written by hand
}

// A rule is one line of rules.txt: actions and the resources they are for.
type rule struct {
	actions   []string
	resources []string
}

// credential is an action that hands out credentials, or one that does not.
type credential struct {
	name    string // as in the table, lower case, without the !
	action  []rune // the same as a glob
	not     bool
	secrets []string // members of the answer
}

type tables struct {
	services    map[string]*service
	byEndpoint  map[string][]*service
	credentials []credential
	s3          map[string]*s3Operation
}

// table parses the embedded tables once. They are ours: an error in them is a
// bug, and TestTable loads them.
var table = sync.OnceValue(func() *tables {
	t, err := load(operationsText, rulesText)
	if err != nil {
		panic(err)
	}
	return t
})

func load(operations, rules string) (*tables, error) {
	t := &tables{services: map[string]*service{}, byEndpoint: map[string][]*service{}, s3: map[string]*s3Operation{}}
	t.byEndpoint["s3"] = []*service{{name: "s3", iam: "s3", sign: "s3", endpoint: "s3", protocol: "rest-xml"}}
	var s *service
	for line := range strings.Lines(operations) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case strings.HasPrefix(line, "#"):
		case word == "service":
			s = newService(rest)
			t.services[s.name] = s
			t.byEndpoint[s.endpoint] = append(t.byEndpoint[s.endpoint], s)
		case word == "type":
			if !strings.HasPrefix(rest, "arn:") {
				rest = "arn:$P:" + s.iam + ":$R:$A:" + rest
			}
			s.types = append(s.types, rest)
		default:
			if err := s.addOperation(line); err != nil {
				return nil, fmt.Errorf("operations.txt: %q: %w", line, err)
			}
		}
	}
	return t, t.loadRules(rules)
}

func newService(head string) *service {
	f := strings.Fields(head)
	s := &service{name: f[0], ops: map[string]*operation{}, paths: map[string][]*operation{}}
	for _, kv := range f[1:] {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "iam":
			s.iam = v
		case "sign":
			s.sign = v
		case "endpoint":
			s.endpoint = v
		case "protocol":
			s.protocol = v
		case "target":
			s.target = v
		case "version":
			s.version = v
		}
	}
	return s
}

// addOperation reads `[METHOD PATH] NAME[?|=ACTION] [TYPE,TYPE]`.
func (s *service) addOperation(line string) error {
	f := strings.Fields(line)
	o := &operation{}
	method := ""
	if strings.HasPrefix(s.protocol, "rest") {
		if len(f) < 3 {
			return fmt.Errorf("want METHOD PATH NAME")
		}
		method = f[0]
		path, query, _ := strings.Cut(f[1], "?")
		o.path, o.query = strings.Split(strings.Trim(path, "/"), "/"), query
		f = f[2:]
	}
	o.name, o.action, _ = strings.Cut(f[0], "=")
	if name, none := strings.CutSuffix(o.name, "?"); none {
		o.name = name
	} else if o.action == "" {
		o.action = o.name
	}
	if len(f) > 1 {
		for i := range strings.SplitSeq(f[1], ",") {
			n, err := strconv.Atoi(i)
			if err != nil || n >= len(s.types) {
				return fmt.Errorf("type %s", i)
			}
			o.types = append(o.types, s.types[n])
		}
	}
	s.ops[o.name] = o
	if method != "" {
		s.paths[method] = append(s.paths[method], o)
	}
	return nil
}

// loadRules reads rules.txt. A section names a service; a line is
// `Operation | actions | resources`.
func (t *tables) loadRules(text string) error {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			continue
		}
		var err error
		switch section {
		case "credentials":
			f := strings.Fields(line)
			action, not := strings.CutPrefix(strings.ToLower(f[0]), "!")
			glob, _ := Pattern(action).tokens()
			t.credentials = append(t.credentials, credential{name: action, action: glob, not: not, secrets: f[1:]})
		case "s3":
			err = t.addS3(line)
		default:
			err = t.addRule(section, line)
		}
		if err != nil {
			return fmt.Errorf("rules.txt: [%s] %q: %w", section, line, err)
		}
	}
	return nil
}

func (t *tables) addRule(section, line string) error {
	s := t.services[section]
	if s == nil {
		return fmt.Errorf("no such service")
	}
	f := strings.Split(line, "|")
	if len(f) != 3 {
		return fmt.Errorf("want Operation | actions | resources")
	}
	name := strings.TrimSpace(f[0])
	o := s.ops[name]
	if o == nil {
		// Newer than the models. The action is of the same name unless the rule says otherwise.
		if strings.HasPrefix(s.protocol, "rest") {
			return fmt.Errorf("no such operation")
		}
		o = &operation{name: name}
		s.ops[name] = o
	}
	r := rule{actions: strings.Fields(f[1])}
	if len(r.actions) == 0 {
		r.actions = []string{s.iam + ":" + name}
	}
	for p := range strings.SplitSeq(f[2], ";") {
		if p = strings.TrimSpace(p); p != "" {
			r.resources = append(r.resources, p)
		}
	}
	o.rules = append(o.rules, r)
	return nil
}

// handsOut reports whether an action is one of those that exist to hand out
// credentials or secrets, and where in the answer they stand, if that is known.
func (t *tables) handsOut(action string) (secrets []string, ok bool) {
	at, ok := Literal(strings.ToLower(action)).tokens()
	if !ok {
		return nil, false
	}
	for _, c := range t.credentials {
		if covers(c.action, at) {
			return c.secrets, !c.not
		}
	}
	return nil, false
}
