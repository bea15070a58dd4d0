// Package spiffe takes identity from a SPIFFE Workload API (SPIRE or any other
// issuer that speaks it).
package spiffe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

const (
	fetchTimeout = 10 * time.Second
	cached       = 1024             // JWT-SVIDs kept
	margin       = 10 * time.Second // a token with less life left is not handed out
)

// Config describes a [Source].
type Config struct {
	// Socket of the Workload API, unix:///PATH or tcp://IP:PORT. Default:
	// $SPIFFE_ENDPOINT_SOCKET.
	Socket string
	// ID chooses among several identities; zero: the first, which is the
	// default one (SPIFFE Workload API section 5.2.1).
	ID spiffeid.ID
	// Log receives changes of state. Default: discarded.
	Log *slog.Logger
}

// Source implements [identity.Source] by the Workload API. It is safe for
// concurrent use.
type Source struct {
	x509  *workloadapi.X509Source
	jwt   *workloadapi.JWTSource
	state *state
	group singleflight.Group
}

var _ identity.Source = (*Source)(nil)

// New connects and waits, as long as ctx allows, for the first identity. An
// error matches [identity.ErrUnavailable] if waiting longer could have helped.
// Call [Source.Close] when done.
func New(ctx context.Context, c Config) (*Source, error) {
	if c.Socket == "" {
		c.Socket = os.Getenv(workloadapi.SocketEnv)
	}
	if c.Socket == "" {
		return nil, errors.New("spiffe: no Workload API socket; set identity.socket or SPIFFE_ENDPOINT_SOCKET")
	}
	if err := workloadapi.ValidateAddress(c.Socket); err != nil {
		return nil, fmt.Errorf("spiffe: socket is %q; must be unix:///PATH or tcp://IP:PORT: %w", c.Socket, err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	st, err := newState(c.Log)
	if err != nil {
		return nil, err
	}
	opts := workloadapi.WithClientOptions(
		workloadapi.WithAddr(c.Socket),
		workloadapi.WithDialOptions(grpc.WithStreamInterceptor(st.watch)),
	)
	s := &Source{state: st}
	s.x509, err = workloadapi.NewX509Source(ctx, opts, workloadapi.WithDefaultX509SVIDPicker(pick(c.ID)))
	if err != nil {
		return nil, st.unavailable("get an X.509-SVID from "+c.Socket, err)
	}
	s.jwt, err = workloadapi.NewJWTSource(ctx, opts)
	if err != nil {
		_ = s.x509.Close()
		return nil, st.unavailable("get JWT authorities from "+c.Socket, err)
	}
	if _, err := s.svid(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// pick chooses the SVID of id, the first if id is zero, none (an SVID without
// an ID) if id is not among them.
func pick(id spiffeid.ID) func([]*x509svid.SVID) *x509svid.SVID {
	return func(all []*x509svid.SVID) *x509svid.SVID {
		for _, s := range all {
			if id.IsZero() || s.ID == id {
				return s
			}
		}
		return &x509svid.SVID{}
	}
}

// Close ends the connection. Afterwards every call fails.
func (s *Source) Close() error {
	s.state.drop()
	return errors.Join(s.x509.Close(), s.jwt.Close())
}

// ID is the identity that the Workload API gives this process.
func (s *Source) ID() (spiffeid.ID, error) {
	v, err := s.svid()
	if err != nil {
		return spiffeid.ID{}, err
	}
	return v.ID, nil
}

// Ready reports why no identity can be had now, nil if one can.
func (s *Source) Ready() error {
	_, err := s.svid()
	return err
}

// svid returns the current SVID unless it was redacted or has expired: the
// library goes on serving it in both cases.
func (s *Source) svid() (*x509svid.SVID, error) {
	if err := s.state.redacted(); err != nil {
		return nil, err
	}
	v, err := s.x509.GetX509SVID()
	switch {
	case err != nil:
		return nil, s.state.unavailable("get X.509-SVID", err)
	case v.ID.IsZero() || len(v.Certificates) == 0:
		return nil, fmt.Errorf("spiffe: %w: the Workload API does not give the configured SPIFFE ID", identity.ErrUnavailable)
	case !time.Now().Before(v.Certificates[0].NotAfter):
		return nil, s.state.unavailable("renew X.509-SVID", fmt.Errorf("the last one expired at %s", v.Certificates[0].NotAfter.UTC().Format(time.RFC3339)))
	}
	return v, nil
}

// X509 implements [identity.Source].
func (s *Source) X509(_ context.Context, w *identity.Workload) (*x509svid.SVID, error) {
	v, err := s.svid()
	if err != nil {
		return nil, err
	}
	if err := owns(v.ID, w); err != nil {
		return nil, err
	}
	return v, nil
}

// owns refuses to speak for any workload but the one the API attested.
func owns(id spiffeid.ID, w *identity.Workload) error {
	if w == nil || w.ID.IsZero() {
		return errors.New("spiffe: no workload; attest the caller first")
	}
	if w.ID != id {
		return fmt.Errorf("spiffe: the Workload API gives %s, not %s; register that identity or use the embedded issuer", id, w.ID)
	}
	return nil
}

// Bundle implements [identity.Source].
func (s *Source) Bundle(context.Context) (*x509bundle.Bundle, error) {
	v, err := s.svid()
	if err != nil {
		return nil, err
	}
	b, err := s.x509.GetX509BundleForTrustDomain(v.ID.TrustDomain())
	if err != nil {
		return nil, s.state.unavailable("get X.509 bundle", err)
	}
	return b, nil
}

// JWT implements [identity.Source]. The issuer sets the lifetime, so r.TTL
// has no effect; a token is reused until half of its life has passed, and
// beyond that only while the Workload API cannot be reached.
func (s *Source) JWT(ctx context.Context, r identity.JWTRequest) (identity.JWT, error) {
	switch {
	case r.ClientID != "":
		return identity.JWT{}, errors.New("spiffe: the Workload API signs no client assertions; use clientAuth jwtSVID or jwtSPIFFE, or the embedded issuer")
	case len(r.Claims) > 0:
		return identity.JWT{}, errors.New("spiffe: the Workload API adds no claims; use the embedded issuer")
	case r.Audience == "":
		return identity.JWT{}, errors.New("spiffe: no audience; a JWT is for exactly one recipient")
	}
	v, err := s.svid()
	if err != nil {
		return identity.JWT{}, err
	}
	if err := owns(v.ID, r.Workload); err != nil {
		return identity.JWT{}, err
	}
	k := jwtKey{v.ID, r.Audience}
	old, fresh := s.state.get(k)
	if fresh {
		return old, nil
	}
	// Shared by all who wait: it outlives the first caller.
	ch := s.group.DoChan(k.id.String()+"\x00"+k.audience, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		return s.fetch(ctx, k)
	})
	select {
	case <-ctx.Done():
		return identity.JWT{}, fmt.Errorf("spiffe: get JWT-SVID: %w: %w", identity.ErrUnavailable, ctx.Err())
	case res := <-ch:
		if res.Err == nil {
			return res.Val.(identity.JWT), nil //nolint:forcetypeassert // fetch returns no other
		}
		if status.Code(res.Err) == codes.Unavailable && !old.Token.IsZero() {
			return old, nil
		}
		return identity.JWT{}, res.Err
	}
}

func (s *Source) fetch(ctx context.Context, k jwtKey) (identity.JWT, error) {
	epoch := s.state.now()
	v, err := s.jwt.FetchJWTSVID(ctx, jwtsvid.Params{Audience: k.audience, Subject: k.id})
	if err != nil {
		if status.Code(err) == codes.PermissionDenied {
			s.state.drop()
		}
		return identity.JWT{}, s.state.unavailable("get JWT-SVID", err)
	}
	if v.ID != k.id || len(v.Audience) != 1 || v.Audience[0] != k.audience {
		return identity.JWT{}, fmt.Errorf("spiffe: %w: the Workload API answered with a JWT-SVID for another subject or audience", identity.ErrUnavailable)
	}
	out := identity.JWT{Token: secret.New(v.Marshal()), Expires: v.Expiry}
	out.ID, _ = v.Claims["jti"].(string)
	s.state.put(k, out, epoch)
	return out, nil
}

type jwtKey struct {
	id       spiffeid.ID
	audience string
}

type jwtEntry struct {
	jwt  identity.JWT
	half time.Time // of its life, as seen from here
}

// state is what go-spiffe's sources do not keep: whether the identity was
// withdrawn, why the last attempt failed, and the tokens at hand.
type state struct {
	log *slog.Logger

	mu     sync.Mutex // guards everything below
	denied bool
	last   error
	epoch  int // counts drops: a token fetched before one is not kept after
	jwts   *lru.Cache[jwtKey, jwtEntry]
}

func newState(log *slog.Logger) (*state, error) {
	c, err := lru.New[jwtKey, jwtEntry](cached)
	if err != nil {
		return nil, fmt.Errorf("spiffe: %w", err)
	}
	return &state{log: log, jwts: c}, nil
}

// watch is a gRPC interceptor: the sources swallow their streams' errors.
func (s *state) watch(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	st, err := next(ctx, d, cc, method, opts...)
	if err != nil {
		s.note(ctx, err)
		return nil, err
	}
	return &watched{ClientStream: st, state: s}, nil
}

type watched struct {
	grpc.ClientStream
	state *state
}

// RecvMsg implements grpc.ClientStream.
func (w *watched) RecvMsg(m any) error {
	err := w.ClientStream.RecvMsg(m)
	w.state.note(w.Context(), err)
	return err
}

// note takes in the outcome of a read. SPIFFE Workload API section 4.2: after
// PermissionDenied the client should stop using what it had.
func (s *state) note(ctx context.Context, err error) {
	if status.Code(err) == codes.Canceled {
		return
	}
	s.mu.Lock()
	was := s.denied
	s.last = err
	switch {
	case err == nil:
		s.denied = false
	case status.Code(err) == codes.PermissionDenied:
		s.denied = true
		s.jwts.Purge()
		s.epoch++
	}
	is := s.denied
	s.mu.Unlock()
	if was != is {
		s.log.WarnContext(ctx, "workload identity changed", "withdrawn", is)
	}
}

func (s *state) redacted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.denied {
		return nil
	}
	return fmt.Errorf("spiffe: %w: the Workload API gives this process no identity; check its registration entry", identity.ErrUnavailable)
}

// unavailable wraps err with what the streams last saw, which says more than a
// deadline does.
func (s *state) unavailable(doing string, err error) error {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last != nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("spiffe: %s: %w: %w (last: %w)", doing, identity.ErrUnavailable, err, last)
	}
	return fmt.Errorf("spiffe: %s: %w: %w", doing, identity.ErrUnavailable, err)
}

// get returns the token at hand, zero if it is all but expired, and whether
// its first half still runs.
func (s *state) get(k jwtKey) (identity.JWT, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.jwts.Get(k)
	now := time.Now()
	if !ok || !now.Add(margin).Before(e.jwt.Expires) {
		return identity.JWT{}, false
	}
	return e.jwt, now.Before(e.half)
}

func (s *state) put(k jwtKey, j identity.JWT, epoch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch {
		now := time.Now()
		s.jwts.Add(k, jwtEntry{j, now.Add(j.Expires.Sub(now) / 2)})
	}
}

func (s *state) now() int { s.mu.Lock(); defer s.mu.Unlock(); return s.epoch }

// drop forgets every token.
func (s *state) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwts.Purge()
	s.epoch++
}
