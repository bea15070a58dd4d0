package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attache-dev/attache/test/cluster/node"
)

func denied(ctx context.Context, r *run) error {
	script := `curl -sS -m 20 -X DELETE -w ' status=%{http_code}' ` + at(reportsHost, "/v1/denied") + `; curl -sS -m 20 -w ' status=%{http_code}' ` + at(evilHost, "/v1/denied") + `; exit 0`
	a := app{name: "denied", image: imageClients, command: []string{"sh", "-c", script}}
	if err := r.apply(ctx, a.job(nsAgents)); err != nil {
		return err
	}
	if err := r.jobDone(ctx, nsAgents, a.name); err != nil {
		return err
	}
	log := r.appLog(ctx, nsAgents, a.name)
	if strings.Count(log, "status=403") < 1 {
		return fmt.Errorf("the agent was not told: %s", log)
	}
	for _, host := range []string{reportsHost, evilHost} {
		if calls := r.world.seen(host, "/v1/denied"); len(calls) > 0 {
			return fmt.Errorf("%d calls arrived at %s", len(calls), host)
		}
	}
	return nil
}

// condition waits for a condition of an object, and returns its message.
func (r *run) condition(ctx context.Context, ns, object, kind, want string) (string, error) {
	message := ""
	err := until(ctx, fmt.Sprintf("%s has %s=%s", object, kind, want), func() (bool, string) {
		out, err := r.node.Kubectl(ctx, "", "-n", ns, "get", object, "-o",
			fmt.Sprintf(`jsonpath={range .status.conditions[?(@.type=="%s")]}{.status}|{.observedGeneration}|{.reason}: {.message}{end}|{.metadata.generation}`, kind))
		if err != nil {
			return false, err.Error()
		}
		parts := strings.Split(out, "|")
		if len(parts) < 4 {
			return false, "it has no such condition"
		}
		message = parts[2]
		return parts[0] == want && parts[1] == parts[len(parts)-1], out
	})
	return message, err
}

// confusedDeputy: who may write policies in a namespace cannot make a
// provider's credential go where the provider does not send it.
func confusedDeputy(ctx context.Context, r *run) error {
	policy := fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: elsewhere, namespace: %s}
spec:
  destinations: [{host: %s, addresses: ["%s"], caBundle: %q}]
  rules:
  - {name: steal, hosts: [%s], paths: ["/v1/elsewhere"], action: allow, credential: {provider: reports}}
`, nsAgents, evilHost, node.Address, r.world.ca.PEM(), evilHost)
	if err := r.apply(ctx, policy); err != nil {
		// A refusal at admission that says why is as good as a condition.
		return deniedWith(err, "reports", evilHost)
	}
	defer r.remove(ctx, nsAgents, "accesspolicy/elsewhere")
	message, err := r.condition(ctx, nsAgents, "accesspolicy/elsewhere", "ResolvedRefs", "False")
	if err != nil {
		return err
	}
	if !strings.Contains(message, evilHost) && !strings.Contains(message, "reports") {
		return fmt.Errorf("the condition does not say why: %s", message)
	}
	a := app{name: "elsewhere", image: imageClients, command: []string{"sh", "-c", "curl -sS -m 20 " + at(evilHost, "/v1/elsewhere") + "; exit 0"}}
	if err := r.apply(ctx, a.job(nsAgents)); err != nil {
		return err
	}
	if err := r.jobDone(ctx, nsAgents, a.name); err != nil {
		return err
	}
	if calls := r.world.seen(evilHost, "/v1/elsewhere"); len(calls) > 0 {
		return fmt.Errorf("%d calls arrived, with headers %v", len(calls), calls[0].Headers)
	}
	return nil
}

func (r *run) remove(ctx context.Context, ns, object string) {
	ctx, cancel := within(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	_, _ = r.node.Kubectl(ctx, "", "-n", ns, "delete", object, "--ignore-not-found", "--wait=false")
}

// badPolicy: a mistake that the schema cannot see.
func badPolicy(ctx context.Context, r *run) error {
	good := policyOf("bad", "/v1/bad-policy/**", "true")
	if err := r.apply(ctx, good); err != nil {
		return err
	}
	defer r.remove(ctx, nsAgents, "accesspolicy/bad")
	if _, err := r.condition(ctx, nsAgents, "accesspolicy/bad", "Accepted", "True"); err != nil {
		return err
	}
	a := app{name: "bad-policy", args: []string{"loop", "300ms", at(openHost, "/v1/bad-policy/x")}}
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsAgents, "app=bad-policy"); err != nil {
		return err
	}
	if err := r.world.verified(ctx, openHost, "/v1/bad-policy", "somebody"); err != nil {
		return err
	}
	err := r.apply(ctx, policyOf("bad", "/v1/bad-policy/**", "request.nosuchfield == 1"))
	if err == nil {
		message, err := r.condition(ctx, nsAgents, "accesspolicy/bad", "Accepted", "False")
		if err != nil {
			return err
		}
		if !strings.Contains(message, "nosuchfield") {
			return fmt.Errorf("the status does not say what is wrong: %s", message)
		}
	} else if err := deniedWith(err, "nosuchfield"); err != nil {
		return err
	}
	before := len(r.world.seen(openHost, "/v1/bad-policy"))
	return until(ctx, "calls go on under the old policy", func() (bool, string) {
		return len(r.world.seen(openHost, "/v1/bad-policy")) > before+3, "no further call arrived"
	})
}

func policyOf(name, path, when string) string {
	return fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: %s, namespace: %s}
spec:
  rules:
  - {name: open, hosts: [%s], paths: [%q], when: %q, action: allow}
`, name, nsAgents, openHost, path, when)
}

// livePolicy adds a rule while a stream runs: the stream goes on, and the rule
// holds, in the same pod.
func livePolicy(ctx context.Context, r *run) error {
	stream := app{name: "live", args: []string{"stream", at(openHost, "/v1/stream")}}
	if err := r.apply(ctx, stream.deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=live")
	if err != nil {
		return err
	}
	loop := looping("live-denied", openHost)
	if err := r.apply(ctx, loop.deployment(nsAgents)); err != nil {
		return err
	}
	if err := r.world.verified(ctx, openHost, "/v1/live-denied", "somebody"); err != nil {
		return err
	}
	second, err := r.pod(ctx, nsAgents, "app=live-denied")
	if err != nil {
		return err
	}
	begun := strings.Count(must(r.logs(ctx, nsAgents, p.Name, "app")), "event")
	deny := fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: live, namespace: %s}
spec:
  rules:
  - {name: closed, hosts: [%s], paths: ["/v1/live-denied"], action: deny, reason: closed for the test}
`, nsAgents, openHost)
	if err := r.apply(ctx, deny); err != nil {
		return err
	}
	defer r.remove(ctx, nsAgents, "accesspolicy/live")
	changed := time.Now()
	err = until(ctx, "the new rule holds", func() (bool, string) {
		lines, err := r.lines(ctx, nsAgents, second.Name, "app")
		if err != nil || len(lines) == 0 {
			return false, fmt.Sprint(err)
		}
		last := lines[len(lines)-1]
		return last.Status == 403 && strings.Contains(last.Body, "closed for the test"), fmt.Sprintf("the last answer is %d %s", last.Status, last.Body)
	})
	if err != nil {
		return err
	}
	r.say("      the policy reached the sidecar in %.1f s", time.Since(changed).Seconds())
	if _, err := r.condition(ctx, nsAgents, "accesspolicy/live", "Programmed", "True"); err != nil {
		return err
	}
	now, err := r.pod(ctx, nsAgents, "app=live")
	if err != nil {
		return err
	}
	after := strings.Count(must(r.logs(ctx, nsAgents, p.Name, "app")), "event")
	if now.UID != p.UID || restarts(now, "app") != restarts(p, "app") || after <= begun {
		return fmt.Errorf("the stream did not go on: %d events before, %d after, %d restarts", begun, after, restarts(now, "app"))
	}
	return nil
}

// must drops an error whose value, the empty text, fails the check after it.
func must(text string, err error) string {
	return errors.Join(err, errors.New(text)).Error()
}
