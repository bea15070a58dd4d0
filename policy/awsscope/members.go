package awsscope

import (
	"strconv"
	"strings"
)

// str returns a member of the request by its name, wherever the protocol puts
// it. Dots walk into structures.
func (c *reading) str(name string) (string, bool, error) {
	var found []string
	for _, p := range []params{c.labels, c.query, c.form} {
		for k, v := range p {
			if k == name {
				found = append(found, v)
			} else if strings.EqualFold(k, name) {
				return "", false, fail(ErrAmbiguous, "parameter %q beside %q", k, name)
			}
		}
	}
	v, ok, err := c.walk(name)
	if err != nil {
		return "", false, err
	}
	if ok {
		s, isText := v.(string)
		if !isText {
			return "", false, fail(ErrMalformed, "%s is no string", name)
		}
		found = append(found, s)
	}
	if len(found) == 0 {
		return "", false, nil
	}
	if len(found) > 1 {
		return "", false, fail(ErrAmbiguous, "%s is given twice", name)
	}
	return found[0], true, checkValue(name, found[0])
}

// walk follows a dotted name into the body.
func (c *reading) walk(name string) (any, bool, error) {
	o := c.body
	for {
		head, rest, more := strings.Cut(name, ".")
		v, ok, err := o.get(head)
		if err != nil || !ok || !more {
			return v, ok, err
		}
		if o, ok = v.(*object); !ok {
			return nil, false, fail(ErrMalformed, "%s is no structure", head)
		}
		name = rest
	}
}

// flag returns a boolean member; absent is false.
func (c *reading) flag(name string) (bool, error) {
	for _, p := range []params{c.query, c.form} {
		if v, ok := p[name]; ok {
			return !strings.EqualFold(v, "false"), nil
		}
	}
	v, ok, err := c.walk(name)
	if err != nil || !ok {
		return false, err
	}
	b, isBool := v.(bool)
	return b || !isBool, nil // what is no boolean counts as the riskier answer
}

// strs returns a member that is a list of strings.
func (c *reading) strs(name string) ([]string, error) {
	v, ok, err := c.walk(name)
	if err != nil {
		return nil, err
	}
	var out []string
	if ok {
		list, isList := v.([]any)
		if !isList {
			return nil, fail(ErrMalformed, "%s is no list", name)
		}
		for _, e := range list {
			s, isText := e.(string)
			if !isText {
				return nil, fail(ErrMalformed, "%s has an element that is no string", name)
			}
			out = append(out, s)
		}
	}
	for _, form := range []string{name + ".", name + ".member."} {
		for i := 1; ; i++ {
			s, ok := c.form[form+strconv.Itoa(i)]
			if !ok {
				break
			}
			out = append(out, s)
		}
	}
	if len(out) > maxList {
		return nil, tooLong(name)
	}
	for _, s := range out {
		if err := checkValue(name, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// maxList bounds the entries of a list that names resources: S3 takes 1,000 keys
// in a DeleteObjects, every other service fewer.
const maxList = 1000

func tooLong(name string) error {
	return fail(ErrMalformed, "%s has more than %d entries", name, maxList)
}

// list returns a member that is a list of structures.
func (c *reading) list(name string) ([]*object, error) {
	v, ok, err := c.walk(name)
	if err != nil || !ok {
		return nil, err
	}
	list, isList := v.([]any)
	if !isList {
		return nil, fail(ErrMalformed, "%s is no list", name)
	}
	if len(list) > maxList {
		return nil, tooLong(name)
	}
	out := make([]*object, len(list))
	for i, e := range list {
		if out[i], isList = e.(*object); !isList {
			return nil, fail(ErrMalformed, "%s has an element that is no structure", name)
		}
	}
	return out, nil
}

// text returns a string member of an object.
func (o *object) text(name string) (string, bool, error) {
	v, ok, err := o.get(name)
	if err != nil || !ok {
		return "", false, err
	}
	s, isText := v.(string)
	if !isText {
		return "", false, fail(ErrMalformed, "%s is no string", name)
	}
	return s, true, checkValue(name, s)
}

// child returns a structure member of an object.
func (o *object) child(name string) (*object, error) {
	v, ok, err := o.get(name)
	if err != nil || !ok {
		return nil, err
	}
	c, isObject := v.(*object)
	if !isObject {
		return nil, fail(ErrMalformed, "%s is no structure", name)
	}
	return c, nil
}
