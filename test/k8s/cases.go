package main

import "context"

// testCase is one thing that must hold in a cluster. Each makes what it needs,
// so that -only can run any of them alone.
type testCase struct {
	name, what string
	run        func(ctx context.Context, r *run) error
	how
}

// how a case runs.
type how struct {
	together bool // beside its neighbours of the same kind: it changes nothing of theirs
	slow     bool // only with -long: it waits for minutes
}

func cases() []testCase {
	together, alone, slow := how{together: true}, how{}, how{slow: true}
	return []testCase{
		{"cronjob-begin", "a CronJob is applied, which the clock starts while other cases run", startCronJob, together},
		{"clients-transparent", "curl, git, Python, Node and Java with no proxy in their environment, redirected", clientsTransparent, together},
		{"clients-explicit", "the same clients by what the environment tells them", clientsExplicit, together},
		{"deployment", "an unchanged Deployment of a distroless image calls with a credential that its pod never holds", deployment, together},
		{"api-key", "a static key, which only the broker reads, goes on the wire and not into the pod", apiKey, together},
		{"relay-key", "a static key that a relay puts on is nowhere in the pod, not even in its sidecar's memory", relayKey, together},
		{"aws", "boto3 without keys uses S3 by sessions that STS gives for the pod's identity, cut to each call", awsStore, together},
		{"records", "each call of a Job is found in the record store, and its sidecar has signed their end", records, together},
		{"spool-resumes", "a sidecar that was killed goes on with its records: none is lost, and the chain says what follows what", spoolResumes, together},
		{"review", "people log in to the review page: records and rules of their namespace, none of another, and a log-out that holds", review, together},
		{"author", "of a record one finds the policy's text, and who wrote it", author, together},
		{"job", "a Job with a sidecar completes", job, together},
		{"statefulset", "each pod of a StatefulSet has an identity and calls", statefulSet, together},
		{"user-init", "an init container of the author's has a way out before the app starts", userInit, together},
		{"non-root", "an app of another user calls, and reads nothing that is the sidecar's", nonRoot, together},
		{"root", "an app that runs as root calls, and reads nothing that is the sidecar's", rootApp, together},
		{"restricted", "in a namespace of Pod Security \"restricted\" explicit mode works", restricted, together},
		{"denied", "a call that no rule allows gets a reason, and nothing leaves", denied, together},
		{"elsewhere", "a policy that sends a provider's credential elsewhere is ResolvedRefs=False, and no byte leaves", confusedDeputy, together},
		{"relay", "a sidecar's ports are closed to other pods", relay, together},
		{"host-network", "pods in the node's network are refused where injection is on, and left alone elsewhere", hostNetwork, together},
		{"opted-out", "a namespace that is not opted in gets nothing", optedOut, together},
		{"attacks", "what could take the sidecar's identity or pass it by is refused", attacks, together},
		{"collector-down", "while the collector is down calls go on; one pod goes with its records, another stays", collectorDown, alone},
		{"bad-policy", "of a bad policy the status says why, and the old one stays", badPolicy, alone},
		{"live-policy", "a policy changes without a dropped connection", livePolicy, alone},
		{"status", "`attache-control status` tells of namespaces and pods", status, alone},
		{"revocation", "a revocation is acknowledged by every sidecar, and the next call has a fresh credential", revocation, alone},
		{"sidecar-killed", "while the sidecar is dead nothing leaves; the same Go, Node and Java processes go on after it", sidecarKilled, alone},
		{"containerd-restart", "pods go on through a restart of the container runtime, and start again after a reboot's death", containerdRestart, alone},
		{"kubelet-restart", "pods go on through a restart of the kubelet, and new ones start", kubeletRestart, alone},
		{"redirect-as-sidecar", "the redirect is installed by a user who is not root", redirectAsSidecar, alone},
		{"pod-certificate", "a pod whose identity is a certificate, brought by its kubelet, calls", podCertificate, alone},
		{"collector-killed", "the collector is killed under load: nothing is lost, and nothing is there twice", collectorKilled, alone},
		{"uninjected", "a pod that no webhook has seen is refused by the guards", uninjected, alone},
		{"webhook-down", "while the webhook is down only opted-in namespaces wait", webhookDown, alone},
		{"control-killed", "while the control plane is dead calls go on; a sidecar that restarts then is not ready", controlKilled, alone},
		{"policy-lifetime", "without a control plane calls end with the lifetime of the policy", policyLife, slow},
		{"helm-test", "`helm test` proves injection and a denial", helmTest, alone},
		{"upgrade", "an upgrade that changes the template: old pods renew and go on, until the operator retires it", upgrade, alone},
		{"loss-shown", "what a pod kept while the collector was down has arrived; what went with another is told to be lost", lossShown, alone},
		{"cronjob", "the CronJob has run by its clock and completed", finishCronJob, alone},
		{"records-kept", "a copy of the record store, made while it is written, has what the cases before did", kept, alone},
		{"uninstall", "uninstalling leaves nothing broken, and Helm 3 installs again", uninstall, alone},
	}
}
