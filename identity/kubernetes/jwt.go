package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

const (
	cachedTokens = 256
	margin       = 10 * time.Second // a token with less life left is not handed out
)

// token is a JWT-SVID at hand.
type token struct {
	jwt  identity.JWT
	half time.Time // of its life
}

// JWT implements [identity.Source]. The control plane gives tokens only for
// audiences of the pod's compiled policy, and few a second: so one is reused
// until half of its life has passed. Client assertions are used once.
func (s *Source) JWT(ctx context.Context, r identity.JWTRequest) (identity.JWT, error) {
	st, err := s.current()
	if err != nil {
		return identity.JWT{}, err
	}
	if err := owns(st, r.Workload); err != nil {
		return identity.JWT{}, err
	}
	if r.Audience == "" {
		return identity.JWT{}, errors.New("pod identity: no audience; a JWT is for exactly one recipient")
	}
	var claims []byte
	if len(r.Claims) > 0 {
		if claims, err = json.Marshal(r.Claims); err != nil {
			return identity.JWT{}, fmt.Errorf("pod identity: encode claims: %w", err)
		}
	}
	req := &controlpb.JWTRequest{Audience: r.Audience, TtlSeconds: int32(min(r.TTL, time.Hour) / time.Second), Claims: claims, ClientId: r.ClientID}
	if r.ClientID != "" {
		t, err := s.fetch(ctx, st, req)
		return t.jwt, err
	}
	return s.shared(ctx, st, req)
}

// shared answers from the tokens at hand, or asks once for all who wait.
func (s *Source) shared(ctx context.Context, st *state, req *controlpb.JWTRequest) (identity.JWT, error) {
	key := fmt.Sprintf("%q %d %q", req.Audience, req.TtlSeconds, req.Claims)
	old, epoch, fresh := s.kept(key)
	if fresh {
		return old, nil
	}
	// It outlives the first of those who wait.
	ch := s.group.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		t, err := s.fetch(ctx, st, req)
		if err == nil {
			s.keep(key, t, epoch)
		}
		return t, err
	})
	select {
	case <-ctx.Done():
		return identity.JWT{}, fmt.Errorf("pod identity: get JWT-SVID: %w: %w", identity.ErrUnavailable, ctx.Err())
	case res := <-ch:
		if res.Err == nil {
			return res.Val.(token).jwt, nil //nolint:forcetypeassert // the function above returns no other
		}
		if !old.Token.IsZero() && !refused(res.Err) {
			return old, nil // still good, and the control plane is not to be reached
		}
		return identity.JWT{}, res.Err
	}
}

// fetch asks the control plane. A connection whose certificate has expired
// since the handshake is replaced once.
func (s *Source) fetch(ctx context.Context, st *state, req *controlpb.JWTRequest) (token, error) {
	for again := false; ; again = true {
		conn, err := s.conn.get()
		if err != nil {
			return token{}, fmt.Errorf("pod identity: %w: %w", identity.ErrUnavailable, err)
		}
		r, err := controlpb.NewIdentityClient(conn).JWT(ctx, req)
		// Closed by another call that came to the same end, or ended by age.
		if c := status.Code(err); !again && (c == codes.Unauthenticated || c == codes.Canceled && ctx.Err() == nil) {
			s.conn.drop(conn)
			continue
		}
		if err != nil {
			err = fmt.Errorf("pod identity: get JWT-SVID for %q: %w", req.Audience, err)
			if !refused(err) {
				err = fmt.Errorf("%w: %w", identity.ErrUnavailable, err)
			}
			return token{}, err
		}
		now := time.Now()
		end := r.GetExpires().AsTime().Add(-st.skew) // on our clock
		if r.GetToken() == "" || !now.Before(end) {
			return token{}, fmt.Errorf("pod identity: %w: the control plane gave no token, or an expired one", identity.ErrUnavailable)
		}
		life := end.Sub(now)
		return token{
			jwt:  identity.JWT{Token: secret.New(r.GetToken()), ID: r.GetId(), Expires: now.Add(life)},
			half: now.Add(life / 2),
		}, nil
	}
}

// kept returns the token at hand, zero if it is all but expired, and whether
// its first half still runs.
func (s *Source) kept(key string) (t identity.JWT, epoch int, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.jwts.Get(key)
	now := time.Now()
	if !ok || !now.Add(margin).Before(e.jwt.Expires) {
		return identity.JWT{}, s.epoch, false
	}
	return e.jwt, s.epoch, now.Before(e.half)
}

func (s *Source) keep(key string, t token, epoch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch {
		s.jwts.Add(key, t)
	}
}

// forget drops all tokens at hand.
func (s *Source) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwts.Purge()
	s.epoch++
}
