package guard

import (
	"encoding/base64"
	"fmt"
	"sync"

	"github.com/attache-dev/attache/internal/secret"
	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// minEncoded is the length from which a secret is also looked for in its
	// encodings. Shorter ones would match by accident; they are only found
	// verbatim.
	minEncoded = 8
	// window is how many bytes at the start of a match the skip loop looks at.
	window = 16
	// maxEager is how many bytes of a match may pass on a conversation.
	maxEager = 4
	// wrapFrom is the base64 digit from which a line break may stand before a
	// digit (MIME, and the contents API of GitHub). Allowing it earlier would
	// make the end of ordinary lines wait for the next chunk.
	wrapFrom = 8
)

// Patterns finds a set of secrets in text, verbatim and in the encodings in
// which servers echo requests. It is immutable and safe for concurrent use.
// A nil *Patterns finds nothing.
type Patterns struct {
	// m is behind a closure, because its tables spell the secrets out and fmt
	// walks unexported fields.
	m func() *matcher
}

// NewPatterns compiles the patterns for secrets; zero values are ignored. With
// no secret left it returns nil. For a Basic credential pass the password and
// [Basic] of user and password.
func NewPatterns(secrets ...secret.Value) *Patterns {
	b := newBuilder()
	for _, s := range secrets {
		b.add(s.Reveal())
	}
	if len(b.m.families) == 0 {
		return nil
	}
	m := b.finish()
	return &Patterns{m: func() *matcher { return m }}
}

// Basic returns the RFC 7617 encoding of user and password, for [NewPatterns].
func Basic(user string, password secret.Value) secret.Value {
	return secret.New(base64.StdEncoding.EncodeToString([]byte(user + ":" + password.Reveal())))
}

// Format implements [fmt.Formatter]: nothing of the secrets is printed.
func (p *Patterns) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[patterns]")) }

// Contains reports whether s holds one of the secrets in any known encoding.
func (p *Patterns) Contains(s string) bool {
	if p == nil || len(s) == 0 {
		return false
	}
	_, n := p.Mask(s)
	return n > 0
}

// Mask returns s with every occurrence replaced by '*' at equal length, and
// how many there were.
func (p *Patterns) Mask(s string) (string, int) {
	if p == nil || s == "" {
		return s, 0
	}
	m := p.m()
	if len(s) < m.window {
		return s, 0
	}
	sc := scanner{m: m}
	buf := []byte(s)
	sc.feed(buf, 0)
	if sc.found == 0 {
		return s, 0
	}
	return string(buf), sc.found
}

// Cache keeps compiled patterns by credential handle.
type Cache struct {
	mu sync.Mutex // serialises builds: compiling twice is dearer than waiting
	l  *lru.Cache[string, *Patterns]
}

// NewCache returns a cache for size credentials (at least one).
func NewCache(size int) *Cache {
	l, err := lru.New[string, *Patterns](max(size, 1))
	if err != nil { // only a size below one errs
		panic("guard: pattern cache: " + err.Error())
	}
	return &Cache{l: l}
}

// Get returns the patterns of the credential that handle names; secrets is
// called if they are not compiled yet.
func (c *Cache) Get(handle string, secrets func() []secret.Value) *Patterns {
	if p, ok := c.l.Get(handle); ok {
		return p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.l.Get(handle); ok {
		return p
	}
	p := NewPatterns(secrets()...)
	c.l.Add(handle, p)
	return p
}

// Drop forgets the patterns of a handle (revoked or expired).
func (c *Cache) Drop(handle string) { c.l.Remove(handle) }

// A matcher is a non-deterministic automaton. A family is one way to write a
// secret: a sequence of units, each of which may be spelt in several ways
// (verbatim, %41, \u0041, &#65; …) that one trie holds.
type matcher struct {
	families [][]uint16   // units, as indexes of tries
	tries    []*trie      // those that occur
	window   int          // no match is shorter; at most the constant window
	eager    int          // how much of a match may pass on a conversation: little of any secret
	first    [256]bool    // bytes that a match can start with
	pairs    [1024]uint64 // bit set of byte pairs that the first window bytes of a match can hold
}

// trie holds the spellings of one unit. It is immutable; node 0 is its root.
type trie struct {
	nodes []node
	last  []byte // bytes that a spelling can end with
}

type node struct {
	end   bool // a spelling ends here
	edges []edge
}

type edge struct {
	b  byte
	to uint32
}

// next returns the node after b, 0 if there is none.
func (n *node) next(b byte) uint32 {
	for _, e := range n.edges {
		if e.b == b {
			return e.to
		}
	}
	return 0
}

type class struct {
	kind byte // p(lain), b(ase64), w(rapped base64), h(ex), e(xact)
	c    byte
}

// tries keeps the trie of each class that any secret has needed: they are the
// same for all, and most of what a secret's patterns are made of.
//
//nolint:gochecknoglobals // a memo of a pure function
var tries sync.Map // class -> *trie

func trieOf(k class) *trie {
	if t, ok := tries.Load(k); ok {
		return t.(*trie) //nolint:forcetypeassert // only these are stored
	}
	t := &trie{nodes: make([]node, 1)}
	for _, s := range spellings(k) {
		t.insert(s)
	}
	var ends [256]bool
	for _, n := range t.nodes {
		for _, e := range n.edges {
			if t.nodes[e.to].end && !ends[e.b] {
				ends[e.b] = true
				t.last = append(t.last, e.b)
			}
		}
	}
	kept, _ := tries.LoadOrStore(k, t)
	return kept.(*trie) //nolint:forcetypeassert // only these are stored
}

func (t *trie) insert(s string) {
	at := uint32(0)
	for i := range len(s) {
		to := t.nodes[at].next(s[i])
		if to == 0 {
			to = uint32(len(t.nodes)) //nolint:gosec // a few hundred
			t.nodes = append(t.nodes, node{})
			t.nodes[at].edges = append(t.nodes[at].edges, edge{s[i], to})
		}
		at = to
	}
	t.nodes[at].end = true
}

type builder struct {
	m     *matcher
	units map[class]uint16
}

func newBuilder() *builder {
	return &builder{m: &matcher{window: window, eager: maxEager}, units: map[class]uint16{}}
}

func (b *builder) add(s string) {
	if s == "" {
		return
	}
	b.m.window = min(b.m.window, len(s))
	b.m.eager = min(b.m.eager, len(s)/8)
	if len(s) < minEncoded {
		b.family(s, func(int) byte { return 'e' })
		return
	}
	b.family(s, func(int) byte { return 'p' })
	b.family(hexDigits(s), func(int) byte { return 'h' })
	for off := range 3 {
		b.family(base64Core(s, off), func(i int) byte {
			if i < wrapFrom {
				return 'b'
			}
			return 'w'
		})
	}
}

func (b *builder) family(s string, kind func(i int) byte) {
	units := make([]uint16, len(s))
	for i := range len(s) {
		k := class{kind(i), s[i]}
		u, ok := b.units[k]
		if !ok {
			u = uint16(len(b.m.tries)) //nolint:gosec // at most five kinds of 256 bytes
			b.units[k] = u
			b.m.tries = append(b.m.tries, trieOf(k))
		}
		units[i] = u
	}
	b.m.families = append(b.m.families, units)
}

// finish computes the tables of the skip loop. They may hold too much, never
// too little: a unit is at least one byte long, so the first window bytes of a
// match lie within its first window units.
func (b *builder) finish() *matcher {
	m := b.m
	type join struct{ a, b uint16 }
	inner := map[uint16]bool{}
	joined := map[join]bool{}
	for _, units := range m.families {
		for _, e := range m.tries[units[0]].nodes[0].edges {
			m.first[e.b] = true
		}
		for i, u := range units[:min(m.window, len(units))] {
			t := m.tries[u]
			if !inner[u] {
				inner[u] = true
				m.innerPairs(t)
			}
			if i+1 < len(units) && !joined[join{u, units[i+1]}] {
				joined[join{u, units[i+1]}] = true
				for _, last := range t.last {
					for _, e := range m.tries[units[i+1]].nodes[0].edges {
						m.setPair(last, e.b)
					}
				}
			}
		}
	}
	return m
}

// innerPairs notes the pairs within the spellings of a unit.
func (m *matcher) innerPairs(t *trie) {
	for _, n := range t.nodes {
		for _, e := range n.edges {
			for _, f := range t.nodes[e.to].edges {
				m.setPair(e.b, f.b)
			}
		}
	}
}

func (m *matcher) setPair(a, b byte) {
	i := uint(a) | uint(b)<<8
	m.pairs[i>>6] |= 1 << (i & 63)
}

func (m *matcher) hasPair(a, b byte) bool {
	i := uint(a) | uint(b)<<8
	return m.pairs[i>>6]&(1<<(i&63)) != 0
}

// skip returns the first position from which a match could start at or after
// i: either one whose whole window consists of possible pairs, or the start of
// a tail too short to tell. It looks at windows from their end: an impossible
// pair there rules out every start before it.
func (m *matcher) skip(buf []byte, i int) int {
	w := m.window
	if w < 2 {
		return i
	}
next:
	for i+w <= len(buf) {
		for q := i + w - 2; q >= i; q-- {
			if !m.hasPair(buf[q], buf[q+1]) {
				i = q + 1
				continue next
			}
		}
		return i
	}
	return i
}
