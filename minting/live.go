package minting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/internal/iampolicy"
)

// Events that a [Cache] reports.
const (
	EventMinted  = "credential.minted"
	EventRevoked = "credential.revoked"
)

// Results of a revocation.
const (
	Revoked     = "revoked"     // the issuer confirmed
	Unsupported = "unsupported" // the issuer cannot; it ends by itself
	Failed      = "failed"      // the issuer did not confirm; asked again on Close
)

// Bounds of revocation.
const (
	revokeParallel = 8
	revokeTimeout  = 15 * time.Second
)

// LiveCredential describes a credential that the issuer may still accept.
type LiveCredential struct {
	Handle      string    `json:"handle"`
	Provider    string    `json:"provider"`
	Kind        string    `json:"kind"`
	WorkloadID  string    `json:"workload_id"`
	RunID       string    `json:"run_id"`
	TaskID      string    `json:"task_id,omitempty"`
	Subject     string    `json:"subject,omitempty"`
	Destination string    `json:"destination"`
	Scope       []string  `json:"scope,omitempty"` // granted, or as asked where the issuer did not say
	Role        string    `json:"role,omitempty"`  // of an AWS session
	Derived     bool      `json:"derived"`
	Issued      time.Time `json:"issued,omitzero"`
	Expires     time.Time `json:"expires,omitzero"` // last use by us
	Ends        time.Time `json:"ends,omitzero"`    // last acceptance by the issuer, without a revocation
	// Result is empty, or the outcome of a revocation that did not succeed.
	Result string `json:"result,omitempty"`
}

// Revocation is the outcome for one credential.
type Revocation struct {
	Handle   string
	Provider string
	Result   string    // Revoked, Unsupported or Failed
	Ends     time.Time // when it ends without the issuer's help
	Err      error     // cause of Failed or Unsupported
}

// live is a credential that the issuer may still accept. request and cred are
// set once; Result, timer and ending are guarded by the cache's mu.
type live struct {
	LiveCredential
	request Request
	cred    Credential
	timer   *time.Timer
	ending  bool // somebody is telling the issuer
}

func describe(r Request, c Credential) LiveCredential {
	scope := c.Scope
	if scope == nil {
		scope = r.Scope
	}
	if r.SessionPolicy != "" {
		scope = iampolicy.Allows(r.SessionPolicy)
	}
	ends := c.Expires
	if c.Outlives.After(ends) {
		ends = c.Outlives
	}
	return LiveCredential{
		Handle: c.Handle, Provider: r.Provider, Kind: c.Kind,
		WorkloadID: r.WorkloadID, RunID: r.RunID, TaskID: r.TaskID, Subject: r.Subject,
		Destination: r.Destination, Scope: slices.Clone(scope), Role: c.Role, Derived: c.Derived,
		Issued: c.Issued, Expires: c.Expires, Ends: ends,
	}
}

// fields is what events say of l.
func (l *live) fields() map[string]string {
	f := map[string]string{
		"handle":      l.Handle,
		"provider":    l.Provider,
		"kind":        l.Kind,
		"scope":       strings.Join(l.Scope, " "),
		"role":        l.Role,
		"public_id":   l.cred.PublicID(),
		"scope_asked": strings.Join(l.request.Scope, " "),
		"ttl_s":       strconv.FormatInt(int64(l.Expires.Sub(l.Issued)/time.Second), 10),
		"expires":     l.Expires.UTC().Format(time.RFC3339),
		"workload":    l.WorkloadID,
		"run":         l.RunID,
		"task":        l.TaskID,
		"subject":     l.Subject,
		"destination": l.Destination,
	}
	for k, v := range f {
		if v == "" {
			delete(f, k)
		}
	}
	return f
}

// admit enters a credential into the live table and sets the alarm for its
// end.
func (c *Cache) admit(r Request, cred Credential) *live {
	l := &live{LiveCredential: describe(r, cred), request: r, cred: cred}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live[l.Handle] = l
	l.timer = time.AfterFunc(cred.Expires.Sub(c.o.Now()), func() { c.expire(l) })
	return l
}

// expire ends a credential that nobody may use any longer. One that its issuer
// would go on accepting is revoked, so that the TTL of the rule is the truth.
func (c *Cache) expire(l *live) {
	c.mu.Lock()
	if c.closed || c.live[l.Handle] != l {
		c.mu.Unlock()
		return
	}
	c.dropReady(l)
	if l.cred.Outlives.IsZero() {
		delete(c.live, l.Handle)
		c.mu.Unlock()
		return
	}
	// Should the issuer not end it now, it stays in the inventory until it
	// ends by itself.
	l.timer = time.AfterFunc(l.Ends.Sub(c.o.Now()), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.live, l.Handle)
	})
	if l.ending || l.Result == Unsupported {
		c.mu.Unlock()
		return
	}
	l.ending = true
	c.idle.Add(1)
	c.mu.Unlock()
	defer c.idle.Done()
	c.undo(context.Background(), l) //nolint:contextcheck // a timer has no caller; undo sets a deadline
}

// claim marks l as being revoked; false: somebody else already does it.
func (c *Cache) claim(l *live) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.ending {
		return false
	}
	l.ending = true
	return true
}

// Live returns the credentials that issuers may still accept, oldest first.
func (c *Cache) Live() []LiveCredential {
	c.mu.Lock()
	list := make([]LiveCredential, 0, len(c.live))
	for _, l := range c.live {
		d := l.LiveCredential
		d.Scope = slices.Clone(d.Scope)
		list = append(list, d)
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b LiveCredential) int {
		if n := a.Issued.Compare(b.Issued); n != 0 {
			return n
		}
		return strings.Compare(a.Handle, b.Handle)
	})
	return list
}

// RevokeWhere ends every credential for which where is true. First it empties
// the cache of them, so that no request gets one from here on; mints under way
// are judged when they end, and their credentials are revoked without ever
// being used. Then it tells the issuers. where is called with locks held: it
// must not block nor call the Cache.
func (c *Cache) RevokeWhere(ctx context.Context, where func(Request, Credential) bool) []Revocation {
	return c.revokeAll(ctx, c.take(where))
}

// take removes what matches from the ready credentials and returns it.
func (c *Cache) take(where func(Request, Credential) bool) []*live {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.flights {
		f.revoked = append(f.revoked, where)
	}
	var list []*live
	for _, l := range c.live {
		if !where(l.request, l.cred) {
			continue
		}
		c.dropReady(l)
		if !l.ending {
			l.ending = true
			list = append(list, l)
		}
	}
	return list
}

// revokeAll tells the issuers, a few at a time.
func (c *Cache) revokeAll(ctx context.Context, list []*live) []Revocation {
	out := make([]Revocation, len(list))
	slots := make(chan struct{}, revokeParallel)
	var wg sync.WaitGroup
	for i, l := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = c.undo(ctx, l)
		})
	}
	wg.Wait()
	return out
}

// undo revokes l, which the caller has claimed.
func (c *Cache) undo(ctx context.Context, l *live) Revocation {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	err := Revoke(ctx, c.o.Minter, l.cred)
	v := Revocation{Handle: l.Handle, Provider: l.Provider, Ends: l.Ends, Err: err, Result: Failed}
	switch {
	case err == nil:
		v.Result = Revoked
	case errors.Is(err, errors.ErrUnsupported):
		v.Result = Unsupported
	default:
		c.o.Logger.WarnContext(ctx, "credential not revoked", "handle", l.Handle, "provider", l.Provider, "error", err)
	}
	c.mu.Lock()
	known := v.Result == Unsupported && l.Result == Unsupported // asked again, as by Close
	if v.Result == Revoked {
		delete(c.live, l.Handle)
		if l.timer != nil {
			l.timer.Stop()
		}
	} else {
		l.Result, l.ending = v.Result, false
	}
	c.mu.Unlock()
	if !known {
		f := l.fields()
		f["result"] = v.Result
		c.o.OnEvent(EventRevoked, f)
	}
	return v
}

// Close ends the cache: no mint succeeds any more, those under way are
// stopped, and every credential that still lives is revoked. It returns when
// all that is done, or when ctx ends, with an error that names how many
// credentials the issuers did not confirm. Those that no issuer can revoke are
// not counted. Closing again tries the failed ones again.
func (c *Cache) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.flights {
		f.cancel()
	}
	for _, l := range c.live {
		l.timer.Stop()
	}
	c.mu.Unlock()

	landed := make(chan struct{})
	go func() {
		c.idle.Wait()
		close(landed)
	}()
	select {
	case <-landed:
	case <-ctx.Done(): // revoke what is known, in what time is left
	}
	failed := 0
	for _, v := range c.RevokeWhere(ctx, func(Request, Credential) bool { return true }) {
		if v.Result == Failed {
			failed++
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("close credential cache: %w", err)
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d credentials are not confirmed as revoked; they end by themselves, see the record", ErrUnavailable, failed)
	}
	return nil
}
