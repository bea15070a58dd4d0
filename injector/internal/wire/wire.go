// Package wire edits query strings and Cookie headers without touching the
// bytes that need no edit.
package wire

import (
	"net/http"
	"net/url"
	"strings"
)

// Params calls f with the decoded name and raw value of each parameter and
// puts the returned value in its place, or drops the parameter. Everything
// else stays byte for byte. A ';' separates as well: some servers read it so.
func Params(query string, f func(name, raw string) (string, bool)) string {
	var b strings.Builder
	changed, wrote := false, false
	for rest, sep := query, ""; ; {
		i := strings.IndexAny(rest, "&;")
		part := rest
		if i >= 0 {
			part = rest[:i]
		}
		rawName, raw, hasValue := strings.Cut(part, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			name = rawName
		}
		value, keep := f(name, raw)
		if !keep || value != raw {
			changed = true
		}
		if keep {
			if wrote {
				b.WriteString(sep)
			}
			wrote = true
			b.WriteString(rawName)
			if hasValue || value != "" {
				b.WriteString("=" + value)
			}
		}
		if i < 0 {
			break
		}
		sep, rest = rest[i:i+1], rest[i+1:]
	}
	if !changed {
		return query
	}
	return b.String()
}

// Cookies calls f for each pair of a Cookie header (RFC 6265 section 4.2)
// and replaces or drops its value; the rest stays as it is.
func Cookies(line string, f func(name, value string) (string, bool)) string {
	var out []string
	changed := false
	for part := range strings.SplitSeq(line, ";") {
		trimmed := strings.TrimSpace(part)
		name, value, ok := strings.Cut(trimmed, "=")
		if !ok { // browsers read it as a value without name, others as a name
			name, value = trimmed, trimmed
		}
		v, keep := f(strings.TrimSpace(name), value)
		switch {
		case !keep:
			changed = true
		case v == value:
			out = append(out, trimmed)
		default:
			changed = true
			if ok {
				v = name + "=" + v
			}
			out = append(out, v)
		}
	}
	if !changed {
		return line
	}
	return strings.Join(out, "; ")
}

// CookieLines does what [Cookies] does for all lines of a header's field key,
// whatever its case, and removes lines of which nothing is left and those that
// drop says yes to; drop may be nil. The values of h are replaced, not changed.
func CookieLines(h http.Header, key string, f func(name, value string) (string, bool), drop func(line string) bool) {
	lines := h[key]
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		out := Cookies(line, f)
		if out != "" && (drop == nil || !drop(out)) {
			kept = append(kept, out)
		}
	}
	if len(kept) == 0 {
		delete(h, key)
		return
	}
	h[key] = kept
}

// Drop removes the parameters of a query whose text, as it stands, bad says
// yes to.
func Drop(query string, bad func(part string) bool) string {
	var b strings.Builder
	for rest, sep := query, ""; ; {
		i := strings.IndexAny(rest, "&;")
		part := rest
		if i >= 0 {
			part = rest[:i]
		}
		if !bad(part) {
			b.WriteString(sep + part)
			sep = ""
		}
		if i < 0 {
			return b.String()
		}
		if b.Len() > 0 {
			sep = rest[i : i+1]
		}
		rest = rest[i+1:]
	}
}
