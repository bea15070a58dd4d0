package inject

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// Ports of the base URLs' listeners, below those that kernels give to
// connections (32768 on).
const (
	firstBasePort = 15100
	maxBaseURLs   = 64
)

// placeBaseURLs gives each listener its address. They are fixed at admission:
// the agent's variables name them before the sidecar runs.
func (t *template) placeBaseURLs() error {
	if len(t.BaseURLs) > maxBaseURLs {
		return fmt.Errorf("baseURLs: are %d; a pod has at most %d", len(t.BaseURLs), maxBaseURLs)
	}
	t.BaseURLs = slices.Clone(t.BaseURLs) // the caller's
	taken := []int{t.ProxyPort, t.RedirectPort, t.HealthPort}
	var free []int // indices of those without a port
	for i := range t.BaseURLs {
		u, field := &t.BaseURLs[i], fmt.Sprintf("baseURLs[%d]", i)
		fill(&u.Scheme, "http")
		fill(&u.Listen, "127.0.0.1:0")
		a, err := netip.ParseAddrPort(u.Listen)
		switch {
		case u.Scheme != "http" && u.Scheme != "https":
			return fmt.Errorf("%s.scheme: is %q; must be http or https", field, u.Scheme)
		case err != nil || !a.Addr().IsLoopback():
			return fmt.Errorf("%s.listen: is %q; must be a loopback address and a port, such as 127.0.0.1:8080", field, u.Listen)
		case u.Path != "" && u.Path[0] != '/':
			return fmt.Errorf("%s.path: is %q; must begin with /", field, u.Path)
		case a.Port() == 0:
			free = append(free, i)
		case a.Port() < 1024 || slices.Contains(taken, int(a.Port())):
			return fmt.Errorf("%s.listen: port %d is privileged or in use", field, a.Port())
		default:
			taken = append(taken, int(a.Port()))
		}
	}
	next := firstBasePort
	for _, i := range free {
		for slices.Contains(taken, next) {
			next++
		}
		taken = append(taken, next)
		host, _, _ := net.SplitHostPort(t.BaseURLs[i].Listen) // was parsed above
		t.BaseURLs[i].Listen = net.JoinHostPort(host, strconv.Itoa(next))
	}
	t.basePorts = taken[3:]
	return nil
}

// baseURLList tells the sidecar where to listen, and for whom.
func (t *template) baseURLList() string {
	b, err := json.Marshal(t.BaseURLs)
	if err != nil {
		panic(fmt.Sprintf("marshal base URLs: %v", err)) // strings and numbers only
	}
	return string(b)
}
