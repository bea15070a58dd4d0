// Package sniff tells what a client speaks by the first bytes that it sends,
// and reads the name that it asks for out of a ClientHello. It is pure: the
// caller reads, and stops reading when it is told to.
package sniff

import "bytes"

// Protocol is what a client speaks.
type Protocol int

// What [Recognise] tells apart. Unknown is everything else: protocols in which
// no host is named, and those in which the server speaks first.
const (
	Unknown Protocol = iota
	TLS
	HTTP1
	HTTP2 // with prior knowledge, RFC 9113 section 3.3
)

// String names the protocol.
func (p Protocol) String() string {
	return [...]string{"unknown", "tls", "http/1.1", "h2c"}[p]
}

// preface begins each HTTP/2 connection (RFC 9113 section 3.4). Fourteen bytes
// of it can be nothing else: no server takes PRI for a method.
const (
	preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	enoughOfIt   = 14
	longestToken = 32 // longer methods are in no registry
)

// Recognise tells the protocol by the first bytes; more says that further ones
// are needed, which is so for less than 64 bytes.
func Recognise(b []byte) (p Protocol, more bool) {
	switch {
	case len(b) == 0:
		return Unknown, true
	case b[0] == recordHandshake:
		// The next two bytes are a version, 3.x (RFC 8446 section 5.1).
		if len(b) == 1 {
			return Unknown, true
		}
		if b[1] == 3 {
			return TLS, false
		}
		return Unknown, false
	case bytes.HasPrefix(b, []byte(preface[:enoughOfIt])):
		return HTTP2, false
	case len(b) < enoughOfIt && bytes.HasPrefix([]byte(preface), b):
		return Unknown, true
	}
	return recogniseHTTP1(b)
}

// recogniseHTTP1 looks for a method and a space (RFC 9112 section 3). Methods
// that exist are letters and hyphens; SSH's banner, a token too by RFC 9110's
// grammar, is not.
func recogniseHTTP1(b []byte) (p Protocol, more bool) {
	for i, c := range b {
		switch {
		case c == ' ' && i > 0:
			return HTTP1, false
		case i >= longestToken:
			return Unknown, false
		case !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '-' && i > 0):
			return Unknown, false
		}
	}
	return Unknown, true
}

// ServerFirst tells ports at which the server speaks first, by their common
// use: who waited there for the client would wait for ever. It returns what
// the protocol is called, or "".
func ServerFirst(port uint16) string {
	switch port {
	case 21:
		return "ftp"
	case 22:
		return "ssh"
	case 25, 587, 2525:
		return "smtp"
	case 110:
		return "pop3"
	case 143:
		return "imap"
	case 3306, 33060:
		return "mysql"
	case 5900:
		return "rfb"
	}
	return ""
}
