package dataplane

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/upstream"
)

// revokeTimeout bounds telling issuers of a revocation.
const revokeTimeout = 10 * time.Second

func (p *Plane) openTasks() error {
	v, err := task.NewVerifier(task.VerifierConfig{
		Issuers: p.spec.Humans, Client: p.humanClient,
		// Shared by all runs: one token opens one task, not one in each.
		Replays: task.NewFileReplays(p.cfg.UsedTokens, 0),
	})
	if err != nil {
		return err
	}
	p.tasks, err = task.NewStore(task.StoreConfig{Verifier: v, MaxTTL: p.spec.Tasks.MaxTTL.D(), OnEvent: p.Event})
	return err
}

// humanClient reaches a human issuer as minting reaches its own: through the
// dialer that checks addresses, and the parent proxy where there is one.
func (p *Plane) humanClient(h v1alpha1.HumanIssuer) (*http.Client, error) {
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

func (p *Plane) openAgentTask(ctx context.Context, c identity.Caller, purpose string, ttl time.Duration) (*identity.Task, error) {
	return p.tasks.Open(ctx, task.OpenRequest{Workload: c.Workload, RunID: c.Workload.RunID, Purpose: purpose, OpenedBy: task.ByAgent, TTL: ttl})
}

// closeAgentTask closes a task that an agent opened; others' are not its own.
func (p *Plane) closeAgentTask(id string, w *identity.Workload) error {
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
func (p *Plane) endTask(t *identity.Task, reason string, vault *guard.Vault) {
	p.pipe.EndTask(t.ID)
	p.upstream.ForgetIdentity(upstream.Who{Workload: p.cfg.Workload, Task: t})
	vault.Drop(t.WorkloadID.String(), t.RunID, t.ID)
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	defer cancel()
	n := p.cache.RevokeWhere(ctx, func(r minting.Request, _ minting.Credential) bool { return r.TaskID == t.ID })
	p.cfg.Log.Info("task ended", "task", t.ID, "reason", reason, "credentials_revoked", len(n))
}

// revokeHandle ends one credential: no new use, no running use, no acceptance.
func (p *Plane) revokeHandle(handle string) {
	p.Revoke(func(_ minting.Request, c minting.Credential) bool { return c.Handle == handle })
}

// Revoke ends the credentials that where chooses: no new use, no running use,
// no acceptance by the issuer.
func (p *Plane) Revoke(where func(minting.Request, minting.Credential) bool) []minting.Revocation {
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

// EndRun cuts every exchange of the workload's run.
func (p *Plane) EndRun() { p.pipe.EndRun(p.cfg.Workload.RunID) }
