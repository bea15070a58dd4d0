package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// podCertificate: pods get a certificate by their kubelet, and no token.
func podCertificate(ctx context.Context, r *run) (err error) {
	set := func(ctx context.Context, to string) error {
		_, err := r.node.Kubectl(ctx, "", "patch", "attacheconfig", "default", "--type=merge", "-p", `{"spec":{"cluster":{"injection":{"identity":`+to+`}}}}`)
		return err
	}
	if err := set(ctx, `"podCertificate"`); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := within(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, set(ctx, "null"))
	}()
	a := looping("certified", reportsHost)
	if err := until(ctx, "the webhook knows the setting", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, a.pod(nsAgents), "create", "--dry-run=server", "-f", "-", "-o", "jsonpath={.spec.volumes}")
		return err == nil && strings.Contains(out, "attache.dev/pod-svid") && !strings.Contains(out, `"audience":"attache.dev"`), fmt.Sprint(out, err)
	}); err != nil {
		return err
	}
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app="+a.name)
	if err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsAgents, a.name))
	}
	// Its call has a credential that was minted for the certificate's identity.
	if err := r.world.verified(ctx, reportsHost, "/v1/"+a.name, spiffeID(nsAgents)); err != nil {
		return err
	}
	out, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "get", "podcertificaterequests", "-o",
		`jsonpath={range .items[?(@.spec.podName=="`+p.Name+`")]}{.spec.signerName}|{.status.conditions[0].type}{"\n"}{end}`)
	if err != nil {
		return err
	}
	if !strings.Contains(out, "attache.dev/pod-svid|Issued") {
		return fmt.Errorf("no request of the kubelet's was answered: %q", out)
	}
	return nil
}
