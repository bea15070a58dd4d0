package clienttest

import (
	"context"
	"net"

	"google.golang.org/grpc"
)

// dial sends connections to the replica of the moment.
func (s *Sidecar) dial() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		s.mu.Lock()
		target := s.target
		s.mu.Unlock()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stop = func() { _ = c.Close() }
		return c, nil
	})}
}

// Move breaks the connection; the next one is to another replica.
func (s *Sidecar) Move(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = target
	if s.stop != nil {
		s.stop()
	}
}
