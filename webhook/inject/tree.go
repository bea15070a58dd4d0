package inject

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
)

type object = map[string]any

// reader reads unstructured JSON and collects what is wrong with it.
type reader struct{ problems []Problem }

func (r *reader) deny(field, message, fix string) {
	r.problems = append(r.problems, Problem{field, message, fix})
}

func (r *reader) wrongType(path, want string) { r.deny(path, "is not "+want, "correct its type") }

// object returns a member that is an object; nil if it is absent.
func (r *reader) object(o object, key, path string) object {
	switch v := o[key].(type) {
	case nil:
	case object:
		return v
	default:
		r.wrongType(path, "an object")
	}
	return nil
}

// objects returns a member that is a list of objects.
func (r *reader) objects(o object, key, path string) []object {
	list, ok := o[key].([]any)
	if !ok {
		if o[key] != nil {
			r.wrongType(path, "a list")
		}
		return nil
	}
	out := make([]object, 0, len(list))
	for i, v := range list {
		e, ok := v.(object)
		if !ok {
			r.wrongType(fmt.Sprintf("%s[%d]", path, i), "an object")
			e = nil
		}
		out = append(out, e)
	}
	return out
}

// text returns a member that is a string.
func (r *reader) text(o object, key, path string) string {
	switch v := o[key].(type) {
	case nil:
	case string:
		return v
	default:
		r.wrongType(path, "a string")
	}
	return ""
}

// truth returns a member that is a boolean.
func (r *reader) truth(o object, key, path string) (value, present bool) {
	switch v := o[key].(type) {
	case nil:
	case bool:
		return v, true
	default:
		r.wrongType(path, "true or false")
	}
	return false, false
}

// integer returns a member that is an integer.
func (r *reader) integer(o object, key, path string) (value int64, present bool) {
	if o[key] == nil {
		return 0, false
	}
	if n, ok := o[key].(json.Number); ok {
		if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
			return i, true
		}
	}
	r.wrongType(path, "an integer")
	return 0, false
}

func number(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }

// clone copies a tree.
func clone(v any) any {
	switch v := v.(type) {
	case object:
		if v == nil {
			return object(nil)
		}
		m := make(object, len(v)+2)
		for k, e := range v {
			m[k] = clone(e)
		}
		return m
	case []any:
		if v == nil {
			return []any(nil)
		}
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = clone(e)
		}
		return l
	}
	return v
}

// equal compares trees.
func equal(a, b any) bool {
	switch a := a.(type) {
	case object:
		b, ok := b.(object)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			w, ok := b[k]
			if !ok || !equal(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equal(a[i], b[i]) {
				return false
			}
		}
		return true
	case string, bool, nil, json.Number:
		return a == b
	}
	return reflect.DeepEqual(a, b)
}
