package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sidecarKilled kills the sidecar of pods in transparent mode as the kernel
// does for want of memory. The rules stay in the pod's network: calls fail,
// nothing goes out beside the sidecar, and after its return the same processes
// call again, with the roots that they loaded at their start.
func sidecarKilled(ctx context.Context, r *run) error {
	apps := []app{
		{name: "kill-go", args: []string{"fresh", "200ms", at(reportsHost, "/v1/kill-go")}},
		{name: "kill-node", image: imageClients, command: []string{"node", "/opt/agent/loop.mjs", "200", at(reportsHost, "/v1/kill-node")}},
		{name: "kill-java", image: imageClients, command: []string{"java", "-cp", "/opt/agent", "Http", "200", at(reportsHost, "/v1/kill-java")}},
	}
	for _, a := range apps {
		if err := r.apply(ctx, a.deployment(nsTransparent)); err != nil {
			return err
		}
	}
	for _, a := range apps {
		if err := r.killOne(ctx, a.name); err != nil {
			return fmt.Errorf("%s: %w; %s", a.name, err, r.appLog(ctx, nsTransparent, a.name))
		}
	}
	return nil
}

func (r *run) killOne(ctx context.Context, name string) error {
	p, err := r.pod(ctx, nsTransparent, "app="+name)
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/"+name, spiffeID(nsTransparent)); err != nil {
		return err
	}
	if err := r.node.KillContainer(ctx, containerID(p, "attache-sidecar")); err != nil {
		return err
	}
	var after *corev1.Pod
	err = until(ctx, "the kubelet starts the sidecar again", func() (bool, string) {
		after, err = r.kube.CoreV1().Pods(nsTransparent).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return restarts(after, "attache-sidecar") > restarts(p, "attache-sidecar") && isReady(after), state(after)
	})
	if err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/"+name))
	err = until(ctx, "the same process calls again", func() (bool, string) {
		n := 0
		for _, c := range r.world.seen(reportsHost, "/v1/"+name)[seen:] {
			if c.Status == 200 {
				n++
			}
		}
		return n > 3, fmt.Sprintf("%d calls", n)
	})
	if err != nil {
		return err
	}
	if restarts(after, "app") != restarts(p, "app") {
		return errors.New("the app was started again: it is not the same process")
	}
	for _, c := range r.world.seen(reportsHost, "/v1/"+name) {
		if c.Status != 200 {
			return fmt.Errorf("a call without a credential arrived: %s", c.Who)
		}
	}
	lines, err := r.lines(ctx, nsTransparent, p.Name, "app")
	if err != nil {
		return err
	}
	failed := 0
	for _, l := range lines {
		if l.Status == 0 {
			failed++
		}
	}
	if failed == 0 {
		return errors.New("no call failed while the sidecar was dead: was it killed at all?")
	}
	return nil
}

func containerdRestart(ctx context.Context, r *run) error {
	if err := r.apply(ctx, looping("runtime", reportsHost).deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=runtime")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/runtime", spiffeID(nsAgents)); err != nil {
		return err
	}
	if err := r.node.RestartContainerd(ctx); err != nil {
		return err
	}
	before := len(r.world.seen(reportsHost, "/v1/runtime"))
	if err := until(ctx, "calls go on", func() (bool, string) {
		return len(r.world.seen(reportsHost, "/v1/runtime")) > before+3, "no further call"
	}); err != nil {
		return err
	}
	// The reboot's shape: all containers of the pod end, and the kubelet starts
	// them in the order of the first time, the redirect included.
	t := looping("reboot", reportsHost)
	if err := r.apply(ctx, t.deployment(nsTransparent)); err != nil {
		return err
	}
	q, err := r.pod(ctx, nsTransparent, "app=reboot")
	if err != nil {
		return err
	}
	if err := r.node.KillSandbox(ctx, string(q.UID)); err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/reboot"))
	if err := until(ctx, "the pod's containers start again and call", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsTransparent).Get(ctx, q.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return restarts(now, "app") > restarts(q, "app") && len(r.world.seen(reportsHost, "/v1/reboot")) > seen+2, state(now)
	}); err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsTransparent, "reboot"))
	}
	now, err := r.kube.CoreV1().Pods(nsAgents).Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if restarts(now, "app") != restarts(p, "app") {
		return errors.New("the restart of the runtime ended the app")
	}
	return nil
}

// kubeletRestart: probes and restarts are the kubelet's; it finds the sidecars
// as native ones again, starts none anew, and makes further pods.
func kubeletRestart(ctx context.Context, r *run) error {
	old := looping("kubelet-old", reportsHost)
	if err := r.apply(ctx, old.deployment(nsTransparent)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsTransparent, "app="+old.name)
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/"+old.name, spiffeID(nsTransparent)); err != nil {
		return err
	}
	if err := r.node.RestartKubelet(); err != nil {
		return err
	}
	before := len(r.world.seen(reportsHost, "/v1/"+old.name))
	fresh := looping("kubelet-new", reportsHost)
	if err := r.apply(ctx, fresh.deployment(nsTransparent)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsTransparent, "app="+fresh.name); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/"+fresh.name, spiffeID(nsTransparent)); err != nil {
		return err
	}
	now, err := r.kube.CoreV1().Pods(nsTransparent).Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range []string{"app", "attache-sidecar", "attache-redirect"} {
		if restarts(now, c) != restarts(p, c) {
			return fmt.Errorf("the kubelet's restart started %s again", c)
		}
	}
	if n := len(r.world.seen(reportsHost, "/v1/"+old.name)); n <= before+3 {
		return fmt.Errorf("the old pod made %d calls meanwhile", n-before)
	}
	return r.jobAfterRestart(ctx)
}

// jobAfterRestart: the new kubelet also ends a native sidecar after its Job.
func (r *run) jobAfterRestart(ctx context.Context) error {
	a := app{name: "kubelet-job", args: []string{"get", at(reportsHost, "/v1/kubelet-job")}}
	if err := r.apply(ctx, a.job(nsTransparent)); err != nil {
		return err
	}
	return r.jobDone(ctx, nsTransparent, a.name)
}

// redirectAsSidecar: the operator wants no root anywhere, and neither does the
// pod. Without privilege escalation the file capability counts all the same.
func redirectAsSidecar(ctx context.Context, r *run) (err error) {
	set := func(ctx context.Context, to string) error {
		_, err := r.node.Kubectl(ctx, "", "patch", "attacheconfig", "default", "--type=merge", "-p", `{"spec":{"cluster":{"injection":{"redirectAs":`+to+`}}}}`)
		return err
	}
	if err := set(ctx, `"sidecar"`); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := within(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, set(ctx, "null"))
	}()
	a := looping("no-root", reportsHost)
	a.spec = "securityContext: {runAsNonRoot: true, runAsUser: 1000}"
	// Settings reach the webhook by a watch.
	if err := until(ctx, "the webhook knows the setting", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, a.pod(nsTransparent), "create", "--dry-run=server", "-f", "-", "-o", "jsonpath={.spec.initContainers[0].securityContext}")
		return err == nil && strings.Contains(out, `"runAsUser":64200`) && strings.Contains(out, `"runAsNonRoot":true`) && strings.Contains(out, `"allowPrivilegeEscalation":false`), fmt.Sprint(out, err)
	}); err != nil {
		return err
	}
	if err := r.apply(ctx, a.deployment(nsTransparent)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsTransparent, "app="+a.name)
	if err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsTransparent, a.name))
	}
	if u := p.Spec.InitContainers[0].SecurityContext.RunAsUser; u == nil || *u == 0 {
		return errors.New("the redirect of the new pod is root: the case is broken")
	}
	// The sidecar has proved the rules, or the app had not started.
	return r.world.verified(ctx, reportsHost, "/v1/"+a.name, spiffeID(nsTransparent))
}

// scaleControl sets the number of replicas, and waits until they are ready or
// gone.
func (r *run) scaleControl(ctx context.Context, n int) error {
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "scale", "deployment/attache-control", fmt.Sprintf("--replicas=%d", n)); err != nil {
		return err
	}
	if n > 0 {
		_, err := r.node.Kubectl(ctx, "", "-n", nsControl, "rollout", "status", "deployment/attache-control", "--timeout=120s")
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "delete", "pods", "-l", "app.kubernetes.io/component=control", "--force", "--grace-period=0"); err != nil {
		return err
	}
	// Objects go before processes do, and the API server keeps connections to
	// a replica that drains: the control plane is gone when nobody answers.
	return until(ctx, "the webhook is gone", func() (bool, string) {
		_, err := r.node.Kubectl(ctx, looping("probe", reportsHost).pod(nsAgents), "create", "--dry-run=server", "-f", "-")
		return err != nil && strings.Contains(err.Error(), "failed calling webhook"), fmt.Sprint(err)
	})
}

// restoreControl brings the control plane back whatever a case did.
func (r *run) restoreControl(ctx context.Context, err *error) {
	ctx, cancel := within(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	*err = errors.Join(*err, r.scaleControl(ctx, 2))
}

func webhookDown(ctx context.Context, r *run) (err error) {
	if err := r.scaleControl(ctx, 0); err != nil {
		return err
	}
	defer r.restoreControl(ctx, &err)
	if err := r.refused(ctx, looping("down", reportsHost).pod(nsAgents), "pods.attache.dev", "connect"); err != nil {
		return fmt.Errorf("a pod of an opted-in namespace: %w", err)
	}
	if err := r.apply(ctx, app{name: "elsewhere", args: []string{"sleep"}}.pod(nsOutside)); err != nil {
		return fmt.Errorf("a pod of another namespace: %w", err)
	}
	_, err = r.pod(ctx, nsOutside, "app=elsewhere")
	return err
}

func controlKilled(ctx context.Context, r *run) (err error) {
	if err := r.apply(ctx, looping("survivor", reportsHost).deployment(nsAgents)); err != nil {
		return err
	}
	if err := r.apply(ctx, looping("restarted", reportsHost).deployment(nsAgents)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsAgents, "app=survivor"); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=restarted")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/survivor", spiffeID(nsAgents)); err != nil {
		return err
	}
	if err := r.scaleControl(ctx, 0); err != nil {
		return err
	}
	defer r.restoreControl(ctx, &err)
	before := len(r.world.seen(reportsHost, "/v1/survivor"))
	if err := until(ctx, "calls go on", func() (bool, string) {
		return len(r.world.seen(reportsHost, "/v1/survivor")) > before+10, "they do not"
	}); err != nil {
		return err
	}
	if err := r.node.KillContainer(ctx, containerID(p, "attache-sidecar")); err != nil {
		return err
	}
	if err := until(ctx, "the restarted sidecar is not ready", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsAgents).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return restarts(now, "attache-sidecar") > restarts(p, "attache-sidecar") && !isReady(now), state(now)
	}); err != nil {
		return err
	}
	// It stays so, and nothing leaves, for as long as we look.
	seen := len(r.world.seen(reportsHost, "/v1/restarted"))
	look, cancel := within(ctx, 5*time.Second)
	defer cancel()
	<-look.Done()
	if n := len(r.world.seen(reportsHost, "/v1/restarted")); n != seen {
		return fmt.Errorf("%d calls left a pod whose sidecar has no policy", n-seen)
	}
	if err := r.scaleControl(ctx, 2); err != nil {
		return err
	}
	return until(ctx, "it is ready once the control plane is back", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsAgents).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return isReady(now) && len(r.world.seen(reportsHost, "/v1/restarted")) > seen, state(now) + "; " + r.appLog(ctx, nsAgents, "restarted")
	})
}

// upgrade changes the template of the sidecar, by the resources that every
// pod gets, and its image. Pods of before keep theirs, and must be able to
// renew.
func upgrade(ctx context.Context, r *run) error {
	old := looping("old", reportsHost)
	if err := r.apply(ctx, old.deployment(nsUpgrade)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsUpgrade, "app=old")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/old", spiffeID(nsUpgrade)); err != nil {
		return err
	}
	if err := r.install(ctx, "helm", nextRelease()); err != nil {
		return err
	}
	// A replica of before may answer for a moment while it drains.
	if err := until(ctx, "new pods get the new sidecar", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, looping("probe", reportsHost).pod(nsUpgrade), "create", "--dry-run=server", "-f", "-", "-o", "jsonpath={.spec.initContainers[0].image}")
		return err == nil && strings.HasSuffix(out, r.node.Digest(imageSidecarNext)), fmt.Sprint(out, err)
	}); err != nil {
		return err
	}
	fresh := looping("fresh", reportsHost)
	if err := r.apply(ctx, fresh.deployment(nsUpgrade)); err != nil {
		return err
	}
	q, err := r.pod(ctx, nsUpgrade, "app=fresh")
	if err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsUpgrade, "fresh"))
	}
	if q.Annotations["attache.dev/status"] == p.Annotations["attache.dev/status"] || q.Spec.InitContainers[0].Image == p.Spec.InitContainers[0].Image {
		return errors.New("the template did not change: the case is broken")
	}
	// A renewal by force: a sidecar that starts anew has no identity left.
	if err := r.node.KillContainer(ctx, containerID(p, "attache-sidecar")); err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/old"))
	if err := until(ctx, "the old pod has a new identity and calls", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsUpgrade).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return isReady(now) && restarts(now, "attache-sidecar") > 0 && len(r.world.seen(reportsHost, "/v1/old")) > seen+3, state(now)
	}); err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsUpgrade, "old"))
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/fresh", spiffeID(nsUpgrade)); err != nil {
		return err
	}
	// Once the operator retires the old template, its pods get nothing more.
	if err := r.retire(ctx, p.Spec.InitContainers[0].Image); err != nil {
		return err
	}
	now, err := r.kube.CoreV1().Pods(nsUpgrade).Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := r.node.KillContainer(ctx, containerID(now, "attache-sidecar")); err != nil {
		return err
	}
	return until(ctx, "a pod of the retired template is refused", func() (bool, string) {
		log, err := r.logs(ctx, nsUpgrade, p.Name, "attache-sidecar")
		return err == nil && strings.Contains(log, `"refused":true`), fmt.Sprint(log, err)
	})
}
