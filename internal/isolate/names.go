package isolate

import (
	"container/list"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/proxy/destination"
)

// maxNames bounds the table: with the longest names it takes about 8 MiB.
const maxNames = 16384

// minAge is how long an address keeps its name after it was last asked for or
// connected to. Clients cache answers far beyond the [ttl] of them.
const minAge = time.Hour

// firstSlot leaves room for addresses of our own at the beginning of the pool.
const firstSlot = 256

// errFull says that every name is in use.
var errFull = errors.New("too many names at one time")

// Names gives each name that is asked for an address of each family, and tells
// the name of an address. The zero value is not usable; see [NewNames].
type Names struct {
	now    func() time.Time
	max    int
	pool4  netip.Prefix
	pool6  netip.Prefix
	mu     sync.Mutex // guards the rest
	byName map[string]*list.Element
	bySlot map[uint32]*list.Element
	recent *list.List // of *entry, the longest unused first
}

type entry struct {
	name string
	slot uint32
	used time.Time
}

// NewNames returns an empty table; now must be monotonic.
func NewNames(now func() time.Time) *Names {
	return &Names{
		now: now, max: maxNames, pool4: netip.MustParsePrefix(poolText4), pool6: netip.MustParsePrefix(poolText6),
		byName: map[string]*list.Element{}, bySlot: map[uint32]*list.Element{}, recent: list.New(),
	}
}

// canonical is the one spelling of a name, or false for what can be none: an
// address, and what package destination refuses.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	host, err := destination.ParseHost(name)
	if err != nil {
		return "", false
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return "", false
	}
	return host, true
}

// Addresses are those of name, which must be canonical.
func (n *Names) Addresses(name string) (four, six netip.Addr, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	el, ok := n.byName[name]
	if !ok {
		e := &entry{name: name, slot: firstSlot + uint32(n.recent.Len())} //nolint:gosec // at most maxNames
		if n.recent.Len() >= n.max {
			oldest, _ := n.recent.Front().Value.(*entry)
			if now.Sub(oldest.used) < minAge {
				return netip.Addr{}, netip.Addr{}, errFull
			}
			e.slot = oldest.slot
			delete(n.byName, oldest.name)
			n.recent.Remove(n.recent.Front())
		}
		el = n.recent.PushBack(e)
		n.byName[name], n.bySlot[e.slot] = el, el
	}
	e := n.touch(el, now)
	return n.four(e.slot), n.six(e.slot), nil
}

func (n *Names) touch(el *list.Element, now time.Time) *entry {
	e, _ := el.Value.(*entry)
	e.used = now
	n.recent.MoveToBack(el)
	return e
}

// Name is the name that an address was given out for. reserved says that the
// address is one of the pool: without a name it stands for nothing, and nobody
// may be connected to it.
func (n *Names) Name(a netip.Addr) (name string, reserved bool) {
	a = a.Unmap().WithZone("")
	if !n.pool4.Contains(a) && !n.pool6.Contains(a) {
		return "", false
	}
	slot, ok := n.slot(a)
	if !ok {
		return "", true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	el, ok := n.bySlot[slot]
	if !ok {
		return "", true
	}
	return n.touch(el, n.now()).name, true
}

func (n *Names) four(slot uint32) netip.Addr {
	b := n.pool4.Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += slot
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// six puts the slot into the last four bytes.
func (n *Names) six(slot uint32) netip.Addr {
	b := n.pool6.Addr().As16()
	b[12], b[13], b[14], b[15] = byte(slot>>24), byte(slot>>16), byte(slot>>8), byte(slot)
	return netip.AddrFrom16(b)
}

// slot is the inverse of four and six.
func (n *Names) slot(a netip.Addr) (uint32, bool) {
	if a.Is4() {
		b, p := a.As4(), n.pool4.Addr().As4()
		v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		v -= uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
		return v, true
	}
	b := a.As16()
	v := uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
	return v, a == n.six(v)
}
