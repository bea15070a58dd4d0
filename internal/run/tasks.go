package run

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/secret"
)

// usedTokens is the file of the state folder, which is hidden from agents, that
// remembers the humans' tokens of all runs: one token opens one task, not one
// in each.
const usedTokens = "used-human-tokens"

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
	t, err := p.Tasks().Open(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("open the task: %w", err)
	}
	return t, nil
}

// readSecretFile reads a small file that holds one secret.
func readSecretFile(name string) (string, error) {
	const limit = 64 << 10
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, limit+1)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil {
			break
		}
	}
	if n > limit {
		return "", fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return string(b[:n]), nil
}
