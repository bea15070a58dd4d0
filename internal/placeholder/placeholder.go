// Package placeholder makes the worthless values that stand in the agent's
// environment where its SDKs insist on a credential, and finds them again in
// requests.
//
// Values are random for each run: a request that carries one comes from a
// program that was given this run's environment, not from a page or a tool
// that merely reaches the proxy.
package placeholder

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Spec declares one placeholder.
type Spec struct {
	Env      string // variable that the agent reads
	Prefix   string // makes the value look right to the SDK
	Provider string // CredentialProvider that declares it
}

// Set holds one run's placeholders. It is immutable and safe for concurrent
// use. The zero Set and a nil Set hold none.
type Set struct {
	mark    string // common to every value of the run: one search finds any
	entries []entry
	byEnv   map[string]int
}

type entry struct {
	Spec
	value string
}

const (
	markBytes  = 6  // enough that other text does not hold it by chance
	valueBytes = 16 // 128 random bits
	markDigits = 2 * markBytes
	tailDigits = markDigits + 2*valueBytes // hex after the prefix
	// shortestKnown is 128 bits in base32: what the shortest value has behind
	// its mark.
	shortestKnown = 26
	shortest      = min(tailDigits, len(knownMark)+shortestKnown)
	maxDecoded    = 64 << 10 // longest Basic credential looked into
)

// New draws values for specs. Variables must be distinct.
func New(specs []Spec) (*Set, error) {
	s := &Set{mark: randomHex(markBytes), byEnv: make(map[string]int, len(specs))}
	for _, spec := range specs {
		if spec.Env == "" {
			return nil, errors.New("placeholder without a variable; name one")
		}
		if _, twice := s.byEnv[spec.Env]; twice {
			return nil, fmt.Errorf("placeholder %s is declared twice; choose another variable", spec.Env)
		}
		s.byEnv[spec.Env] = len(s.entries)
		s.entries = append(s.entries, entry{spec, spec.Prefix + s.mark + randomHex(valueBytes)})
	}
	return s, nil
}

// knownMark is common to the values that admission makes for a pod.
const knownMark = "attache"

// Known is a placeholder whose value somebody else drew.
type Known struct {
	Spec
	Value string
}

// Restore returns the set of values that stand in an environment already, and
// draws those of more. A value is its prefix, "attache" and at least 128 random
// bits in lower-case letters and digits.
func Restore(known []Known, more []Spec) (*Set, error) {
	s := &Set{mark: knownMark, byEnv: map[string]int{}}
	add := func(spec Spec, value string) error {
		if _, twice := s.byEnv[spec.Env]; twice || spec.Env == "" {
			return fmt.Errorf("placeholder %q is declared twice, or without a variable", spec.Env)
		}
		s.byEnv[spec.Env] = len(s.entries)
		s.entries = append(s.entries, entry{spec, value})
		return nil
	}
	for _, k := range known {
		random, ok := strings.CutPrefix(k.Value, k.Prefix+knownMark)
		if !ok || len(random) < shortestKnown || strings.Trim(random, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return nil, fmt.Errorf("placeholder %s: its value is not one that Attaché makes", k.Env)
		}
		if err := add(k.Spec, k.Value); err != nil {
			return nil, err
		}
	}
	for _, spec := range more {
		if _, there := s.byEnv[spec.Env]; there {
			continue
		}
		if err := add(spec, spec.Prefix+knownMark+randomHex(valueBytes)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, crypto/rand.Read
	return hex.EncodeToString(b)
}

// Env returns the variables as NAME=value, in the order of the specs.
func (s *Set) Env() []string {
	if s == nil {
		return nil
	}
	env := make([]string, len(s.entries))
	for i, e := range s.entries {
		env[i] = e.Env + "=" + e.value
	}
	return env
}

// Names returns the variables.
func (s *Set) Names() []string {
	if s == nil {
		return nil
	}
	names := make([]string, len(s.entries))
	for i, e := range s.entries {
		names[i] = e.Env
	}
	return names
}

// Value returns the value of a variable, "" if it is no placeholder.
func (s *Set) Value(name string) string {
	if s == nil {
		return ""
	}
	if i, ok := s.byEnv[name]; ok {
		return s.entries[i].value
	}
	return ""
}

// Provider returns the provider that declares a variable, "" if none does.
func (s *Set) Provider(name string) string {
	if s == nil {
		return ""
	}
	if i, ok := s.byEnv[name]; ok {
		return s.entries[i].Provider
	}
	return ""
}

// Lookup finds the placeholder that value is, and nothing else.
func (s *Set) Lookup(value string) (env, provider string, ok bool) {
	if s == nil {
		return "", "", false
	}
	for _, e := range s.entries {
		if e.value == value {
			return e.Env, e.Provider, true
		}
	}
	return "", "", false
}

// Contains finds a placeholder of this run anywhere in a header or query
// value, also inside the Base64 of Basic credentials and percent-encoded, and
// returns its variable. Values of other runs are not found.
func (s *Set) Contains(text string) (name string, ok bool) {
	if s == nil || len(s.entries) == 0 || len(text) < shortest {
		return "", false
	}
	if name, ok := s.find(text); ok {
		return name, true
	}
	if strings.IndexByte(text, '%') >= 0 {
		if plain, err := url.QueryUnescape(text); err == nil {
			if name, ok := s.find(plain); ok {
				return name, true
			}
		}
	}
	if decoded, ok := basic(text); ok {
		return s.find(decoded)
	}
	return "", false
}

// Find is [Set.Contains] that also names the provider.
func (s *Set) Find(text string) (env, provider string, ok bool) {
	env, ok = s.Contains(text)
	return env, s.Provider(env), ok
}

// find looks at each occurrence of the run's mark; there is hardly ever one.
func (s *Set) find(text string) (string, bool) {
	for from := 0; ; {
		i := strings.Index(text[from:], s.mark)
		if i < 0 {
			return "", false
		}
		at := from + i
		for _, e := range s.entries {
			start := at - len(e.Prefix)
			if start >= 0 && strings.HasPrefix(text[start:], e.value) {
				return e.Env, true
			}
		}
		from = at + 1
	}
}

// basic decodes the token of Basic credentials (RFC 7617 section 2), which
// clients write with and without padding, now and then in the URL alphabet.
func basic(text string) (string, bool) {
	text = strings.TrimSpace(text)
	const scheme = "basic "
	if len(text) <= len(scheme) || len(text) > maxDecoded || !strings.EqualFold(text[:len(scheme)], scheme) {
		return "", false
	}
	token := strings.TrimRight(strings.TrimSpace(text[len(scheme):]), "=")
	token = strings.NewReplacer("-", "+", "_", "/").Replace(token)
	b, err := base64.RawStdEncoding.DecodeString(token)
	if err != nil {
		return "", false
	}
	return string(b), true
}
