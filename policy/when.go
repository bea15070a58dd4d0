package policy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
)

const (
	// maxWhenCost bounds the work of one evaluation in CEL's cost units, about
	// one a comparison of short texts; it is reached after some milliseconds.
	maxWhenCost = 20_000
	// maxWhenLength bounds an expression, in bytes.
	maxWhenLength = 8192
)

// condition is a compiled when. It is safe for concurrent use.
type condition struct {
	source  string
	program cel.Program
	// connection says that it looks at nothing of a request but its host and
	// port, so that it can be asked before one is read.
	connection bool
	// inPod names a variable it looks at that is known beside the agent alone:
	// process, task or human; empty: none.
	inPod string
	// unrecorded names what it looks at that no record holds, sorted.
	unrecorded []string
}

// holds evaluates the condition. An error means that it has no answer.
func (c *condition) holds(a *activation) (bool, error) {
	v, _, err := c.program.Eval(a)
	if err != nil {
		return false, err
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the condition gave no truth value")
	}
	return bool(b), nil
}

// conditions compiles expressions, equal ones once.
type conditions struct {
	env  *cel.Env
	done map[string]*condition
}

func newConditions() (*conditions, error) {
	p := newProvider()
	opts := []cel.EnvOption{
		cel.CustomTypeProvider(p),
		cel.CustomTypeAdapter(p),
		cel.ParserExpressionSizeLimit(maxWhenLength),
		cel.Variable("time", cel.TimestampType),
	}
	for _, o := range objects() {
		opts = append(opts, cel.Variable(o.name, o.celType()))
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		return nil, fmt.Errorf("prepare the expression language: %w", err)
	}
	return &conditions{env: env, done: map[string]*condition{}}, nil
}

// compile checks and compiles one expression. The error says at which line and
// column of the expression it is wrong and what would be right.
func (c *conditions) compile(source string) (*condition, error) {
	if done := c.done[source]; done != nil {
		return done, nil
	}
	if len(source) > maxWhenLength {
		return nil, fmt.Errorf("is longer than %d bytes; split the rule", maxWhenLength)
	}
	parsed, iss := c.env.Parse(source)
	if iss.Err() != nil {
		return nil, explainIssues(iss, nil)
	}
	checked, iss := c.env.Check(parsed)
	if iss.Err() != nil {
		return nil, explainIssues(iss, parsed.NativeRep())
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("gives a %s; it must give a bool, such as request.method == \"GET\"", cel.FormatCELType(t))
	}
	tree := checked.NativeRep()
	if err := checkTimeZones(tree); err != nil {
		return nil, err
	}
	program, err := c.env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxWhenCost))
	if err != nil {
		return nil, fmt.Errorf("cannot be compiled: %w", err)
	}
	done := &condition{source: source, program: program, connection: connectionOnly(tree), inPod: mentionsPod(tree), unrecorded: mentionsUnrecorded(tree)}
	c.done[source] = done
	return done, nil
}

// explainIssues turns CEL's issues into one error.
func explainIssues(iss *cel.Issues, tree *celast.AST) error {
	var texts []string
	for _, e := range iss.Errors() {
		text := fmt.Sprintf("at %d:%d of the expression: %s", e.Location.Line(), e.Location.Column()+1, e.Message)
		if hint := fieldHint(tree, e.ExprID); hint != "" && strings.HasPrefix(e.Message, "undefined field") {
			text += "; " + hint
		} else if strings.HasPrefix(e.Message, "undeclared reference") {
			text += "; there are request, workload, process, task, human and time"
		}
		texts = append(texts, text)
	}
	return errors.New(strings.Join(texts, "; "))
}

// fieldHint lists the fields of the object that expression id selects from.
func fieldHint(tree *celast.AST, id int64) string {
	if tree == nil {
		return ""
	}
	var hint string
	visitSelects(tree, func(e celast.Expr, object, _ string) {
		if e.ID() != id {
			return
		}
		for _, o := range objects() {
			if o.name == object {
				hint = object + " has " + strings.Join(o.fieldNames(), ", ")
			}
		}
	})
	return hint
}

// visitSelects calls f for each selection of a field from a plain identifier.
func visitSelects(tree *celast.AST, f func(e celast.Expr, object, field string)) {
	celast.PreOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.SelectKind {
			return
		}
		if s := e.AsSelect(); s.Operand().Kind() == celast.IdentKind {
			f(e, s.Operand().AsIdent(), s.FieldName())
		}
	}))
}

// connectionOnly reports whether an expression uses of request only what a
// connection already shows. Any other mention of request, such as comparing
// the whole, counts as use.
func connectionOnly(tree *celast.AST) bool {
	mentions, harmless := 0, 0
	celast.PreOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.IdentKind && strings.TrimPrefix(e.AsIdent(), ".") == "request" {
			mentions++
		}
	}))
	visitSelects(tree, func(_ celast.Expr, object, field string) {
		if strings.TrimPrefix(object, ".") == "request" && (field == "host" || field == "port") {
			harmless++
		}
	})
	return mentions == harmless
}

// mentionsPod names the first variable that is known beside the agent alone.
func mentionsPod(tree *celast.AST) (name string) {
	celast.PreOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.IdentKind || name != "" {
			return
		}
		switch id := strings.TrimPrefix(e.AsIdent(), "."); id {
		case "process", "task", "human":
			name = id
		}
	}))
	return name
}

// mentionsUnrecorded names what an expression looks at that no record holds. The
// mention of a whole object counts as its fields.
func mentionsUnrecorded(tree *celast.AST) []string {
	lacks := map[string][]string{
		"request": {"headers", "query"}, "workload": {"images", "posture"}, "human": {"groups"}, "task": {"expires"}, "process": nil, "time": nil,
	}
	whole := map[string]int{}
	found := map[string]bool{}
	celast.PreOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.IdentKind {
			whole[strings.TrimPrefix(e.AsIdent(), ".")]++
		}
	}))
	visitSelects(tree, func(_ celast.Expr, object, field string) {
		object = strings.TrimPrefix(object, ".")
		whole[object]--
		if slices.Contains(lacks[object], field) {
			found[object+"."+field] = true
		}
	})
	for object, fields := range lacks {
		if whole[object] > 0 {
			for _, f := range fields {
				found[object+"."+f] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// fixedZone is a time zone that needs no time zone database.
func fixedZone() *regexp.Regexp { return regexp.MustCompile(`^(UTC|[+-]?\d\d:\d\d)$`) }

// checkTimeZones refuses named time zones: looking one up reads a file, and a
// decision is pure.
func checkTimeZones(tree *celast.AST) error {
	zoned := []string{"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours",
		"getMilliseconds", "getMinutes", "getMonth", "getSeconds"}
	zone := fixedZone()
	var err error
	celast.PreOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.CallKind || !slices.Contains(zoned, e.AsCall().FunctionName()) || len(e.AsCall().Args()) == 0 {
			return
		}
		arg := e.AsCall().Args()[0]
		if arg.Kind() == celast.LiteralKind {
			if s, ok := arg.AsLiteral().Value().(string); ok && zone.MatchString(s) {
				return
			}
		}
		start := tree.SourceInfo().GetStartLocation(arg.ID())
		err = fmt.Errorf("at %d:%d of the expression: %s takes a fixed offset written as text, such as \"UTC\" or \"+02:00\"",
			start.Line(), start.Column()+1, e.AsCall().FunctionName())
	}))
	return err
}
