package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pollEvery is how often a condition is asked for.
const pollEvery = 250 * time.Millisecond

// until waits for ok. What it says last explains a failure.
func until(ctx context.Context, what string, ok func() (bool, string)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, last := ok()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("in vain: %s (%s)", what, last)
		case <-tick.C:
		}
	}
}

// within is ctx with a shorter time.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

func (r *run) apply(ctx context.Context, text string) error {
	_, err := r.node.Kubectl(ctx, text, "apply", "-f", "-")
	return err
}

// refused says whether applying is denied with a message that has all parts.
func (r *run) refused(ctx context.Context, text string, parts ...string) error {
	_, err := r.node.Kubectl(ctx, text, "apply", "-f", "-")
	return deniedWith(err, parts...)
}

func deniedWith(err error, parts ...string) error {
	if err == nil {
		return errors.New("was accepted, want a denial")
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			return fmt.Errorf("the denial lacks %q: %w", p, err)
		}
	}
	return nil
}

func (r *run) namespace(ctx context.Context, name string, labels map[string]string) error {
	var l []string
	for k, v := range labels {
		l = append(l, fmt.Sprintf("%q: %q", k, v))
	}
	return r.apply(ctx, fmt.Sprintf(`{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: %s, namespace: %s}}
`, name, strings.Join(l, ", "), account, name))
}

func (r *run) pods(ctx context.Context, ns, selector string) ([]corev1.Pod, error) {
	list, err := r.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// pod waits until exactly one pod of the selector runs, ready, and is not
// about to end.
func (r *run) pod(ctx context.Context, ns, selector string) (*corev1.Pod, error) {
	var found *corev1.Pod
	err := until(ctx, "a ready pod "+ns+"/"+selector, func() (bool, string) {
		pods, err := r.pods(ctx, ns, selector)
		if err != nil {
			return false, err.Error()
		}
		var states []string
		ready := 0
		for i := range pods {
			p := &pods[i]
			if p.DeletionTimestamp != nil {
				continue
			}
			states = append(states, p.Name+" "+state(p))
			if isReady(p) {
				ready++
				found = p
			}
		}
		if len(pods) == 0 {
			return false, "there is none; " + r.lastEvent(ctx, ns)
		}
		return ready == 1 && len(states) == 1, strings.Join(states, ", ")
	})
	return found, err
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// state is what kubectl get pods shows, in short.
func state(p *corev1.Pod) string {
	s := string(p.Status.Phase)
	for _, c := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "PodInitializing":
			s += fmt.Sprintf(" %s:%s(%s)", c.Name, c.State.Waiting.Reason, c.State.Waiting.Message)
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			s += fmt.Sprintf(" %s:exit %d(%s)", c.Name, c.State.Terminated.ExitCode, strings.TrimSpace(c.State.Terminated.Message))
		case c.State.Running != nil && !c.Ready:
			s += " " + c.Name + ":not ready"
		}
	}
	return s
}

// lastEvent helps where nothing appears: a denial of a controller's pods is
// told nowhere else.
func (r *run) lastEvent(ctx context.Context, ns string) string {
	list, err := r.kube.CoreV1().Events(ns).List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		return "no events"
	}
	last := list.Items[0]
	for _, e := range list.Items {
		if e.Type == corev1.EventTypeWarning && e.LastTimestamp.After(last.LastTimestamp.Time) {
			last = e
		}
	}
	return "last event: " + last.Reason + " " + last.Message
}

// logLine is what test/k8s/agent and the clients print for each call.
type logLine struct {
	URL    string    `json:"url"`
	Status int       `json:"status"`
	Error  string    `json:"error"`
	Body   string    `json:"body"`
	At     time.Time `json:"at"`
}

// logs returns what a container printed; previous that of the one before it.
func (r *run) logs(ctx context.Context, ns, pod, container string) (string, error) {
	b, err := r.kube.CoreV1().Pods(ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	return string(b), err
}

// lines are the container's calls, oldest first.
func (r *run) lines(ctx context.Context, ns, pod, container string) ([]logLine, error) {
	text, err := r.logs(ctx, ns, pod, container)
	if err != nil {
		return nil, err
	}
	var out []logLine
	for _, l := range strings.Split(text, "\n") {
		var line logLine
		if strings.HasPrefix(l, "{") && json.Unmarshal([]byte(l), &line) == nil {
			out = append(out, line)
		}
	}
	return out, nil
}

// containerID of a pod's container or init container.
func containerID(p *corev1.Pod, name string) string {
	for _, c := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c.ContainerID
		}
	}
	return ""
}

func restarts(p *corev1.Pod, name string) int32 {
	for _, c := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c.RestartCount
		}
	}
	return 0
}
