package guard

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/internal/secret"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// HandlePrefix begins every handle of a sealed credential.
const HandlePrefix = "attache-sealed-"

const handleLen = len(HandlePrefix) + 32

// Who is for whom a value is sealed. All fields must be equal to open it. Host
// is the canonical host of the destination.
type Who struct {
	Workload string // SPIFFE ID
	Run      string
	Task     string // empty if none is open
	Host     string
	// Cleartext says that the destination is reached without encryption: what
	// came encrypted must not leave otherwise.
	Cleartext bool
}

// IsHandle reports whether v has the form of a handle, of whichever vault.
func IsHandle(v string) bool {
	digits, ok := strings.CutPrefix(v, HandlePrefix)
	return ok && len(v) == handleLen && strings.Trim(digits, "0123456789abcdef") == ""
}

// Vault keeps sealed credentials in memory, bounded in number for each Who and
// in all, until they expire. It is safe for concurrent use.
type Vault struct {
	ttl    time.Duration
	perWho int
	now    func() time.Time

	mu   sync.Mutex // guards all
	all  *simplelru.LRU[string, *sealed]
	held map[Who]*simplelru.LRU[string, struct{}]
	same map[valueKey]string // handle of a value sealed before
}

type valueKey struct {
	who  Who
	slot string
	sum  [sha256.Size]byte
}

// sealed is one kept value. slot says where it may be opened: "token" in
// places that carry credentials, "cookie:NAME" and "param:NAME" only there.
// Otherwise an agent could have a handle opened in a text that it can read
// back.
type sealed struct {
	value   secret.Value
	key     valueKey
	expires time.Time
}

const slotToken = "token"

// NewVault returns a vault that keeps at most total values, at most a quarter
// of them (and at least one) for one Who, each for ttl since it was last
// sealed. now is the clock; nil means [time.Now].
func NewVault(total int, ttl time.Duration, now func() time.Time) *Vault {
	if now == nil {
		now = time.Now
	}
	v := &Vault{
		ttl: ttl, perWho: max(total/4, 1), now: now,
		held: map[Who]*simplelru.LRU[string, struct{}]{},
		same: map[valueKey]string{},
	}
	all, err := simplelru.NewLRU(max(total, 1), func(h string, s *sealed) { v.forget(h, s) })
	if err != nil { // only a size below one errs
		panic("guard: vault: " + err.Error())
	}
	v.all = all
	return v
}

// seal keeps value for who and returns its handle.
func (v *Vault) seal(who Who, slot, value string) string {
	key := valueKey{who, slot, sha256.Sum256([]byte(value))}
	v.mu.Lock()
	defer v.mu.Unlock()
	expires := v.now().Add(v.ttl)
	if h, ok := v.same[key]; ok {
		if s, ok := v.all.Get(h); ok {
			s.expires = expires
			v.held[who].Get(h)
			return h
		}
	}
	h := HandlePrefix + random()
	own := v.held[who]
	if own == nil {
		own, _ = simplelru.NewLRU[string, struct{}](v.perWho, nil) // perWho is positive
		v.held[who] = own
	}
	if own.Len() >= v.perWho {
		if oldest, _, ok := own.GetOldest(); ok {
			v.all.Remove(oldest)
		}
	}
	if v.held[who] == nil { // the removal emptied it
		v.held[who] = own
	}
	own.Add(h, struct{}{})
	v.same[key] = h
	v.all.Add(h, &sealed{secret.New(value), key, expires})
	return h
}

// open returns the value of a handle, if it was sealed for who and slot.
func (v *Vault) open(who Who, handle string, slots ...string) (secret.Value, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.all.Get(handle)
	if !ok || s.key.who != who {
		return secret.Value{}, false
	}
	if !v.now().Before(s.expires) {
		v.all.Remove(handle)
		return secret.Value{}, false
	}
	for _, slot := range slots {
		if s.key.slot == slot {
			v.held[who].Get(handle)
			return s.value, true
		}
	}
	return secret.Value{}, false
}

// Holds reports whether handle is exactly one handle that opens for who
// somewhere on a request.
func (v *Vault) Holds(who Who, handle string) bool {
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.all.Peek(handle)
	return ok && s.key.who == who && v.now().Before(s.expires)
}

// Drop forgets everything sealed for a workload's run, or only for its task if
// task is not empty.
func (v *Vault) Drop(workload, run, task string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, h := range v.all.Keys() {
		s, ok := v.all.Peek(h)
		if !ok {
			continue
		}
		w := s.key.who
		if w.Workload == workload && w.Run == run && (task == "" || w.Task == task) {
			v.all.Remove(h)
		}
	}
}

// Len is how many values are kept.
func (v *Vault) Len() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.all.Len()
}

// forget follows an eviction; mu is held.
func (v *Vault) forget(h string, s *sealed) {
	delete(v.same, s.key)
	own := v.held[s.key.who]
	if own == nil {
		return
	}
	own.Remove(h)
	if own.Len() == 0 {
		delete(v.held, s.key.who)
	}
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return hex.EncodeToString(b[:])
}

// isHandle reports whether s has the form of a handle.
func isHandle(s string) bool {
	return len(s) == handleLen && strings.HasPrefix(s, HandlePrefix) && isHex(s[len(HandlePrefix):])
}

// holdsHandle reports whether a handle stands anywhere in s.
func holdsHandle(s string) bool {
	for {
		i := strings.Index(s, HandlePrefix)
		if i < 0 {
			return false
		}
		s = s[i:]
		if len(s) >= handleLen && isHandle(s[:handleLen]) {
			return true
		}
		s = s[len(HandlePrefix):]
	}
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
