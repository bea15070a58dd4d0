package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func deployment(ctx context.Context, r *run) error {
	a := looping("deployment", reportsHost)
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=deployment")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/deployment", spiffeID(nsAgents)); err != nil {
		return err
	}
	first := p.Spec.InitContainers[0]
	if first.Name != "attache-sidecar" || first.RestartPolicy == nil || *first.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		return fmt.Errorf("the first init container is %s, want the sidecar", first.Name)
	}
	// What went over the wire is verified against the pod's own address: the
	// agent's process made the call, nobody for it.
	for _, c := range r.world.seen(reportsHost, "/v1/deployment") {
		if !strings.HasPrefix(c.From, p.Status.PodIP+":") {
			return fmt.Errorf("a call came from %s, the pod has %s", c.From, p.Status.PodIP)
		}
	}
	return r.holdsNothing(ctx, nsAgents, p, "app")
}

// holdsNothing searches the pod as the API shows it, and the container's
// environment, memory-backed files and log, for credentials that were used.
func (r *run) holdsNothing(ctx context.Context, ns string, p *corev1.Pod, container string) error {
	manifest, err := r.node.Kubectl(ctx, "", "-n", ns, "get", "pod", p.Name, "-o", "yaml")
	if err != nil {
		return err
	}
	log, err := r.logs(ctx, ns, p.Name, container)
	if err != nil {
		return err
	}
	places := map[string]string{"manifest": manifest, "log": log}
	files, err := r.node.ContainerFiles(ctx, containerID(p, container))
	if err != nil {
		return err
	}
	for name, content := range files {
		places[name] = content
	}
	if len(files) == 0 {
		return errors.New("found no files to search: the check is broken")
	}
	// The search must find what is there: the agent knows its own URL.
	known := false
	for _, text := range files {
		known = known || strings.Contains(text, ".vendor.test/v1/")
	}
	if !known {
		return errors.New("the agent's own URL is not found in its memory: the check is broken")
	}
	secrets := r.world.secretsSeen()
	if len(secrets) < 2 {
		return errors.New("no credential was used yet: the check is broken")
	}
	for place, text := range places {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				return fmt.Errorf("%s of pod %s holds a credential", place, p.Name)
			}
		}
	}
	return nil
}

func apiKey(ctx context.Context, r *run) error {
	if err := r.apply(ctx, looping("api-key", notesHost).deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app=api-key")
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, notesHost, "/v1/api-key", "key"); err != nil {
		return err
	}
	return r.holdsNothing(ctx, nsAgents, p, "app")
}

func job(ctx context.Context, r *run) error {
	a := app{name: "job", args: []string{"get", at(reportsHost, "/v1/job")}}
	if err := r.apply(ctx, a.job(nsAgents)); err != nil {
		return err
	}
	if err := r.jobDone(ctx, nsAgents, "job"); err != nil {
		return err
	}
	return r.world.verified(ctx, reportsHost, "/v1/job", spiffeID(nsAgents))
}

// jobDone waits until the job is complete: its sidecar must have ended, too.
func (r *run) jobDone(ctx context.Context, ns, name string) error {
	return until(ctx, "job "+name+" completes", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, "", "-n", ns, "get", "job", name, "-o", "jsonpath={.status.succeeded} {.status.failed}")
		if err != nil {
			return false, err.Error()
		}
		if strings.HasPrefix(out, "1 ") {
			return true, ""
		}
		pods, err := r.pods(ctx, ns, "job-name="+name)
		if err != nil || len(pods) == 0 {
			return false, r.lastEvent(ctx, ns)
		}
		last := out + "; " + state(&pods[0])
		if log, err := r.logs(ctx, ns, pods[0].Name, "app"); err == nil {
			last += "; " + log
		}
		return false, last
	})
}

const cronJobName = "every-minute"

func startCronJob(ctx context.Context, r *run) error {
	a := app{name: cronJobName, args: []string{"get", at(reportsHost, "/v1/"+cronJobName)}, restart: "Never"}
	return r.apply(ctx, fmt.Sprintf("{apiVersion: batch/v1, kind: CronJob, metadata: {name: %s, namespace: %s}, spec: {schedule: \"* * * * *\", successfulJobsHistoryLimit: 3, jobTemplate: {spec: {backoffLimit: 0, template: %s}}}}",
		a.name, nsAgents, a.template()))
}

func finishCronJob(ctx context.Context, r *run) error {
	err := until(ctx, "a job of the CronJob completes", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "get", "cronjob", cronJobName, "-o", "jsonpath={.status.lastSuccessfulTime}")
		if err != nil {
			return false, err.Error()
		}
		return out != "", "none yet"
	})
	if err != nil {
		return err
	}
	return r.world.verified(ctx, reportsHost, "/v1/"+cronJobName, spiffeID(nsAgents))
}

func statefulSet(ctx context.Context, r *run) error {
	a := looping("stateful", reportsHost)
	text := strings.Replace(a.workload(nsAgents, "StatefulSet", "serviceName: stateful,"), "replicas: 1", "replicas: 2", 1)
	if err := r.apply(ctx, text); err != nil {
		return err
	}
	return until(ctx, "both pods call", func() (bool, string) {
		from := map[string]bool{}
		for _, c := range r.world.seen(reportsHost, "/v1/stateful") {
			if c.Status == 200 && c.Who == spiffeID(nsAgents) {
				from[strings.Split(c.From, ":")[0]] = true
			}
		}
		return len(from) == 2, fmt.Sprintf("%d of them do", len(from))
	})
}

func userInit(ctx context.Context, r *run) error {
	a := looping("user-init", reportsHost)
	a.init = fmt.Sprintf("{name: fetch, image: %q, imagePullPolicy: Never, securityContext: %s, args: [get, %q]}", imageAgent, secure, at(reportsHost, "/v1/from-init"))
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/from-init", spiffeID(nsAgents)); err != nil {
		return err
	}
	_, err := r.pod(ctx, nsAgents, "app=user-init")
	return err
}

func nonRoot(ctx context.Context, r *run) error {
	return r.reach(ctx, "non-root", strings.Replace(secure, "runAsUser: 1000", "runAsUser: 4711", 1))
}

func rootApp(ctx context.Context, r *run) error {
	return r.reach(ctx, "root", "{runAsUser: 0}")
}

// reach runs an app that calls, and that looks for what is the sidecar's.
func (r *run) reach(ctx context.Context, name, user string) error {
	script := `curl -sS -m 20 --retry 5 --retry-all-errors ` + at(reportsHost, "/v1/"+name) + ` || exit 1
for f in /var/run/secrets/attache.dev /var/lib/attache /var/run/secrets/attache.dev/token; do
  if ls $f >/dev/null 2>&1; then echo "reads $f"; exit 1; fi
done
if [ -w /var/run/attache/trust ]; then echo "writes the trust bundle"; exit 1; fi
exec sleep 3600`
	a := app{name: name, image: imageClients, command: []string{"sh", "-c", script}, user: user}
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/"+name, spiffeID(nsAgents)); err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsAgents, name))
	}
	p, err := r.pod(ctx, nsAgents, "app="+name)
	if err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsAgents, name))
	}
	if n := restarts(p, "app"); n != 0 {
		return fmt.Errorf("the app ended %d times: %s", n, r.appLog(ctx, nsAgents, name))
	}
	return nil
}

// appLog is what the app and its sidecar said last.
func (r *run) appLog(ctx context.Context, ns, name string) string {
	ctx, cancel := within(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	pods, err := r.pods(ctx, ns, "app="+name)
	if err != nil || len(pods) == 0 {
		return "no pod; " + r.lastEvent(ctx, ns)
	}
	out := state(&pods[0])
	for _, c := range []string{"app", "attache-sidecar"} {
		log, err := r.logs(ctx, ns, pods[0].Name, c)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(log), "\n")
		out += "\n  " + c + ": " + strings.Join(lines[max(0, len(lines)-6):], "\n  "+c+": ")
	}
	return out
}

func restricted(ctx context.Context, r *run) error {
	if err := r.apply(ctx, looping("psa", reportsHost).deployment(nsRestricted)); err != nil {
		return err
	}
	if _, err := r.pod(ctx, nsRestricted, "app=psa"); err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/psa", spiffeID(nsRestricted)); err != nil {
		return err
	}
	// Transparent mode needs NET_ADMIN, which the standard refuses: the author
	// is told so, and by which name.
	a := looping("psa-transparent", reportsHost)
	a.notes = labelMode + ": transparent"
	return r.refused(ctx, a.pod(nsRestricted), "violates PodSecurity", "attache-redirect", "NET_ADMIN")
}
