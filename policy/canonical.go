package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// maxJSONDepth bounds the nesting of authorization details.
const maxJSONDepth = 32

// canonicalDetails checks authorization details (RFC 9396 section 2: an array
// of objects, each with a type) and returns them in the canonical form of
// RFC 8785, so that equal details make equal mint requests.
func canonicalDetails(raw []byte) (string, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := readJSON(d, 0)
	if err != nil {
		return "", err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("has text after its end")
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return "", errors.New("must be a list of objects, each with a type (RFC 9396 section 2)")
	}
	for i, e := range list {
		o, _ := e.(map[string]any)
		if t, _ := o["type"].(string); t == "" {
			return "", fmt.Errorf("entry %d must be an object with a type (RFC 9396 section 2)", i)
		}
	}
	var b strings.Builder
	if err := writeJSON(&b, v); err != nil {
		return "", err
	}
	return b.String(), nil
}

// readJSON reads one value. Unlike json.Unmarshal it refuses a name that an
// object has twice: receivers disagree about which counts (RFC 8259 section 4).
func readJSON(d *json.Decoder, depth int) (any, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("is nested deeper than %d", maxJSONDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	switch t {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := readJSON(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	case json.Delim('{'):
		object := map[string]any{}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, fmt.Errorf("is no JSON: %w", err)
			}
			name, _ := k.(string) // the decoder accepts nothing else here
			if _, twice := object[name]; twice {
				return nil, fmt.Errorf("has %q twice in one object", name)
			}
			if object[name], err = readJSON(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return object, err
	}
	return t, nil
}

// writeJSON writes v as RFC 8785 section 3.2 says.
func writeJSON(b *strings.Builder, v any) error {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case string:
		writeJSONString(b, v)
	case json.Number:
		return writeJSONNumber(b, v)
	case []any:
		for i, e := range v {
			b.WriteByte("[,"[min(i, 1)])
			if err := writeJSON(b, e); err != nil {
				return err
			}
		}
		if len(v) == 0 {
			b.WriteByte('[')
		}
		b.WriteByte(']')
	case map[string]any:
		return writeJSONObject(b, v)
	}
	return nil
}

// writeJSONObject sorts names by UTF-16 code units (RFC 8785 section 3.2.3).
func writeJSONObject(b *strings.Builder, o map[string]any) error {
	names := make([]string, 0, len(o))
	for n := range o {
		names = append(names, n)
	}
	slices.SortFunc(names, func(x, y string) int {
		return slices.Compare(utf16.Encode([]rune(x)), utf16.Encode([]rune(y)))
	})
	b.WriteByte('{')
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		writeJSONString(b, n)
		b.WriteByte(':')
		if err := writeJSON(b, o[n]); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// writeJSONNumber follows ECMAScript (RFC 8785 section 3.2.2.3), which is how
// encoding/json prints a float64, but for minus zero.
func writeJSONNumber(b *strings.Builder, n json.Number) error {
	f, err := n.Float64()
	if err != nil || math.Abs(f) >= 1<<53 {
		return fmt.Errorf("has the number %s, which receivers may round; write it as text", n)
	}
	if f == 0 {
		b.WriteByte('0')
		return nil
	}
	text, err := json.Marshal(f)
	b.Write(text)
	return err
}

// writeJSONString escapes only what must be (RFC 8785 section 3.2.2.2).
func writeJSONString(b *strings.Builder, s string) {
	const hex = "0123456789abcdef"
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case '\b':
			b.WriteString(`\b`)
		case '\t':
			b.WriteString(`\t`)
		case '\n':
			b.WriteString(`\n`)
		case '\f':
			b.WriteString(`\f`)
		case '\r':
			b.WriteString(`\r`)
		default:
			if c < 0x20 {
				b.WriteString(`\u00`)
				b.WriteByte(hex[c>>4])
				b.WriteByte(hex[c&15])
			} else {
				b.WriteByte(c)
			}
		}
	}
	b.WriteByte('"')
}
