package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/attache-dev/attache/test/cluster/node"
)

// relayKey: with inject.by: relay a vendor's key goes on the wire, and is
// nowhere in the pod, its sidecar's memory included.
func relayKey(ctx context.Context, r *run) error {
	const path = "/v1/relay-key"
	documents := fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: relayed}
spec:
  allowedNamespaces: {names: [%[1]s]}
  destinations: [{host: %[2]s, addresses: ["%[3]s"], caBundle: %[4]q}]
  apiKey: {secretRef: {name: notes-key, key: key}}
  inject: {by: relay, as: header, name: X-Api-Key}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: relayed, namespace: %[1]s}
spec:
  rules:
  - {name: relayed, hosts: [%[2]s], methods: [GET], paths: [%[5]q], action: allow, credential: {provider: relayed}}
`, nsAgents, notesHost, node.Address, r.world.ca.PEM(), path)
	if err := r.apply(ctx, documents); err != nil {
		return err
	}
	defer r.remove(ctx, nsAgents, "accesspolicy/relayed")
	if _, err := r.condition(ctx, nsAgents, "accesspolicy/relayed", "ResolvedRefs", "True"); err != nil {
		return err
	}
	if err := r.apply(ctx, looping("relay-key", notesHost).deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=relay-key")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, notesHost, path, "key"); err != nil {
		return err
	}
	for _, container := range []string{"app", "attache-sidecar"} {
		files, err := r.node.ContainerFiles(ctx, containerID(p, container))
		if err != nil {
			return err
		}
		known := false
		for place, text := range files {
			known = known || strings.Contains(text, path)
			if strings.Contains(text, r.world.apiKey) {
				return fmt.Errorf("%s of container %s holds the key", place, container)
			}
		}
		if !known {
			return errors.New("the agent's own path is not found in its memory: the check is broken")
		}
	}
	return nil
}
