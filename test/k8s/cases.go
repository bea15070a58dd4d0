package main

import "context"

// testCase is one thing that must hold in a cluster. Cases run in this order;
// each makes what it needs, so that -only can run any of them alone.
type testCase struct {
	name, what string
	run        func(ctx context.Context, r *run) error
}

func cases() []testCase {
	return []testCase{
		{"cronjob-begin", "a CronJob is applied, which the clock starts while other cases run", startCronJob},
		{"deployment", "an unchanged Deployment calls with a credential that its pod never holds", deployment},
		{"api-key", "a static key, which only the broker reads, goes on the wire and not into the pod", apiKey},
		{"job", "a Job with a sidecar completes", job},
		{"statefulset", "each pod of a StatefulSet has an identity and calls", statefulSet},
		{"user-init", "an init container of the author's has a way out before the app starts", userInit},
		{"non-root", "an app of another user calls; none reads what is the sidecar's", nonRoot},
		{"root", "an app that runs as root calls; what is the sidecar's is not in its reach", rootApp},
		{"restricted", "in a namespace of Pod Security \"restricted\" explicit mode works", restricted},
		{"clients-explicit", "curl, git, Python, Node and Java call by what the environment tells them", clientsExplicit},
		{"clients-transparent", "the same clients with no proxy in their environment, redirected", clientsTransparent},
		{"denied", "a call that no rule allows gets a reason, and nothing leaves", denied},
		{"elsewhere", "a policy that sends a provider's credential elsewhere is ResolvedRefs=False, and no byte leaves", confusedDeputy},
		{"bad-policy", "of a bad policy the status says why, and the old one stays", badPolicy},
		{"live-policy", "a policy changes without a dropped connection", livePolicy},
		{"sidecar-killed", "while the sidecar is dead nothing leaves; the same Go, Node and Java processes go on after it", sidecarKilled},
		{"containerd-restart", "pods go on through a restart of the container runtime", containerdRestart},
		{"attacks", "what could take the sidecar's identity or pass it by is refused", attacks},
		{"host-network", "pods in the node's network are refused where injection is on, and left alone elsewhere", hostNetwork},
		{"opted-out", "a namespace that is not opted in gets nothing", optedOut},
		{"webhook-down", "while the webhook is down only opted-in namespaces wait", webhookDown},
		{"control-killed", "while the control plane is dead calls go on; a sidecar that restarts then is not ready", controlKilled},
		{"upgrade", "an upgrade that changes the template: old pods renew their identity and go on", upgrade},
		{"helm-test", "`helm test` proves injection and a denial", helmTest},
		{"cronjob", "the CronJob has run by its clock and completed", finishCronJob},
		{"uninstall", "uninstalling leaves nothing broken, also with Helm 3", uninstall},
	}
}
