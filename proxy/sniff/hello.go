package sniff

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"time"
)

const (
	recordHandshake   = 22    // RFC 8446 section 5.1
	clientHello       = 1     // RFC 8446 section 4
	maxRecord         = 16640 // 2^14 + 256
	recordHeader      = 5
	messageHeader     = 4
	extensionECH      = 0xfe0d // IANA: encrypted_client_hello
	maxHello          = 64 << 10
	firstHelloVersion = 3
)

// ErrHello is matched by what begins like TLS and is no ClientHello.
var ErrHello = errors.New("not a ClientHello")

// Hello is what a ClientHello says.
type Hello struct {
	SNI  string // as written; empty: none
	ALPN []string
	// ECH says that the name may be another than SNI (encrypted_client_hello).
	// Many clients send it without meaning it, so that nobody can tell.
	ECH bool
}

// ReadHello parses a ClientHello; more says that it has not been seen whole.
// It is crypto/tls that parses, so that it is read as a handshake will read it.
// An error matches [ErrHello].
func ReadHello(b []byte) (h Hello, more bool, err error) {
	switch whole, err := complete(b); {
	case err != nil:
		return h, false, err
	case !whole:
		return h, true, nil
	}
	seen := false
	err = tls.Server(&replay{r: bytes.NewReader(b)}, &tls.Config{ //nolint:gosec // nothing is negotiated
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			h = Hello{SNI: i.ServerName, ALPN: i.SupportedProtos, ECH: slices.Contains(i.Extensions, extensionECH)}
			seen = true
			return nil, errSeen
		},
	}).Handshake()
	if !seen {
		return Hello{}, false, errors.Join(ErrHello, err)
	}
	return h, false, nil
}

var errSeen = errors.New("hello was read")

// complete walks the records until the first handshake message is there: it
// makes one parse of many reads.
func complete(b []byte) (bool, error) {
	var got, want int
	var head []byte // of the message, which may be spread over records
	for {
		if len(b) < recordHeader {
			return false, nil
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] != recordHandshake || b[1] != firstHelloVersion || n == 0 || n > maxRecord {
			return false, ErrHello
		}
		if len(b) < recordHeader+n { // crypto/tls reads whole records
			return false, nil
		}
		part := b[recordHeader : recordHeader+n]
		if len(head) < messageHeader {
			head = append(head, part[:min(len(part), messageHeader-len(head))]...)
			if len(head) == messageHeader {
				if head[0] != clientHello {
					return false, ErrHello
				}
				want = messageHeader + int(head[1])<<16 + int(head[2])<<8 + int(head[3])
				if want > maxHello {
					return false, ErrHello
				}
			}
		}
		got += len(part)
		if want > 0 && got >= want {
			return true, nil
		}
		b = b[recordHeader+n:]
	}
}

// replay is a connection that has been read and writes nothing.
type replay struct{ r *bytes.Reader }

func (r *replay) Read(p []byte) (int, error) {
	if r.r.Len() == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return r.r.Read(p)
}
func (r *replay) Write(p []byte) (int, error)      { return len(p), nil }
func (r *replay) Close() error                     { return nil }
func (r *replay) LocalAddr() net.Addr              { return nil }
func (r *replay) RemoteAddr() net.Addr             { return nil }
func (r *replay) SetDeadline(time.Time) error      { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }
