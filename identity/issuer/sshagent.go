package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// SSHAgent is a [KeySource] whose keys stay in an ssh-agent. They survive
// this process, so that what others learned of them stays true.
//
// Every key of type ecdsa-sha2-nistp256 with the right comment is published;
// the first one that the agent lists signs. To rotate: add a second key with
// the same comment, wait until the verifiers have read it (PublishAhead, or
// longer for static hosting), then remove the first from the agent.
//
// The agent's socket must be out of the reach of what Attaché confines.
type SSHAgent struct {
	// Socket is the path of the agent's socket, as in SSH_AUTH_SOCK.
	Socket string
	// Comment selects keys; empty: all.
	Comment string
}

// agentTimeout bounds one exchange with the agent. An agent that asks its
// user for consent at each signature is of no use here.
const agentTimeout = 5 * time.Second

// Next implements [KeySource]: the first matching key.
func (a SSHAgent) Next(ctx context.Context, _ crypto.Signer) (crypto.Signer, error) {
	keys, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("ssh-agent at %s holds no ECDSA P-256 key with comment %q; add one: ssh-keygen -t ecdsa -b 256, ssh-add", a.Socket, a.Comment)
	}
	return keys[0], nil
}

// Held implements [KeySource]: every matching key.
func (a SSHAgent) Held(ctx context.Context) ([]*ecdsa.PublicKey, error) {
	keys, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	var out []*ecdsa.PublicKey
	for _, k := range keys {
		out = append(out, k.pub)
	}
	return out, nil
}

func (a SSHAgent) list(ctx context.Context) ([]*agentKey, error) {
	var out []*agentKey
	err := a.talk(ctx, func(c agent.ExtendedAgent) error {
		keys, err := c.List()
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.Format != ssh.KeyAlgoECDSA256 || a.Comment != "" && k.Comment != a.Comment {
				continue
			}
			pk, err := ssh.ParsePublicKey(k.Blob)
			if err != nil {
				return fmt.Errorf("key %q: %w", k.Comment, err)
			}
			cp, ok := pk.(ssh.CryptoPublicKey)
			if !ok {
				continue
			}
			if pub, ok := cp.CryptoPublicKey().(*ecdsa.PublicKey); ok {
				out = append(out, &agentKey{agent: a, pub: pub, ssh: pk})
			}
		}
		return nil
	})
	return out, err
}

// talk opens a connection for one exchange: agents restart, and one socket a
// signature is cheap.
func (a SSHAgent) talk(ctx context.Context, f func(agent.ExtendedAgent) error) error {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", a.Socket)
	if err != nil {
		return fmt.Errorf("reach ssh-agent: %w; start it, or correct identity.sshAgent", err)
	}
	defer func() { _ = c.Close() }()
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	if err := f(agent.NewClient(c)); err != nil {
		return fmt.Errorf("ssh-agent at %s: %w", a.Socket, err)
	}
	return nil
}

// agentKey signs whole messages: the agent protocol hashes for itself.
type agentKey struct {
	agent SSHAgent
	pub   *ecdsa.PublicKey
	ssh   ssh.PublicKey
}

var _ crypto.MessageSigner = (*agentKey)(nil)

// Public implements crypto.Signer.
func (k *agentKey) Public() crypto.PublicKey { return k.pub }

// Sign implements crypto.Signer; an agent cannot sign a bare digest.
func (k *agentKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("ssh-agent signs messages, not digests; use SignMessage")
}

// SignMessage implements crypto.MessageSigner. The signature is checked, for
// an answer of the wrong key would pass on as ours.
func (k *agentKey) SignMessage(_ io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("hash %v; ecdsa-sha2-nistp256 signs SHA-256 only", opts.HashFunc())
	}
	var sig *ssh.Signature
	// crypto.Signer carries no context; talk has a deadline of its own.
	err := k.agent.talk(context.Background(), func(c agent.ExtendedAgent) (err error) {
		sig, err = c.Sign(k.ssh, msg)
		return err
	})
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int } // RFC 5656 section 3.1.2
	if sig.Format != ssh.KeyAlgoECDSA256 || ssh.Unmarshal(sig.Blob, &rs) != nil {
		return nil, errNoSignature
	}
	der, err := marshalDER(rs.R, rs.S)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(msg); !ecdsa.VerifyASN1(k.pub, sum[:], der) {
		return nil, errors.New("ssh-agent returned a signature of another key")
	}
	return der, nil
}
