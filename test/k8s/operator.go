package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// control runs the operator's command, as one does on a laptop.
func (r *run) control(ctx context.Context, args ...string) (string, error) {
	return r.node.Run(ctx, "", filepath.Join(r.cli, "attache-control"), args...)
}

func status(ctx context.Context, r *run) error {
	if err := r.apply(ctx, looping("status", reportsHost).deployment(nsAgents)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsAgents, "app=status"); err != nil {
		return err
	}
	out, err := r.control(ctx, "status", "--all")
	if err != nil {
		return err
	}
	for _, want := range []string{nsAgents, nsTransparent, "status-"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("does not tell of %s:\n%s", want, out)
		}
	}
	if strings.Contains(out, nsOutside) {
		return fmt.Errorf("tells of a namespace that is not opted in:\n%s", out)
	}
	return nil
}

// revocation ends what was minted: each sidecar that holds such a credential
// says that it has heard of it, and the next call has a fresh one.
func revocation(ctx context.Context, r *run) error {
	if err := r.apply(ctx, looping("revoked", reportsHost).deployment(nsAgents)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsAgents, "app=revoked"); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/revoked", spiffeID(nsAgents)); err != nil {
		return err
	}
	calls := r.world.seen(reportsHost, "/v1/revoked")
	before := calls[len(calls)-1].Headers.Get("Authorization")
	out, err := r.control(ctx, "revoke", "--provider", "reports", "--reason", "a drill", "--wait", "30s")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	revoked := len(r.world.seen(reportsHost, "/v1/revoked"))
	if err := until(ctx, "a call comes with a credential of after", func() (bool, string) {
		calls := r.world.seen(reportsHost, "/v1/revoked")
		return len(calls) > revoked+1, fmt.Sprintf("%d calls since", len(calls)-revoked)
	}); err != nil {
		return err
	}
	// One call may have been on its way; the ones after it are not.
	for _, c := range r.world.seen(reportsHost, "/v1/revoked")[revoked+1:] {
		if c.Headers.Get("Authorization") == before {
			return errors.New("a call came with the revoked credential, although every sidecar had acknowledged")
		}
	}
	return nil
}

// relay: what the sidecar opens is for its own pod.
func relay(ctx context.Context, r *run) error {
	for _, ns := range []string{nsAgents, nsTransparent} {
		a := app{name: "relay", args: []string{"sleep"}}
		if err := r.apply(ctx, a.deployment(ns)); err != nil {
			return err
		}
		p, err := r.pod(ctx, ns, "app=relay")
		if err != nil {
			return err
		}
		for _, port := range []string{"15001", "15002"} {
			conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(p.Status.PodIP, port))
			if err == nil {
				conn.Close()
				return fmt.Errorf("port %s of a pod in %s is open to others", port, ns)
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("port %s of a pod in %s: got %w, want refused", port, ns, err)
			}
		}
		// The probe's port is: the check above reached the pod.
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(p.Status.PodIP, "15020"))
		if err != nil {
			return fmt.Errorf("the probes' port: %w; the check is broken", err)
		}
		conn.Close()
	}
	return nil
}

// uninjected is the twelfth attack: a pod that no webhook has seen, because
// the webhook's configuration is gone. The guards stand by themselves.
func uninjected(ctx context.Context, r *run) (err error) {
	const object = "mutatingwebhookconfiguration/attache"
	saved, err := r.node.Kubectl(ctx, "", "get", object, "-o", "json")
	if err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "delete", object); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := within(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, e := r.node.Kubectl(ctx, stripServerFields(saved), "create", "-f", "-")
		err = errors.Join(err, e, until(ctx, "pods are injected again", func() (bool, string) {
			out, err := r.node.Kubectl(ctx, looping("probe", reportsHost).pod(nsAgents), "create", "--dry-run=server", "-f", "-", "-o", "jsonpath={.spec.initContainers[*].name}")
			return err == nil && strings.Contains(out, "attache-sidecar"), fmt.Sprint(out, err)
		}))
	}()
	// Replicas of the API server take a moment to forget a webhook.
	return until(ctx, "a pod without a sidecar is refused", func() (bool, string) {
		_, err := r.node.Kubectl(ctx, looping("uninjected", reportsHost).pod(nsAgents), "create", "--dry-run=server", "-f", "-")
		return err != nil && strings.Contains(err.Error(), "attache-pods") && strings.Contains(err.Error(), "attache-sidecar"), fmt.Sprint(err)
	})
}

// policyLife waits for what a sidecar that hears nothing does at last. The
// calls need no credential: those that do end earlier, with the credential's
// own lifetime, since nobody attests who buys a new one.
func policyLife(ctx context.Context, r *run) (err error) {
	if err := r.apply(ctx, looping("alone", openHost).deployment(nsAgents)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsAgents, "app=alone"); err != nil {
		return err
	}
	if err := r.world.verified(ctx, openHost, "/v1/alone", "somebody"); err != nil {
		return err
	}
	if err := r.scaleControl(ctx, 0); err != nil {
		return err
	}
	defer r.restoreControl(ctx, &err)
	gone := time.Now()
	last := 0
	quiet := time.Now()
	if err := until(ctx, "calls end", func() (bool, string) {
		if n := len(r.world.seen(openHost, "/v1/alone")); n != last {
			last, quiet = n, time.Now()
		}
		return time.Since(quiet) > 30*time.Second, "they do not"
	}); err != nil {
		return err
	}
	r.say("      calls went on for %.1f min without a control plane", quiet.Sub(gone).Minutes())
	if quiet.Sub(gone) < 10*time.Minute {
		return errors.New("that is not the lifetime of a policy")
	}
	if err := r.scaleControl(ctx, 2); err != nil {
		return err
	}
	return until(ctx, "calls go on once the control plane is back", func() (bool, string) {
		return len(r.world.seen(openHost, "/v1/alone")) > last+3, r.appLog(ctx, nsAgents, "alone")
	})
}

// stripServerFields makes of an object as it was read one that can be created.
func stripServerFields(text string) string {
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		return text // kubectl will say what is wrong with it
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		for _, field := range []string{"resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"} {
			delete(meta, field)
		}
	}
	b, err := json.Marshal(object)
	if err != nil {
		return text
	}
	return string(b)
}

// template is a line of `attache-control templates list -o json`.
type template struct {
	Name    string `json:"name"`
	Image   string `json:"image"`
	Pods    int    `json:"pods"`
	Retired bool   `json:"retired"`
}

// retire refuses identities to the pods of an image from now on.
func (r *run) retire(ctx context.Context, image string) error {
	out, err := r.control(ctx, "templates", "list", "-o", "json")
	if err != nil {
		return err
	}
	var list []template
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return fmt.Errorf("read the list of templates: %w: %s", err, out)
	}
	retired := 0
	for _, t := range list {
		if t.Image != image || t.Retired {
			continue
		}
		if _, err := r.control(ctx, "templates", "retire", t.Name); err != nil {
			return err
		}
		retired++
	}
	if retired == 0 {
		return fmt.Errorf("no template of %s is listed: %s", image, out)
	}
	return nil
}
