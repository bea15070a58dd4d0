// Package reject says no in protocols that Attaché does not carry: the error
// that the protocol has for a server that will not serve, with our reason in
// it, so that the client's user reads why instead of "connection closed".
//
// It writes what it can before the protocol needs state, reads no more than
// that takes, and believes nothing that it reads.
package reject

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// Protocols that [Answer] knows, by the names that [sniff.ServerFirst] has for
// them, and two in which the client speaks first.
const (
	FTP        = "ftp"
	SSH        = "ssh"
	SMTP       = "smtp"
	POP3       = "pop3"
	IMAP       = "imap"
	MySQL      = "mysql"
	PostgreSQL = "postgresql"
	Redis      = "redis"
)

const (
	// patience bounds all of an answer: the client waits for it, and what it
	// sends meanwhile is read away, or the kernel would reset the connection
	// before the client has read.
	patience = 3 * time.Second
	maxText  = 400 // bytes of a reason: SMTP's lines end at 512 (RFC 5321 section 4.5.3.1.5)
	maxDrain = 64 << 10
)

// Recognise tells a protocol in which the client speaks first by its first
// bytes, or "".
func Recognise(first []byte) string {
	switch {
	case len(first) >= 8 && isStartup(first):
		return PostgreSQL
	case len(first) >= 3 && first[0] == '*' && '1' <= first[1] && first[1] <= '9': // an array of bulk strings
		return Redis
	}
	return ""
}

// Answer writes text to a client whose connection goes no further, and waits
// a moment until it has read it. It says whether protocol has a form for that; the
// connection is the caller's to close.
func Answer(c net.Conn, protocol, text string) (bool, error) {
	text = printable(text)
	_ = c.SetDeadline(time.Now().Add(patience))
	var err error
	switch protocol {
	case FTP: // RFC 959 section 5.4: 421 is for a connection that is closed at once
		_, err = io.WriteString(c, "421 "+text+"\r\n")
	case SMTP: // RFC 5321 section 3.1: 554 in place of a greeting
		_, err = io.WriteString(c, "554 5.7.1 "+text+"\r\n")
	case POP3: // RFC 3206: nothing that the user can mend
		_, err = io.WriteString(c, "-ERR [SYS/PERM] "+text+"\r\n")
	case IMAP: // RFC 3501 section 7.1.5
		_, err = io.WriteString(c, "* BYE "+text+"\r\n")
	case Redis:
		_, err = io.WriteString(c, "-NOPERM "+text+"\r\n")
	case MySQL:
		_, err = c.Write(mysql(text))
	case SSH:
		_, err = c.Write(ssh(text))
	case PostgreSQL:
		err = postgreSQL(c, text)
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return true, drain(c)
}

// drain lets the client read: it ends with the client.
func drain(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		if err := w.CloseWrite(); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, io.LimitReader(c, maxDrain))
	return err
}

// printable is a line of ASCII, which all of these protocols take.
func printable(s string) string {
	s = strings.ReplaceAll(s, "é", "e") // of our name
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b[:min(len(b), maxText)])
}

// mysql is an ERR packet in place of the handshake, before which no SQL state is
// sent. 1130 is ER_HOST_NOT_PRIVILEGED, which a server gives at this point.
func mysql(text string) []byte {
	payload := append([]byte{0xff, 1130 & 0xff, 1130 >> 8}, text...)
	return append([]byte{byte(len(payload)), byte(len(payload) >> 8), 0, 0}, payload...)
}

// ssh is an identification and SSH_MSG_DISCONNECT before any key exchange (RFC 4253
// sections 4.2, 6 and 11.1), which clients show.
func ssh(text string) []byte {
	const disconnect, notAllowed = 1, 1 // SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT
	p := []byte{disconnect, 0, 0, 0, notAllowed}
	p = binary.BigEndian.AppendUint32(p, uint32(len(text))) //nolint:gosec // at most maxText
	p = append(p, text...)
	p = binary.BigEndian.AppendUint32(p, 0) // language
	// Lengths and payload fill blocks of eight; at least four bytes are padding.
	pad := 8 - (5+len(p))%8
	if pad < 4 {
		pad += 8
	}
	out := []byte("SSH-2.0-Attache\r\n")
	out = binary.BigEndian.AppendUint32(out, uint32(1+len(p)+pad)) //nolint:gosec // small
	out = append(append(out, byte(pad)), p...)
	return append(out, make([]byte, pad)...)
}

// Codes in place of a protocol version (PostgreSQL, "Message Formats").
const (
	pgVersion3   = 3 << 16
	pgCancel     = 80877102
	pgSSLRequest = 80877103
	pgGSSRequest = 80877104

	maxStartup = 10000 // the server's own MAX_STARTUP_PACKET_LENGTH
)

var errNoStartup = errors.New("not a startup message of PostgreSQL")

func isStartup(b []byte) bool {
	n, code := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	switch code {
	case pgSSLRequest, pgGSSRequest:
		return n == 8
	case pgCancel:
		return n == 16
	}
	return code >= pgVersion3 && code < pgVersion3+1<<16 && n >= 8 && n <= maxStartup
}

// postgreSQL declines encryption, which libpq asks for first and needs to be
// answered before it reads an error, and answers the startup message. A client
// that insists on encryption ends by itself.
func postgreSQL(c net.Conn, text string) error {
	for range 4 { // GSSAPI, TLS, startup, and one to spare
		var head [8]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		if !isStartup(head[:]) {
			return errNoStartup
		}
		switch binary.BigEndian.Uint32(head[4:]) {
		case pgSSLRequest, pgGSSRequest:
			if _, err := io.WriteString(c, "N"); err != nil {
				return err
			}
			continue
		case pgCancel: // has no answer
			return nil
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[:]))-8); err != nil {
			return err
		}
		// 28000 is invalid_authorization_specification.
		fields := "SFATAL\x00VFATAL\x00C28000\x00M" + text + "\x00\x00"
		out := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(fields))) //nolint:gosec // small
		_, err := c.Write(append(out, fields...))
		return err
	}
	return errNoStartup
}
