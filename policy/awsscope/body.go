package awsscope

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth   = 64     // nesting of a body
	maxMembers = 20_000 // members of a body
	maxParams  = 2_000  // parameters of a query or form
)

// An object is a JSON or CBOR map that kept the order and number of its keys.
type object struct {
	keys []string
	vals map[string]any
}

// get returns the member called name. Two spellings of one name are refused:
// which of them the server reads is not for us to guess.
func (o *object) get(name string) (any, bool, error) {
	if o == nil {
		return nil, false, nil
	}
	for _, k := range o.keys {
		if k != name && strings.EqualFold(k, name) {
			return nil, false, fail(ErrAmbiguous, "member %q beside %q", k, name)
		}
	}
	v, ok := o.vals[name]
	if v == nil {
		ok = false // null is absence
	}
	return v, ok, nil
}

// set adds a member; a duplicate is an error.
func (o *object) set(k string, v any) error {
	if _, dup := o.vals[k]; dup {
		return fail(ErrAmbiguous, "duplicate member %q", k)
	}
	o.vals[k] = v
	o.keys = append(o.keys, k)
	return nil
}

// foldUnique refuses keys that differ in case only.
func (o *object) foldUnique() error {
	seen := make(map[string]bool, len(o.keys))
	for _, k := range o.keys {
		f := fold(k)
		if seen[f] {
			return fail(ErrAmbiguous, "two members are called %q but for case", k)
		}
		seen[f] = true
	}
	return nil
}

func fold(s string) string { return strings.ToLower(strings.ToUpper(s)) }

// parseJSON reads a JSON object strictly: one value, valid UTF-8, no duplicate
// keys anywhere, no keys of the outermost object that differ in case only.
func parseJSON(b []byte) (*object, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return &object{vals: map[string]any{}}, nil
	}
	if !utf8.Valid(b) {
		return nil, fail(ErrMalformed, "body is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	p := jsonParser{d: d}
	v, err := p.value(0)
	if err != nil {
		return nil, bodyError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fail(ErrMalformed, "body goes on after its JSON value")
	}
	o, ok := v.(*object)
	if !ok {
		return nil, fail(ErrMalformed, "body is no JSON object")
	}
	return o, o.foldUnique()
}

func bodyError(err error) error {
	if errors.Is(err, ErrAmbiguous) || errors.Is(err, ErrMalformed) {
		return err
	}
	return fail(ErrMalformed, "body: %v", err)
}

type jsonParser struct {
	d *json.Decoder
	n int
}

func (p *jsonParser) value(depth int) (any, error) {
	if p.n++; depth > maxDepth || p.n > maxMembers {
		return nil, fail(ErrMalformed, "body is too deep or too large")
	}
	t, err := p.d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		return p.object(depth)
	case json.Delim('['):
		list := []any{}
		for p.d.More() {
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := p.d.Token()
		return list, err
	}
	return t, nil
}

func (p *jsonParser) object(depth int) (any, error) {
	o := &object{vals: map[string]any{}}
	for p.d.More() {
		k, err := p.d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := k.(string)
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if err := o.set(key, v); err != nil {
			return nil, err
		}
	}
	_, err := p.d.Token()
	return o, err
}

// params are query or form parameters, each at most once.
type params map[string]string

// parseQuery reads a query string or a form.
func parseQuery(s string) (params, error) {
	p := params{}
	if s == "" {
		return p, nil
	}
	folded := map[string]bool{}
	for part := range strings.SplitSeq(s, "&") {
		if part == "" {
			continue
		}
		if strings.ContainsRune(part, ';') {
			return nil, fail(ErrAmbiguous, "a semicolon in the query")
		}
		k, v, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(k)
		if err != nil {
			return nil, fail(ErrMalformed, "query: %v", err)
		}
		val, err := url.QueryUnescape(v)
		if err != nil {
			return nil, fail(ErrMalformed, "query: %v", err)
		}
		if f := fold(key); folded[f] {
			return nil, fail(ErrAmbiguous, "parameter %q is given twice", key)
		} else {
			folded[f] = true
		}
		p[key] = val
		if len(p) > maxParams {
			return nil, fail(ErrMalformed, "too many parameters")
		}
	}
	return p, nil
}

// deleteXML is the body of S3's DeleteObjects.
type deleteXML struct {
	keys     []string
	versions []string
}

// parseDelete reads the keys out of a DeleteObjects body. Anything that two
// readers could take differently (a DTD, comments or children inside a value,
// a second Key, unknown elements) is refused.
func parseDelete(b []byte) (*deleteXML, error) {
	if !utf8.Valid(b) {
		return nil, fail(ErrMalformed, "body is not UTF-8")
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	p := deleteParser{}
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fail(ErrMalformed, "body: %v", err)
		}
		if err := p.token(t); err != nil {
			return nil, err
		}
	}
	if len(p.out.keys) == 0 || len(p.out.keys) > 1000 {
		return nil, fail(ErrMalformed, "%d keys to delete", len(p.out.keys))
	}
	return &p.out, nil
}

type deleteParser struct {
	stack []string
	seen  map[string]bool
	text  strings.Builder
	roots int
	key   string
	ver   string
	out   deleteXML
}

func (p *deleteParser) token(t xml.Token) error {
	switch t := t.(type) {
	case xml.Directive, xml.Comment:
		return fail(ErrMalformed, "body has a comment or a directive")
	case xml.ProcInst:
		if t.Target != "xml" || p.roots > 0 {
			return fail(ErrMalformed, "body has a processing instruction")
		}
	case xml.StartElement:
		return p.start(t.Name.Local)
	case xml.EndElement:
		return p.end(t.Name.Local)
	case xml.CharData:
		if p.leaf() {
			p.text.Write(t)
		} else if len(bytes.TrimSpace(t)) > 0 {
			return fail(ErrMalformed, "text between elements")
		}
	}
	return nil
}

// leaf reports whether the innermost element holds text.
func (p *deleteParser) leaf() bool {
	return len(p.stack) == 3 || len(p.stack) == 2 && p.stack[1] == "Quiet"
}

func (p *deleteParser) start(name string) error {
	p.text.Reset()
	ok := false
	switch len(p.stack) {
	case 0:
		ok = name == "Delete" && p.roots == 0
		p.roots++
	case 1:
		ok = name == "Object" || name == "Quiet"
		p.seen = map[string]bool{}
		p.key, p.ver = "", ""
	case 2:
		ok = p.stack[1] == "Object" && !p.seen[name] && strings.Contains(" Key VersionId ETag LastModifiedTime Size ", " "+name+" ")
		p.seen[name] = true
	}
	if !ok {
		return fail(ErrMalformed, "element %q is unknown or repeated here", name)
	}
	p.stack = append(p.stack, name)
	return nil
}

func (p *deleteParser) end(name string) error {
	p.stack = p.stack[:len(p.stack)-1]
	switch {
	case len(p.stack) == 2 && name == "Key":
		p.key = p.text.String()
	case len(p.stack) == 2 && name == "VersionId":
		p.ver = p.text.String()
	case len(p.stack) == 1 && name == "Object":
		if err := checkValue("a key to delete", p.key); err != nil {
			return err
		}
		p.out.keys = append(p.out.keys, p.key)
		p.out.versions = append(p.out.versions, p.ver)
	}
	return nil
}

// parseCBOR reads an rpc-v2-cbor body (RFC 8949) into the same tree as parseJSON.
func parseCBOR(b []byte) (*object, error) {
	if len(b) == 0 {
		return &object{vals: map[string]any{}}, nil
	}
	p := cborParser{b: b}
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	o, ok := v.(*object)
	if !ok || len(p.b) != 0 {
		return nil, fail(ErrMalformed, "body is not one CBOR map")
	}
	return o, o.foldUnique()
}

type cborParser struct {
	b []byte
	n int
}

type cborBreak struct{}

var errCBOR = fail(ErrMalformed, "body is not the CBOR that AWS sends")

// head reads an initial byte and its argument; indefinite lengths are -1.
func (p *cborParser) head() (major byte, arg int64, err error) {
	if len(p.b) == 0 {
		return 0, 0, errCBOR
	}
	first := p.b[0]
	p.b = p.b[1:]
	major, info := first>>5, first&31
	if info < 24 {
		return major, int64(info), nil
	}
	if info == 31 {
		return major, -1, nil
	}
	n := 1 << (info - 24)
	if info > 27 || len(p.b) < n {
		return 0, 0, errCBOR
	}
	var buf [8]byte
	copy(buf[8-n:], p.b[:n])
	p.b = p.b[n:]
	u := binary.BigEndian.Uint64(buf[:])
	if u > math.MaxInt64 {
		if major != 7 && major != 1 && major != 0 {
			return 0, 0, errCBOR
		}
		u &= math.MaxInt64 // numbers are never used as names
	}
	return major, int64(u), nil
}

func (p *cborParser) value(depth int) (any, error) {
	if p.n++; depth > maxDepth || p.n > maxMembers {
		return nil, fail(ErrMalformed, "body is too deep or too large")
	}
	major, arg, err := p.head()
	if err != nil {
		return nil, err
	}
	switch major {
	case 0, 1:
		if arg < 0 {
			return nil, errCBOR
		}
		return json.Number(strconv.FormatInt(arg, 10)), nil
	case 2, 3:
		return p.text(major, arg)
	case 4:
		return p.list(arg, depth)
	case 5:
		return p.dict(arg, depth)
	case 6:
		return p.value(depth + 1)
	}
	switch arg {
	case -1:
		return cborBreak{}, nil
	case 20, 21:
		return arg == 21, nil
	case 22, 23:
		return nil, nil
	}
	return json.Number("0"), nil // a float
}

// text reads a string; those in pieces are refused, since no AWS client sends them.
func (p *cborParser) text(major byte, n int64) (any, error) {
	if n < 0 || n > int64(len(p.b)) {
		return nil, errCBOR
	}
	s := string(p.b[:n])
	p.b = p.b[n:]
	if major == 2 {
		return []byte(s), nil
	}
	if !utf8.ValidString(s) {
		return nil, errCBOR
	}
	return s, nil
}

func (p *cborParser) list(n int64, depth int) (any, error) {
	list := []any{}
	for i := int64(0); n < 0 || i < n; i++ {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if _, end := v.(cborBreak); end {
			if n >= 0 {
				return nil, errCBOR
			}
			break
		}
		list = append(list, v)
	}
	return list, nil
}

func (p *cborParser) dict(n int64, depth int) (any, error) {
	o := &object{vals: map[string]any{}}
	for i := int64(0); n < 0 || i < n; i++ {
		k, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if _, end := k.(cborBreak); end && n < 0 {
			break
		}
		key, ok := k.(string)
		if !ok {
			return nil, errCBOR
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if _, end := v.(cborBreak); end {
			return nil, errCBOR
		}
		if err := o.set(key, v); err != nil {
			return nil, err
		}
	}
	return o, nil
}
