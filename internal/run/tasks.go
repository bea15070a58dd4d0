package run

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/upstream"
)

// revokeTimeout bounds telling issuers of a revocation.
const revokeTimeout = 10 * time.Second

// usedTokens is the file of the state folder, which is hidden from agents, that
// remembers the humans' tokens of all runs.
const usedTokens = "used-human-tokens"

func (p *plane) openTasks() error {
	v, err := task.NewVerifier(task.VerifierConfig{
		Issuers: p.spec.Humans, Client: p.humanClient,
		// Shared by all runs: one token opens one task, not one in each.
		Replays: task.NewFileReplays(filepath.Join(p.o.State, usedTokens), 0),
	})
	if err != nil {
		return err
	}
	p.tasks, err = task.NewStore(task.StoreConfig{Verifier: v, MaxTTL: p.spec.Tasks.MaxTTL.D(), OnEvent: p.event})
	return err
}

// humanClient reaches a human issuer as minting reaches its own: through the
// dialer that checks addresses, and the parent proxy where there is one.
func (p *plane) humanClient(h v1alpha1.HumanIssuer) (*http.Client, error) {
	pem := []byte(h.CABundle)
	if h.CAFile != "" {
		b, err := os.ReadFile(h.CAFile)
		if err != nil {
			return nil, fmt.Errorf("humans: issuer %s: caFile: %w", h.Issuer, err)
		}
		pem = append(append(pem, '\n'), b...)
	}
	return p.upstream.Client(h.Addresses, pem), nil
}

// openLauncherTask opens the task that --task names, for the human whose token
// stands in the file.
func (p *plane) openLauncherTask(ctx context.Context) (*identity.Task, error) {
	if p.o.Task == "" {
		return nil, nil
	}
	r := task.OpenRequest{Workload: p.workload, RunID: p.workload.RunID, Purpose: p.o.Task, OpenedBy: task.ByLauncher, TTL: p.o.TaskTTL}
	if p.o.HumanTokenFile != "" {
		text, err := readSecretFile(p.o.HumanTokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the human's token: %w", err)
		}
		// Nothing must not become a task without a human.
		if text = strings.TrimSpace(text); text == "" {
			return nil, fmt.Errorf("read the human's token: %s is empty", p.o.HumanTokenFile)
		}
		r.HumanToken = secret.New(text)
	}
	t, err := p.tasks.Open(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("open the task: %w", err)
	}
	return t, nil
}

func (p *plane) openAgentTask(ctx context.Context, c identity.Caller, purpose string, ttl time.Duration) (*identity.Task, error) {
	return p.tasks.Open(ctx, task.OpenRequest{Workload: c.Workload, RunID: c.Workload.RunID, Purpose: purpose, OpenedBy: task.ByAgent, TTL: ttl})
}

// closeAgentTask closes a task that an agent opened; others' are not its own.
func (p *plane) closeAgentTask(id string, w *identity.Workload) error {
	t, err := p.tasks.Lookup(id, w)
	if err != nil {
		return err
	}
	if t.OpenedBy != task.ByAgent {
		return &task.Error{Code: task.CodeForbidden, Text: "the task was not opened by the agent"}
	}
	return p.tasks.Close(id, "closed by the agent")
}

// endTask follows a task's end: first nothing new can use it, then what runs
// is cut, then issuers are told.
func (p *plane) endTask(t *identity.Task, reason string, vault *guard.Vault) {
	p.pipe.EndTask(t.ID)
	p.upstream.ForgetIdentity(upstream.Who{Workload: p.workload, Task: t})
	vault.Drop(t.WorkloadID.String(), t.RunID, t.ID)
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	defer cancel()
	n := p.cache.RevokeWhere(ctx, func(r minting.Request, _ minting.Credential) bool { return r.TaskID == t.ID })
	p.o.Log.Info("task ended", "task", t.ID, "reason", reason, "credentials_revoked", len(n))
}

// revokeHandle ends one credential: no new use, no running use, no acceptance.
func (p *plane) revokeHandle(handle string) {
	p.revokeWhere(func(_ minting.Request, c minting.Credential) bool { return c.Handle == handle })
}

func (p *plane) revokeWhere(where func(minting.Request, minting.Credential) bool) []minting.Revocation {
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	defer cancel()
	return p.cache.RevokeWhere(ctx, func(r minting.Request, c minting.Credential) bool {
		if !where(r, c) {
			return false
		}
		// Running calls are cut now, not after the issuer has answered.
		go p.pipe.EndCredential(c.Handle)
		return true
	})
}
