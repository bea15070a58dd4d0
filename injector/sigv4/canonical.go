package sigv4

import (
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// neverSigned are fields that a proxy on the way may change, or that the SDKs
// leave out themselves.
func neverSigned(lower string) bool {
	switch lower {
	case "authorization", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings",
		"via", "forwarded", "x-real-ip", "max-forwards", "user-agent", "expect", "accept-encoding", "content-length",
		"x-amzn-trace-id", "traceparent", "tracestate", "baggage", "host", "date":
		return true
	}
	return strings.HasPrefix(lower, "proxy-") || strings.HasPrefix(lower, "x-forwarded-") || strings.HasPrefix(lower, "attache-")
}

// signable is the part of h that a signature covers. Of two spellings of one
// name the values come in the order in which net/http writes them.
func signable(h http.Header, only []string) http.Header {
	keys := make([]string, 0, len(h))
	for k := range h {
		lower := strings.ToLower(k)
		if neverSigned(lower) {
			continue
		}
		if len(only) == 0 || mustSign(lower) || slices.Contains(only, lower) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	out := make(http.Header, len(keys)+3)
	for _, k := range keys {
		canonical := http.CanonicalHeaderKey(k)
		out[canonical] = append(out[canonical], h[k]...)
	}
	return out
}

// mustSign are the fields that AWS demands in every signature, and those that
// change what the body means.
func mustSign(lower string) bool {
	return strings.HasPrefix(lower, "x-amz-") || lower == "content-type" || lower == "content-md5" || lower == "content-encoding"
}

// signedLength is Content-Length if it is known and to be signed, or 0.
func signedLength(r *http.Request, only []string) int64 {
	if r.ContentLength <= 0 || len(only) > 0 && !slices.Contains(only, "content-length") {
		return 0
	}
	return r.ContentLength
}

func hostOf(r *http.Request) string {
	if r.Host != "" {
		return r.Host
	}
	return r.URL.Host
}

// canonicalRequest is the text whose hash is signed, and its list of signed
// fields. aws-sdk-go-v2 builds the same for v4 (the tests compare them).
func canonicalRequest(r *http.Request, p Params, payload string) (text, signed string) {
	fields := signable(r.Header, p.SignedHeaders)
	lines := make([]string, 0, len(fields)+2)
	list := make([]string, 0, len(fields)+2)
	add := func(name string, vs ...string) {
		list = append(list, name)
		trimmed := make([]string, len(vs))
		for i, v := range vs {
			trimmed[i] = strings.TrimSpace(singleSpaced(v))
		}
		lines = append(lines, name+":"+strings.Join(trimmed, ","))
	}
	for name, vs := range fields {
		add(strings.ToLower(name), vs...)
	}
	add("host", hostOf(r))
	if n := signedLength(r, p.SignedHeaders); n > 0 {
		add("content-length", strconv.FormatInt(n, 10))
	}
	sort.Strings(list)
	// ':' sorts after '-', so that the lines are put in order by their names.
	sort.Slice(lines, func(i, j int) bool { return before(lines[i], ":") < before(lines[j], ":") })
	signed = strings.Join(list, ";")
	return strings.Join([]string{
		r.Method, canonicalPath(r.URL, p.Service), canonicalQuery(r.URL.RawQuery),
		strings.Join(lines, "\n") + "\n", signed, payload,
	}, "\n"), signed
}

func before(s, sep string) string {
	head, _, _ := strings.Cut(s, sep)
	return head
}

// singleSpaced trims spaces and makes runs of them one.
func singleSpaced(s string) string {
	s = strings.Trim(s, " ")
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

// canonicalPath is the path as the service will read it from the bytes that are
// sent. S3 decodes it and encodes it strictly, once; the others normalise it as
// it is and encode that.
func canonicalPath(u *url.URL, service string) string {
	wire := wirePath(u)
	if singleEncoded(service) {
		return encodeOnce(wire)
	}
	return escape(normalise(wire), true)
}

// wirePath is the path that net/http writes for u.
func wirePath(u *url.URL) string {
	p := u.EscapedPath()
	if u.Opaque != "" {
		p = before(u.Opaque, "?")
		if rest, ok := strings.CutPrefix(p, "//"); ok {
			if i := strings.IndexByte(rest, '/'); i >= 0 {
				p = rest[i:]
			} else {
				p = "/"
			}
		}
	}
	if p == "" {
		return "/"
	}
	return p
}

// encodeOnce encodes strictly what is not encoded strictly yet. An encoded
// slash stays one: it is a byte of the key's segment.
func encodeOnce(p string) string {
	var b strings.Builder
	b.Grow(len(p))
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' && i+2 < len(p) {
			if v, err := strconv.ParseUint(p[i+1:i+3], 16, 8); err == nil {
				writeEscaped(&b, byte(v), false)
				i += 2
				continue
			}
		}
		writeEscaped(&b, c, true)
	}
	return b.String()
}

// escape encodes every byte but the unreserved ones (RFC 3986 section 2.3).
func escape(s string, keepSlash bool) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		writeEscaped(&b, s[i], keepSlash)
	}
	return b.String()
}

func writeEscaped(b *strings.Builder, c byte, keepSlash bool) {
	const hexDigits = "0123456789ABCDEF"
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '~', c == '/' && keepSlash:
		b.WriteByte(c)
	default:
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
}

// normalise takes dot segments and empty segments out of a path (RFC 3986
// section 6.2.2.3).
func normalise(p string) string {
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") {
		return p
	}
	var out []string
	for seg := range strings.SplitSeq(p, "/") {
		switch seg {
		case "", ".":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, seg)
		}
	}
	n := "/" + strings.Join(out, "/")
	if len(out) > 0 && strings.HasSuffix(p, "/") {
		n += "/"
	}
	return n
}

// canonicalQuery encodes names and values strictly and sorts the pairs by what
// comes out. The caller has made sure that the query can be parsed.
func canonicalQuery(raw string) string {
	type pair struct{ k, v string }
	var pairs []pair
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		k, v, err := splitPair(part)
		if err != nil {
			continue
		}
		pairs = append(pairs, pair{escape(k, false), escape(v, false)})
	}
	sort.Slice(pairs, func(i, j int) bool {
		if pairs[i].k != pairs[j].k {
			return pairs[i].k < pairs[j].k
		}
		return pairs[i].v < pairs[j].v
	})
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.k)
		b.WriteByte('=')
		b.WriteString(p.v)
	}
	return b.String()
}
