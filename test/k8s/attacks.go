package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// attack is something that the editor of a namespace tries; it must fail with
// a message that has the parts.
type attack struct {
	name  string
	try   func(ctx context.Context, r *run, pod string, editor *rest.Config) error
	parts []string
}

// podAttack applies a pod.
func podAttack(name string, a app, parts ...string) attack {
	a.name = name
	return attack{name, func(ctx context.Context, r *run, _ string, editor *rest.Config) error {
		_, err := r.node.KubectlAs(ctx, editor, a.pod(nsAttacks), "apply", "-f", "-")
		return err
	}, parts}
}

// patchAttack changes a running, injected pod.
func patchAttack(name, subresource string, kind types.PatchType, patch string, parts ...string) attack {
	return attack{name, func(ctx context.Context, r *run, pod string, editor *rest.Config) error {
		args := []string{"-n", nsAttacks, "patch", "pod", pod, "--type=" + strings.TrimSuffix(strings.TrimPrefix(string(kind), "application/"), "-patch+json"), "-p", patch}
		if subresource != "" {
			args = append(args, "--subresource="+subresource)
		}
		_, err := r.node.KubectlAs(ctx, editor, "", args...)
		return err
	}, parts}
}

func kubectlAttack(name string, args func(pod string) []string, parts ...string) attack {
	return attack{name, func(ctx context.Context, r *run, pod string, editor *rest.Config) error {
		_, err := r.node.KubectlAs(ctx, editor, "", append([]string{"-n", nsAttacks}, args(pod)...)...)
		return err
	}, parts}
}

// attackList are the attacks of docs/security.md, by their numbers there.
func attackList() []attack {
	own := func(field string) string {
		return `"name":"debug","image":"` + imageClients + `","imagePullPolicy":"Never","command":["sleep","60"],` + field
	}
	return []attack{
		podAttack("mount-token", app{extra: "volumeMounts: [{name: attache-token, mountPath: /steal}]"}, "attache-token"),
		patchAttack("debug-token", "ephemeralcontainers", types.StrategicMergePatchType,
			`{"spec":{"ephemeralContainers":[{`+own(`"volumeMounts":[{"name":"attache-token","mountPath":"/steal"}]`)+`}]}}`, "attache-token"),
		patchAttack("debug-uid", "ephemeralcontainers", types.StrategicMergePatchType,
			`{"spec":{"ephemeralContainers":[{`+own(`"securityContext":{"runAsUser":64200}`)+`}]}}`, "64200"),
		patchAttack("debug-target", "ephemeralcontainers", types.StrategicMergePatchType,
			`{"spec":{"ephemeralContainers":[{`+own(`"targetContainerName":"attache-sidecar"`)+`}]}}`, "attache-sidecar"),
		podAttack("own-audience", app{spec: "volumes: [{name: t, projected: {sources: [{serviceAccountToken: {audience: attache.dev, path: token}}]}}]"}, "attache.dev"),
		kubectlAttack("token-request", func(string) []string { return []string{"create", "token", account, "--audience=attache.dev"} }, "attache.dev"),
		podAttack("sidecar-uid", app{user: "{runAsUser: 64200}"}, "64200"),
		podAttack("net-admin", app{user: "{capabilities: {add: [NET_ADMIN]}}"}, "NET_ADMIN"),
		podAttack("privileged", app{user: "{privileged: true}"}, "privileged"),
		podAttack("ptrace", app{user: "{capabilities: {add: [SYS_PTRACE]}}"}, "SYS_PTRACE"),
		podAttack("host-pid", app{spec: "hostPID: true"}, "hostPID"),
		podAttack("share-processes", app{spec: "shareProcessNamespace: true"}, "shareProcessNamespace"),
		kubectlAttack("exec", func(pod string) []string {
			return []string{"exec", pod, "-c", "attache-sidecar", "--", "/attache-sidecar", "version"}
		}, "attache-sidecar"),
		podAttack("look-alike", app{init: fmt.Sprintf("{name: attache-sidecar, image: %q, imagePullPolicy: Never, restartPolicy: Always, args: [sleep]}", imageAgent)}, "attache-sidecar"),
		patchAttack("swap-image", "", types.JSONPatchType,
			`[{"op":"replace","path":"/spec/initContainers/0/image","value":"`+imageAgent+`"}]`, "attache-sidecar"),
		patchAttack("starve", "resize", types.StrategicMergePatchType,
			`{"spec":{"initContainers":[{"name":"attache-sidecar","resources":{"requests":{"cpu":"1m"},"limits":{"cpu":"1m"}}}]}}`, "attache-sidecar"),
		{"remove-label", func(ctx context.Context, r *run, _ string, _ *rest.Config) error {
			// Not the editor's right; of those who may change namespaces.
			operator, err := r.node.User("tenant-operator", "tenant-operators")
			if err != nil {
				return err
			}
			_, err = r.node.KubectlAs(ctx, operator, "", "label", "namespace", nsAttacks, labelInject+"-")
			return err
		}, []string{labelInject}},
		podAttack("opt-out", app{labels: `, "attache.dev/inject": "false"`}, labelInject),
	}
}

// attacks tries each as an editor of the namespace.
func attacks(ctx context.Context, r *run) error {
	rights := fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mallory, namespace: %s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: mallory}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tenant-operators}
rules:
- {apiGroups: [""], resources: [namespaces], verbs: [get, list, update, patch]}
- {apiGroups: [""], resources: [pods/resize, pods/ephemeralcontainers], verbs: [get, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tenant-operators}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tenant-operators}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: tenant-operators}]
`, nsAttacks)
	if err := r.apply(ctx, rights); err != nil {
		return err
	}
	editor, err := r.node.User("mallory", "tenant-operators")
	if err != nil {
		return err
	}
	if err := r.apply(ctx, looping("victim", reportsHost).deployment(nsAttacks)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAttacks, "app=victim")
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range attackList() {
		refusal := a.try(ctx, r, p.Name, editor)
		err := deniedWith(refusal, a.parts...)
		// A right that is missing would prove nothing about the guards.
		if err == nil && strings.Contains(refusal.Error(), `is forbidden: User "`) {
			err = fmt.Errorf("the attacker lacks a right, so nothing is proven: %w", refusal)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	errs = append(errs, r.harmless(ctx, p.Name, editor))
	return errors.Join(errs...)
}

// harmless changes must pass: guards that refuse everything guard nothing.
func (r *run) harmless(ctx context.Context, pod string, editor *rest.Config) error {
	_, err := r.node.KubectlAs(ctx, editor, "", "-n", nsAttacks, "label", "pod", pod, "colour=blue", "--overwrite")
	if err != nil {
		return fmt.Errorf("harmless change: %w", err)
	}
	_, err = r.node.KubectlAs(ctx, editor, "", "-n", nsAttacks, "exec", pod, "-c", "app", "--", "/agent", "get")
	if err != nil {
		return fmt.Errorf("exec into the app: %w", err)
	}
	_, err = r.node.KubectlAs(ctx, editor, "", "-n", nsAttacks, "patch", "pod", pod, "--subresource=ephemeralcontainers", "--type=strategic", "-p",
		`{"spec":{"ephemeralContainers":[{"name":"debug-app","image":"`+imageClients+`","imagePullPolicy":"Never","command":["sleep","5"],"targetContainerName":"app"}]}}`)
	if err != nil {
		return fmt.Errorf("debug the app: %w", err)
	}
	return nil
}

func hostNetwork(ctx context.Context, r *run) error {
	if err := r.refused(ctx, app{name: "host-network", args: []string{"sleep"}, spec: "hostNetwork: true"}.pod(nsAgents), "hostNetwork"); err != nil {
		return err
	}
	a := app{name: "host-network", args: []string{"sleep"}, spec: "hostNetwork: true"}
	if err := r.apply(ctx, a.pod(nsOutside)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsOutside, "app=host-network")
	if err != nil {
		return err
	}
	if len(p.Spec.InitContainers) != 0 {
		return errors.New("a pod in the node's network was injected")
	}
	return nil
}

func optedOut(ctx context.Context, r *run) error {
	a := app{name: "plain", args: []string{"sleep"}}
	if err := r.apply(ctx, a.pod(nsOutside)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsOutside, "app=plain")
	if err != nil {
		return err
	}
	if text := fmt.Sprintf("%+v %v", p.Spec, p.Annotations); strings.Contains(text, "attache.dev") || strings.Contains(text, "attache-sidecar") {
		return errors.New("a pod of a namespace that is not opted in was changed")
	}
	return nil
}

func helmTest(ctx context.Context, r *run) error {
	out, err := r.node.Run(ctx, "", "helm", "test", "attache", "--namespace", nsControl, "--logs", "--timeout", "150s")
	if err != nil {
		return fmt.Errorf("%w; %s", err, out)
	}
	if !strings.Contains(out, "Phase:          Succeeded") {
		return fmt.Errorf("helm test ran no test: %s", out)
	}
	return nil
}

// uninstall removes the release while agents run: nothing that admits pods is
// left, pods of all namespaces start, and Helm 3 installs again what is
// still there.
func uninstall(ctx context.Context, r *run) error {
	if _, err := r.node.Run(ctx, "", "helm", "uninstall", "attache", "--namespace", nsControl, "--wait", "--timeout", "120s"); err != nil {
		return err
	}
	out, err := r.node.Kubectl(ctx, "", "get", "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name")
	if err != nil {
		return err
	}
	for _, left := range strings.Fields(out) {
		// attache-parameters refuses nothing: see the chart.
		if strings.Contains(left, "attache") && !strings.HasSuffix(left, "/attache-parameters") {
			return fmt.Errorf("what admits pods is still there: %s", left)
		}
	}
	a := app{name: "after", args: []string{"sleep"}}
	if err := r.apply(ctx, a.pod(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=after")
	if err != nil {
		return err
	}
	if len(p.Spec.InitContainers) != 0 {
		return errors.New("a pod was injected after the webhook went")
	}
	crds, err := r.node.Kubectl(ctx, "", "get", "clusteraccesspolicies.attache.dev", "-o", "name")
	if err != nil || !strings.Contains(crds, "agents") {
		return fmt.Errorf("the policies did not stay: %s %w", crds, err)
	}
	// Another version than before: nothing may remember the old one's image.
	other := nextRelease()
	if r.installed == other {
		other = firstRelease()
	}
	if err := r.install(ctx, "helm3", other); err != nil {
		return fmt.Errorf("helm 3: %w", err)
	}
	if err := r.publishKeys(ctx); err != nil {
		return err
	}
	b := looping("again", reportsHost)
	if err := r.apply(ctx, b.deployment(nsAgents)); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/again", spiffeID(nsAgents)); err != nil {
		return fmt.Errorf("after a new installation: %w; %s", err, r.appLog(ctx, nsAgents, "again"))
	}
	_, err = r.node.Run(ctx, "", "helm3", "uninstall", "attache", "--namespace", nsControl, "--wait", "--timeout", "120s")
	return err
}
