package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Bounds of one file: aliases can make a small file a huge document.
const (
	maxFileNodes = 200_000
	maxDepth     = 64
)

var (
	durationType = reflect.TypeFor[v1alpha1.Duration]()
	rawType      = reflect.TypeFor[json.RawMessage]()
)

// decoder fills a document from YAML nodes. Unlike yaml.Decode it finds every
// mistake, knows where each stands, and converts nothing silently.
type decoder struct {
	file      string
	ref       Ref
	positions map[Ref]Position
	problems  *Problems
	nodes     int
	maxNodes  int
	exceeded  bool // a bound was reported for this file
	// optional lists required fields that a preset fills in.
	optional map[string]bool
}

func (d *decoder) problem(n *yaml.Node, field, format string, args ...any) {
	*d.problems = append(*d.problems, problemAt(d.at(n), d.ref, field, format, args...))
}

func problemAt(p Position, r Ref, field, format string, args ...any) Problem {
	text := fmt.Sprintf(format, args...)
	if field != "" {
		text = field + ": " + text
	}
	r.Field = field
	return Problem{Position: p, Ref: r, Text: text}
}

func (d *decoder) at(n *yaml.Node) Position {
	return Position{File: d.file, Line: max(n.Line, 1), Column: max(n.Column, 1)}
}

// record remembers where a field stands: scalars at their value, collections
// at their key, since the value of a block collection begins at its first
// entry.
func (d *decoder) record(field string, key, value *yaml.Node) {
	n := value
	if key != nil && value.Kind != yaml.ScalarNode {
		n = key
	}
	r := d.ref
	r.Field = field
	if _, ok := d.positions[r]; !ok {
		d.positions[r] = d.at(n)
	}
}

// decode fills v from n and reports whether the value was usable.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, field string, depth int) bool {
	if d.tooLarge(n, field, depth) {
		return false
	}
	if n.Kind == yaml.AliasNode {
		return d.decode(n.Alias, v, field, depth+1)
	}
	switch {
	case v.Type() == durationType:
		return d.duration(n, v, field)
	case v.Type() == rawType:
		return d.raw(n, v, field, depth)
	}
	switch v.Kind() {
	case reflect.Pointer:
		e := reflect.New(v.Type().Elem())
		ok := d.decode(n, e.Elem(), field, depth+1)
		v.Set(e)
		return ok
	case reflect.Struct:
		return d.object(n, v, field, depth)
	case reflect.Slice:
		return d.list(n, v, field, depth)
	case reflect.Map:
		return d.stringMap(n, v, field, depth)
	default:
		return d.scalar(n, v, field)
	}
}

func (d *decoder) tooLarge(n *yaml.Node, field string, depth int) bool {
	if d.nodes++; d.nodes <= d.maxNodes && depth <= maxDepth {
		return false
	}
	if !d.exceeded {
		d.problem(n, field, "is too large once aliases are expanded; write at most %d values, %d deep", d.maxNodes, maxDepth)
	}
	d.exceeded = true
	return true
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, field string) bool {
	tag := n.ShortTag()
	switch v.Kind() {
	case reflect.String:
		if n.Kind != yaml.ScalarNode || tag != "!!str" {
			d.problem(n, field, "is %s; must be text%s", describe(n), quoteHint(n))
			return false
		}
		if n.Value == "" && !emptyAllowed(field) {
			d.problem(n, field, "is empty; give a value or leave the field out")
			return false
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || tag != "!!bool" {
			d.problem(n, field, "is %s; must be true or false", describe(n))
			return false
		}
		v.SetBool(n.Value == "true" || n.Value == "True" || n.Value == "TRUE")
	case reflect.Int, reflect.Int64:
		var i int64
		if n.Kind != yaml.ScalarNode || tag != "!!int" || n.Decode(&i) != nil {
			d.problem(n, field, "is %s; must be a whole number", describe(n))
			return false
		}
		if i == 0 && strings.HasSuffix(field, ".port") { // 0 in Go is the default
			d.problem(n, field, "is 0; must be between 1 and 65535")
			return false
		}
		v.SetInt(i)
	case reflect.Float64:
		var f float64
		if n.Kind != yaml.ScalarNode || (tag != "!!float" && tag != "!!int") || n.Decode(&f) != nil {
			d.problem(n, field, "is %s; must be a number", describe(n))
			return false
		}
		v.SetFloat(f)
	default:
		panic("api: no rule for fields of type " + v.Type().String())
	}
	return true
}

// emptyAllowed lists the fields whose empty text means something.
func emptyAllowed(field string) bool {
	return field == "spec.identity.listen" || strings.HasPrefix(field, "spec.targetRefs[") && strings.HasSuffix(field, ".group") || strings.HasSuffix(field, "]") && strings.Contains(field, "abels[")
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value, field string) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		d.problem(n, field, "is %s; must be a duration such as 90s or 5m", describe(n))
		return false
	}
	t, err := time.ParseDuration(n.Value)
	switch {
	case err != nil:
		d.problem(n, field, "is %s; must be a duration such as 90s or 5m", quote(n.Value))
		return false
	case t <= 0:
		d.problem(n, field, "is %s; must be longer than 0 (leave it out for the default)", quote(n.Value))
		return false
	}
	v.SetInt(int64(t))
	return true
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, field string, depth int) bool {
	if n.Kind != yaml.SequenceNode {
		d.problem(n, field, "is %s; must be a list", describe(n))
		return false
	}
	if len(n.Content) == 0 && field != "spec.rules" {
		// An empty list could be read as "none" or as "any".
		d.problem(n, field, "is an empty list; list at least one value or leave the field out")
		return false
	}
	ok := true
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", field, i)
		d.record(at, nil, item)
		ok = d.decode(item, v.Index(i), at, depth+1) && ok
	}
	return ok
}

func (d *decoder) stringMap(n *yaml.Node, v reflect.Value, field string, depth int) bool {
	if n.Kind != yaml.MappingNode {
		d.problem(n, field, "is %s; must be a mapping of names to text", describe(n))
		return false
	}
	ok := true
	m := reflect.MakeMap(v.Type())
	for key, value := range d.pairs(n, field, &ok) {
		at := fmt.Sprintf("%s[%s]", field, key.Value)
		d.record(at, nil, value)
		e := reflect.New(v.Type().Elem()).Elem()
		if d.decode(value, e, at, depth+1) {
			m.SetMapIndex(reflect.ValueOf(key.Value), e)
		} else {
			ok = false
		}
	}
	v.Set(m)
	return ok
}

// pairs yields the entries of a mapping whose keys are plain, distinct text.
func (d *decoder) pairs(n *yaml.Node, field string, ok *bool) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		seen := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Kind == yaml.AliasNode {
				key = key.Alias
			}
			switch first := seen[key.Value]; {
			case key.ShortTag() == "!!merge":
				d.problem(key, field, "uses the merge key <<; write the fields out")
			case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
				d.problem(key, field, "has a key that is %s; keys are text%s", describe(key), quoteHint(key))
			case first != nil:
				d.problem(key, join(field, key.Value), "is given twice, first on line %d; keep one", first.Line)
			default:
				seen[key.Value] = key
				if !yield(key, value) {
					return
				}
				continue
			}
			*ok = false
		}
	}
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, field string, depth int) bool {
	if n.Kind != yaml.MappingNode {
		d.problem(n, field, "is %s; must be a mapping%s", describe(n), fieldsHint(v.Type()))
		return false
	}
	ok := true
	fields := fieldsOf(v.Type())
	given := map[string]bool{}
	for key, value := range d.pairs(n, field, &ok) {
		at := join(field, key.Value)
		f, known := fields.byName[key.Value]
		if !known {
			d.problem(key, at, "unknown field; %s", suggest(key.Value, fields.names))
			ok = false
			continue
		}
		given[key.Value] = true
		d.record(at, key, value)
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			d.problem(key, at, "is empty; give a value or leave the field out")
			ok = false
			continue
		}
		if f.required && value.Kind == yaml.SequenceNode && len(value.Content) == 0 && at != "spec.rules" {
			d.problem(value, at, "is an empty list; list at least one value")
			ok = false
			continue
		}
		ok = d.decode(value, v.FieldByIndex(f.index), at, depth+1) && ok
	}
	for _, name := range fields.names {
		at := join(field, name)
		if !fields.byName[name].required || given[name] || d.optional[at] {
			continue
		}
		pos := locate(d.positions, Ref{d.ref.Kind, d.ref.Namespace, d.ref.Name, field})
		if pos.File == "" {
			pos = d.at(n)
		}
		*d.problems = append(*d.problems, problemAt(pos, d.ref, at, "is missing; it is required"))
		ok = false
	}
	return ok
}

// raw converts YAML to JSON: the field is passed on to somebody else.
func (d *decoder) raw(n *yaml.Node, v reflect.Value, field string, depth int) bool {
	ok := true
	value := d.plain(n, field, depth, &ok)
	if !ok {
		return false
	}
	b, err := json.Marshal(value)
	if err != nil { // NaN or infinity
		d.problem(n, field, "holds a number that JSON cannot express")
		return false
	}
	v.SetBytes(b)
	return true
}

func (d *decoder) plain(n *yaml.Node, field string, depth int, ok *bool) any {
	if d.tooLarge(n, field, depth) {
		*ok = false
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		return d.plain(n.Alias, field, depth+1, ok)
	case yaml.MappingNode:
		m := map[string]any{}
		for key, value := range d.pairs(n, field, ok) {
			m[key.Value] = d.plain(value, join(field, key.Value), depth+1, ok)
		}
		return m
	case yaml.SequenceNode:
		l := make([]any, len(n.Content))
		for i, item := range n.Content {
			l[i] = d.plain(item, fmt.Sprintf("%s[%d]", field, i), depth+1, ok)
		}
		return l
	}
	if n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp" {
		return n.Value
	}
	var a any
	if err := n.Decode(&a); err != nil {
		d.problem(n, field, "is no value that JSON can express")
		*ok = false
	}
	return a
}

// fieldSet describes the fields of a struct by their names in YAML.
type fieldSet struct {
	names  []string
	byName map[string]fieldInfo
}

type fieldInfo struct {
	index    []int
	required bool // no omitempty in the tag
}

func fieldsOf(t reflect.Type) fieldSet {
	s := fieldSet{byName: map[string]fieldInfo{}}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" {
			continue
		}
		s.names = append(s.names, name)
		s.byName[name] = fieldInfo{f.Index, !strings.Contains(options, "omitempty")}
	}
	return s
}

func fieldsHint(t reflect.Type) string {
	names := fieldsOf(t).names
	if len(names) == 0 || len(names) > 8 {
		return ""
	}
	return " with " + strings.Join(names, ", ")
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// describe names the type of a value, and the value where it cannot be a
// secret that somebody pasted into the wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "the boolean " + n.Value
	case "!!int", "!!float":
		return "the number " + quoteBare(n.Value)
	case "!!timestamp":
		return "a date"
	default:
		return "text"
	}
}

func quoteHint(n *yaml.Node) string {
	switch n.ShortTag() {
	case "!!bool", "!!int", "!!float", "!!timestamp":
		return " (put it in quotes)"
	}
	return ""
}

const maxQuoted = 80

func quoteBare(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}

// quote shows a value in a message: escaped and bounded.
func quote(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return strconv.Quote(s)
}
