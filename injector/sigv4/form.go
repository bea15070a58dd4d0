package sigv4

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	"github.com/attache-dev/attache/internal/secret"
)

// maxFormFields bounds, in bytes, what stands before the file of a POST form;
// S3 takes 20 KB.
const maxFormFields = 64 << 10

// Form is an upload by POST (Amazon S3 API reference, "POST Object"): its
// signature stands in form fields and covers the policy field.
type Form struct {
	boundary string
	fields   map[string]string // lower-case name to value, without the file
	order    []formField
	filename string
	head     int // bytes before the file's data
}

type formField struct{ name, value string }

// IsForm reports whether r may carry a signature in form fields.
func IsForm(r *http.Request) bool {
	t, p, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return r.Method == http.MethodPost && err == nil && t == "multipart/form-data" && p["boundary"] != ""
}

// ParseForm reads the signature in the fields of a POST form, which stand
// before its file. It reads that much of the body and leaves it readable from
// its beginning. Errors are those of [Parse].
func ParseForm(r *http.Request) (Claim, *Form, error) {
	if !IsForm(r) || r.Body == nil {
		return Claim{}, nil, ErrUnsigned
	}
	_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	br := bufio.NewReaderSize(r.Body, maxFormFields)
	head, err := br.Peek(maxFormFields)
	r.Body = readCloser{br, r.Body}
	if err != nil && !errors.Is(err, io.EOF) {
		return Claim{}, nil, fmt.Errorf("read the form: %w", err)
	}
	f := &Form{boundary: params["boundary"], fields: map[string]string{}}
	if err := f.read(head); err != nil {
		return Claim{}, nil, err
	}
	if f.fields["x-amz-signature"] == "" && f.fields["x-amz-credential"] == "" {
		return Claim{}, nil, ErrUnsigned
	}
	if _, err := Parse(r); !errors.Is(err, ErrUnsigned) || len(values(r.Header, "authorization")) > 0 {
		return Claim{}, nil, ErrSeveral
	}
	c, err := f.claim()
	return c, f, err
}

type readCloser struct {
	io.Reader
	io.Closer
}

// Fields are the form's fields, by lower-case name, up to the file.
func (f *Form) Fields() map[string]string { return maps.Clone(f.fields) }

// read collects the fields up to the file. All that stands before the file's
// data is written anew, so that no reader takes another part for the file, or
// another field for the key.
func (f *Form) read(head []byte) error {
	if !bytes.HasPrefix(head, []byte("--"+f.boundary+"\r\n")) { // else package multipart takes bare newlines, too
		return malformed("the form must begin with its boundary, and its lines end in CRLF")
	}
	mr := multipart.NewReader(bytes.NewReader(head), f.boundary)
	for n := 0; ; n++ {
		part, err := mr.NextRawPart()
		if err != nil {
			return malformed("the form has no file within its first %d bytes", maxFormFields)
		}
		name := strings.ToLower(part.FormName())
		if name == "file" {
			f.filename = part.FileName()
			if f.head = dataOf(head, f.boundary, n); f.head < 0 {
				return malformed("the form's parts cannot be told apart")
			}
			return nil
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return malformed("the form's fields are longer than %d bytes", maxFormFields)
		}
		if _, dup := f.fields[name]; dup { // servers differ in which one they take
			return fmt.Errorf("%w: form field %s stands twice", ErrSeveral, clip(name))
		}
		if name == "" || part.FileName() != "" || strings.ContainsAny(name, "\"\\\r\n") {
			return malformed("a form field has no name or is a file")
		}
		if bytes.Contains(value, []byte("--"+f.boundary)) {
			return malformed("a form field holds the boundary")
		}
		f.fields[name] = string(value)
		f.order = append(f.order, formField{part.FormName(), string(value)})
	}
}

// dataOf is where the data of the nth part begin, counted from 0, or -1. A
// delimiter cannot stand within a part (RFC 2046 section 5.1.1).
func dataOf(head []byte, boundary string, n int) int {
	at := 0
	for range n {
		i := bytes.Index(head[at:], []byte("\r\n--"+boundary))
		if i < 0 {
			return -1
		}
		at += i + 2
	}
	end := bytes.Index(head[at:], []byte("\r\n\r\n")) // of the part's header
	if end < 0 {
		return -1
	}
	return at + end + 4
}

func (f *Form) claim() (Claim, error) {
	c := Claim{Place: InForm, Algorithm: Algorithm(f.fields["x-amz-algorithm"])}
	if c.Algorithm != V4 {
		return c, malformed("x-amz-algorithm is %q; forms are signed with %s", clip(string(c.Algorithm)), V4)
	}
	if err := c.setDate(f.fields["x-amz-date"]); err != nil {
		return c, err
	}
	if err := c.setCredential(f.fields["x-amz-credential"]); err != nil {
		return c, err
	}
	if err := checkSignature(V4, f.fields["x-amz-signature"]); err != nil {
		return c, err
	}
	if t := f.fields["x-amz-security-token"]; len(t) > maxToken {
		return c, malformed("x-amz-security-token is longer than %d bytes", maxToken)
	} else if t != "" {
		c.SessionToken = secret.New(t)
	}
	_, err := f.policy(nil)
	return c, err
}

// policy decodes the policy field and, where ours is not nil, replaces the
// conditions on the fields of the signature by ours.
func (f *Form) policy(ours []formField) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(f.fields["policy"])
	if err != nil || len(raw) == 0 {
		return nil, malformed("the form's policy is not base64")
	}
	var p struct {
		Expiration string            `json:"expiration"`
		Conditions []json.RawMessage `json:"conditions"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil || d.More() {
		return nil, malformed("the form's policy is not the JSON that S3 takes")
	}
	kept := p.Conditions[:0]
	for _, c := range p.Conditions {
		name, err := conditionOn(c)
		if err != nil {
			return nil, err
		}
		if !isFormSignature(name) {
			kept = append(kept, c)
		}
	}
	for _, o := range ours {
		c, err := json.Marshal(map[string]string{o.name: o.value})
		if err != nil {
			return nil, fmt.Errorf("write the policy: %w", err)
		}
		kept = append(kept, c)
	}
	p.Conditions = kept
	return json.Marshal(p)
}

// conditionOn is the lower-case name of the field that a condition is about:
// {"name": "value"} or ["eq", "$name", "value"].
func conditionOn(c json.RawMessage) (string, error) {
	var m map[string]any
	if json.Unmarshal(c, &m) == nil && len(m) == 1 {
		for k := range m {
			return strings.ToLower(k), nil
		}
	}
	var l []any
	if json.Unmarshal(c, &l) == nil && len(l) == 3 {
		if s, ok := l[1].(string); ok {
			return strings.ToLower(strings.TrimPrefix(s, "$")), nil
		}
		return "", nil // ["content-length-range", 1, 2]
	}
	return "", malformed("a condition of the form's policy is neither an object of one member nor an array of three")
}

func isFormSignature(lower string) bool {
	switch lower {
	case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-security-token", "x-amz-signature":
		return true
	}
	return false
}

// Sign replaces the signature in the fields of r, whose body must be as
// [ParseForm] left it. The policy keeps its expiration and its conditions but
// those on the signature's own fields; the file is streamed.
func (f *Form) Sign(ctx context.Context, r *http.Request, c Credentials, p Params) error {
	if err := errors.Join(ctx.Err(), c.check(), p.check()); err != nil {
		return err
	}
	ours := []formField{
		{"x-amz-algorithm", string(V4)},
		{"x-amz-credential", c.AccessKeyID + "/" + credentialScope(p)},
		{"x-amz-date", p.Time.UTC().Format(timeFormat)},
	}
	if !c.SessionToken.IsZero() {
		ours = append(ours, formField{"x-amz-security-token", c.SessionToken.Reveal()})
	}
	policy, err := f.policy(ours)
	if err != nil {
		return err
	}
	encoded := base64.StdEncoding.EncodeToString(policy)
	key := newHMACKey(deriveV4(c.SecretAccessKey.Reveal(), p.Time.UTC().Format(dayFormat), p.Region, p.Service))
	signature, err := key.sign(nil, []byte(encoded))
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	ours = append(ours, formField{"policy", encoded}, formField{"x-amz-signature", string(signature)})
	return f.replace(r, ours)
}

// replace writes the fields and the file's header anew and lets its data follow
// as they are.
func (f *Form) replace(r *http.Request, ours []formField) error {
	var b bytes.Buffer
	for _, field := range f.order {
		if n := strings.ToLower(field.name); !isFormSignature(n) && n != "policy" {
			f.write(&b, field)
		}
	}
	for _, field := range ours {
		f.write(&b, field)
	}
	fmt.Fprintf(&b, "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=%q\r\nContent-Type: application/octet-stream\r\n\r\n", f.boundary, plainName(f.filename))
	if _, err := io.CopyN(io.Discard, r.Body, int64(f.head)); err != nil {
		return fmt.Errorf("read the form: %w", err)
	}
	if r.ContentLength >= 0 {
		setLength(r, r.ContentLength-int64(f.head)+int64(b.Len()))
	}
	r.Body, r.GetBody = readCloser{io.MultiReader(&b, r.Body), r.Body}, nil
	return nil
}

// plainName is a file's name if it can stand in a header as it is. S3 has no use
// for it but in ${filename}.
func plainName(s string) string {
	if len(s) > maxName || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_. ") != "" || s == "" {
		return "file"
	}
	return s
}

func (f *Form) write(b *bytes.Buffer, field formField) {
	fmt.Fprintf(b, "--%s\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", f.boundary, field.name, field.value)
}
