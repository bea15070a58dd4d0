// Package apikey reads a vendor's static key from the one place it is kept: a
// file, a variable of Attaché's own environment, or a KV secret of
// HashiCorp Vault or OpenBao.
//
// Such a key is its own root: it is not derived for a request, its scope is
// whatever the vendor gave it, and revoking it is the vendor's business.
package apikey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// maxKey bounds what is read from a file or variable.
const maxKey = 64 << 10

// source reads the key. expires is zero where the place says no end.
type source interface {
	read(ctx context.Context, e minting.Evidence) (key string, expires time.Time, err error)
}

// Minter hands out the key of one CredentialProvider. It is safe for
// concurrent use.
type Minter struct {
	name string
	src  source
	deps minting.Deps
	end  string // endpoint, for the circuit breaker
}

// New returns the Minter of the provider called name. A variable is taken from
// the environment now (see [Environment]); files and Vault are read by each
// Mint, so that a changed key is used as soon as a cache lets go of the old.
func New(name string, spec v1alpha1.APIKey, d minting.Deps) (*Minter, error) {
	d = d.WithDefaults()
	m := &Minter{name: name, deps: d}
	n := 0
	if spec.File != "" {
		n++
		m.src, m.end = &file{path: spec.File, name: name, deps: d}, "file:"+spec.File
	}
	if spec.Env != "" {
		n++
		take := d.Env
		if take == nil {
			take = new(Environment).Take
		}
		v, ok := take(spec.Env)
		if !ok {
			return nil, fmt.Errorf("provider %s: apiKey.env: %s is not set in Attaché's environment", name, spec.Env)
		}
		m.src, m.end = variable{spec.Env, v}, "env:"+spec.Env
	}
	if spec.Vault != nil {
		n++
		v, err := newVault(name, *spec.Vault, d)
		if err != nil {
			return nil, fmt.Errorf("provider %s: apiKey.vault.%w", name, err)
		}
		m.src, m.end = v, v.spec.Address
	}
	if spec.SecretRef != nil {
		n++
		if d.Root == nil {
			return nil, fmt.Errorf("provider %s: apiKey.secretRef: only the broker of a cluster reads Secrets", name)
		}
		m.src, m.end = root{*spec.SecretRef, d}, "secret:"+spec.SecretRef.Name
	}
	if n != 1 {
		return nil, fmt.Errorf("provider %s: apiKey: names %d places; must be exactly one of file, env, vault, secretRef", name, n)
	}
	return m, nil
}

// Endpoint names where the key comes from, for the circuit breaker.
func (m *Minter) Endpoint() string { return m.end }

// Mint implements [minting.Minter].
func (m *Minter) Mint(ctx context.Context, _ minting.Request, e minting.Evidence) (minting.Credential, error) {
	if err := ctx.Err(); err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w: %w", m.name, minting.ErrUnavailable, err)
	}
	key, expires, err := m.src.read(ctx, e)
	if err == nil {
		key = strings.TrimSpace(key)
		err = minting.CheckSecret(key)
	}
	if err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w", m.name, err)
	}
	return minting.Credential{
		Handle: minting.NewHandle(), Kind: minting.KindAPIKey, Provider: m.name,
		Secret: secret.New(key), Issued: m.deps.Now(), Expires: expires,
	}, nil
}

// file is a key in a file.
type file struct {
	path, name string
	deps       minting.Deps
	warn       sync.Once
}

func (f *file) read(ctx context.Context, _ minting.Evidence) (string, time.Time, error) {
	// Non-blocking: a pipe put in the file's place must not hold us up.
	fd, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: read key file: %w", minting.ErrUnavailable, err)
	}
	defer fd.Close()
	st, err := fd.Stat()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: read key file: %w", minting.ErrUnavailable, err)
	}
	if !st.Mode().IsRegular() { // a pipe would block, a directory is a mistake
		return "", time.Time{}, fmt.Errorf("%w: key file %s is not a regular file", minting.ErrUnavailable, f.path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		f.warn.Do(func() {
			f.deps.Logger.WarnContext(ctx, "key file is readable by others; chmod 600 it", "provider", f.name, "file", f.path, "mode", st.Mode().Perm().String())
		})
	}
	b, err := io.ReadAll(io.LimitReader(fd, maxKey+1))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: read key file: %w", minting.ErrUnavailable, err)
	}
	if len(b) > maxKey {
		return "", time.Time{}, fmt.Errorf("%w: key file %s is larger than %d bytes", minting.ErrUnavailable, f.path, maxKey)
	}
	return string(b), time.Time{}, nil
}

// root is a key in a Secret of the cluster.
type root struct {
	ref  v1alpha1.SecretRef
	deps minting.Deps
}

func (r root) read(ctx context.Context, _ minting.Evidence) (string, time.Time, error) {
	v, err := r.deps.Root(ctx, r.ref.Name, r.ref.Key)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read apiKey.secretRef: %w", err)
	}
	return v.Reveal(), time.Time{}, nil
}

// variable is a key that was in the environment.
type variable struct {
	name string
	key  secret.Value
}

func (v variable) read(context.Context, minting.Evidence) (string, time.Time, error) {
	if v.key.IsZero() {
		return "", time.Time{}, fmt.Errorf("%w: variable %s is empty", minting.ErrUnavailable, v.name)
	}
	return v.key.Reveal(), time.Time{}, nil
}

// Environment takes variables out of this process's environment, once, and
// remembers them for providers that are made anew after a reload. The zero
// Environment is ready and safe for concurrent use.
//
// Wiping a variable keeps it from children. The kernel's copy of the initial
// environment, /proc/self/environ, stays as it was: who may read another
// process's copy is a matter of ptrace access, so a program that takes keys
// from its environment must be undumpable (PR_SET_DUMPABLE 0) before it starts
// a child.
type Environment struct {
	mu    sync.Mutex // guards taken
	taken map[string]secret.Value
}

// TakeEnv wipes the named variables from the environment, before anything else
// is started, and returns the Environment that knows them.
func TakeEnv(names ...string) *Environment {
	e := &Environment{}
	for _, n := range names {
		e.Take(n)
	}
	return e
}

// Take returns the variable and whether it was ever set. It fits
// [minting.Deps].Env.
func (e *Environment) Take(name string) (secret.Value, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := os.LookupEnv(name); ok {
		if e.taken == nil {
			e.taken = map[string]secret.Value{}
		}
		e.taken[name] = secret.New(s)
		if err := os.Unsetenv(name); err != nil && !errors.Is(err, os.ErrInvalid) {
			return secret.Value{}, false // it would reach the child: use none of it
		}
	}
	v, ok := e.taken[name]
	return v, ok
}
