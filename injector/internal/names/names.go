// Package names knows which headers, query parameters, cookies and JSON
// members carry credentials. Request stripping and answer sealing share it, so
// that what is sealed in one answer can be opened in the next request.
package names

import (
	"bytes"
	"strings"
)

// Fold lower-cases a name and turns '_' into '-': CGI and WSGI servers see
// X_Api_Key and X-Api-Key as one variable.
func Fold(name string) string {
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' || c == '_' || c >= 0x80 {
			return fold(name)
		}
	}
	return name
}

// fold costs no allocation for the names that every request has.
func fold(name string) string {
	var space [64]byte
	b := append(space[:0], name...)
	for i, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			b[i] = c - 'A' + 'a'
		case c == '_':
			b[i] = '-'
		case c >= 0x80: // no header name of a strict parser
			return strings.ReplaceAll(strings.ToLower(name), "_", "-")
		}
	}
	return intern(b)
}

// intern returns b as a string. It is a switch rather than a map: it compiles
// to a search by length and content.
func intern(b []byte) string {
	switch string(b) {
	case "accept":
		return "accept"
	case "accept-encoding":
		return "accept-encoding"
	case "accept-language":
		return "accept-language"
	case "accept-ranges":
		return "accept-ranges"
	case "authorization":
		return "authorization"
	case "cache-control":
		return "cache-control"
	case "connection":
		return "connection"
	case "content-encoding":
		return "content-encoding"
	case "content-length":
		return "content-length"
	case "content-type":
		return "content-type"
	case "date":
		return "date"
	case "etag":
		return "etag"
	case "expect":
		return "expect"
	case "last-modified":
		return "last-modified"
	case "server":
		return "server"
	case "te":
		return "te"
	case "traceparent":
		return "traceparent"
	case "transfer-encoding":
		return "transfer-encoding"
	case "user-agent":
		return "user-agent"
	case "vary":
		return "vary"
	case "x-api-key":
		return "x-api-key"
	case "x-request-id":
		return "x-request-id"
	}
	return string(b)
}

// Header reports whether a header of this name carries a credential.
func Header(name string) bool {
	n := Fold(name)
	switch n {
	case "authorization", "proxy-authorization", "x-api-key", "api-key", "apikey", "x-apikey",
		"x-goog-api-key", "x-auth-token", "x-auth-key", "x-subject-token", "private-token", "job-token",
		"deploy-token", "x-amz-security-token", "x-vault-token", "x-figma-token", "x-functions-key",
		"x-authorization", "x-token", "dpop", "txn-token", "cookie2":
		return true
	case "x-csrf-token", "x-xsrf-token":
		return false
	}
	for _, suffix := range []string{
		"-api-key", "-apikey", "-access-token", "-auth-token", "-session-token",
		"-subscription-key", "-secret-key",
	} {
		if strings.HasSuffix(n, suffix) {
			return true
		}
	}
	return false
}

// Param reports whether a query or form parameter of this name carries a
// credential or the signature that makes a URL one.
func Param(name string) bool {
	switch squash(name) {
	case "key", "apikey", "accesskey", "accesstoken", "token", "authtoken", "auth", "authorization",
		"sig", "signature", "xamzsignature", "xamzsecuritytoken",
		"xgoogsignature", "clientsecret", "secret", "privatetoken", "jobtoken",
		"idtoken", "refreshtoken", "sessiontoken", "jwt", "bearertoken", "password",
		"subscriptionkey", "clientassertion", "subjecttoken", "actortoken":
		return true
	}
	return false
}

// Signature reports whether a parameter of a URL in an answer makes the URL a
// credential. It is narrower than [Param]: "key" in a Location is most often
// a record's name.
func Signature(name string) bool {
	switch squash(name) {
	case "key", "auth":
		return false
	}
	return Param(name)
}

// Issued reports whether a parameter of a URL in an answer is a token that a
// client may also present elsewhere, not only in that URL.
func Issued(name string) bool {
	switch squash(name) {
	case "accesstoken", "idtoken", "refreshtoken", "token", "jwt", "apikey", "sessiontoken", "authtoken":
		return true
	}
	return false
}

// Cookie reports whether a cookie of this name carries a session or token.
func Cookie(name string) bool {
	n := squash(name)
	if strings.Contains(n, "csrf") || strings.Contains(n, "xsrf") {
		return false
	}
	for _, part := range []string{
		"session", "sess", "auth", "token", "jwt", "apikey", "secret", "credential", "remember", "sso", "bearer",
	} {
		if strings.Contains(n, part) {
			return true
		}
	}
	return n == "sid" || strings.HasSuffix(n, "sid")
}

// Member reports whether a JSON member of this name with this value is a
// credential. Names that are ordinary words as well ("token", "secret") count
// only with a value that looks like one.
func Member(name, value string) bool {
	if value == "" {
		return false
	}
	switch squash(name) {
	case "accesstoken", "refreshtoken", "idtoken", "clientsecret", "apikey", "secretkey",
		"secretaccesskey", "sessiontoken", "privatekey", "authtoken", "bearertoken", "usertoken",
		"devicetoken", "registrationaccesstoken", "servicetoken", "clienttoken", "accesskeysecret":
		return true
	case "token", "secret", "jwt", "password", "passphrase", "sessionkey", "accesskey", "sharedsecret":
		return len(value) >= 16 && !strings.ContainsAny(value, " \t\r\n")
	}
	return false
}

// MayBeMember reports whether [Member] can hold for a name, as it stands
// between its quotes. It looks at the last two letters only. An escape or a
// separator there tells nothing, and may be anything.
func MayBeMember(raw []byte) bool {
	if bytes.IndexByte(raw, '\\') >= 0 {
		return true
	}
	n := len(raw)
	if n < 2 {
		return false
	}
	a, b := raw[n-2], raw[n-1]
	if separator(a) || separator(b) {
		return true
	}
	switch string([]byte{a | 0x20, b | 0x20}) {
	case "en", "et", "ey", "wt", "rd", "se": // token, secret, key, jwt, password, passphrase
		return true
	}
	return false
}

func separator(c byte) bool { return c == '_' || c == '-' || c == '.' }

func squash(name string) string {
	plain := true
	for i := 0; i < len(name) && plain; i++ {
		c := name[i]
		plain = c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
	}
	if plain {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '_' || r == '-' || r == '.':
			return -1
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return r
	}, name)
}
