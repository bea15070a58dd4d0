// Package secret holds values that must never be printed, logged or
// marshalled.
//
// A [Value] keeps its text behind a closure: fmt walks unexported struct
// fields without calling their Format method, and would print the bytes of a
// string or slice kept there. A function value prints as an address.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync/atomic"
)

const redacted = "[secret]"

// Value is a secret string. The zero Value holds nothing. Values are safe for
// concurrent use and are compared with [Value.Equal], never with ==.
type Value struct{ reveal func() string }

// New returns a Value that holds s. An empty s gives the zero Value.
func New(s string) Value {
	if s == "" {
		return Value{}
	}
	return Value{reveal: func() string { return s }}
}

// NewRevocable is New with a second result: once drop has been called, every
// copy of the Value holds nothing.
func NewRevocable(s string) (v Value, drop func()) {
	if s == "" {
		return Value{}, func() {}
	}
	var p atomic.Pointer[string]
	p.Store(&s)
	return Value{reveal: func() string {
		if t := p.Load(); t != nil {
			return *t
		}
		return ""
	}}, func() { p.Store(nil) }
}

// Reveal returns the text. Only injectors, providers and the echo guard call
// it; test/arch holds the list.
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}

// IsZero reports whether v holds nothing.
func (v Value) IsZero() bool { return v.Reveal() == "" }

// Equal compares two secrets in constant time for equal lengths.
func (v Value) Equal(o Value) bool {
	return subtle.ConstantTimeCompare([]byte(v.Reveal()), []byte(o.Reveal())) == 1
}

// Fingerprint is the first 16 hex digits of the SHA-256 of the text: enough to
// correlate two sightings, worthless to an attacker for values with more than
// 80 bits of entropy. It is empty for the zero Value.
func (v Value) Fingerprint() string {
	if v.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte(v.Reveal()))
	return hex.EncodeToString(sum[:8])
}

// Format implements [fmt.Formatter]: every verb prints the same placeholder.
func (v Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String implements [fmt.Stringer].
func (v Value) String() string { return redacted }

// GoString implements [fmt.GoStringer].
func (v Value) GoString() string { return redacted }

// LogValue implements [slog.LogValuer].
func (v Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements [encoding.TextMarshaler]; it covers JSON and YAML.
func (v Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }
