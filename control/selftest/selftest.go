// Package selftest proves, from within a cluster, that a namespace's pods are
// injected and guarded. A binding that names no policy does nothing and says
// nothing; so does a webhook whose selector matches nothing. Only trying tells.
package selftest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

const (
	sidecar  = "attache-sidecar"
	audience = "attache.dev"
	poll     = time.Second
)

// Options say what is tried.
type Options struct {
	Namespace string // an opted-in one, for this test alone
	Image     string // that the injected pod runs with the argument version, and ends
	Wait      bool   // until the pod has run: its sidecar was attested and has its policies
	Guards    bool   // try attacks too
	Timeout   time.Duration
	Patience  time.Duration // with a guard that was just made; 0 is 20 s
}

// ErrFailed is matched when something is not as it must be.
var ErrFailed = errors.New("the self-test failed")

type test struct {
	Options
	client kubernetes.Interface
	out    io.Writer
	failed int
	passed int
}

// Run tries everything and writes a line on each to out. Its error matches
// ErrFailed, or is ctx's.
func Run(ctx context.Context, client kubernetes.Interface, o Options, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	t := &test{Options: o, client: client, out: out}
	pod, err := t.injected(ctx)
	t.report("a pod is injected", err)
	if err == nil {
		defer func() {
			// The context may have ended; the pod must go all the same.
			_ = client.CoreV1().Pods(o.Namespace).Delete(context.WithoutCancel(ctx), pod.Name, metav1.DeleteOptions{})
		}()
		if o.Guards {
			t.attacks(ctx, pod)
		}
		if o.Wait {
			t.report("the pod ran beside its sidecar, and ended", t.ran(ctx, pod.Name))
		}
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d failed\n", t.passed, t.failed)
	if t.failed > 0 {
		return ErrFailed
	}
	return nil
}

func (t *test) report(what string, err error) {
	if err == nil {
		t.passed++
		_, _ = fmt.Fprintln(t.out, "ok    ", what)
		return
	}
	t.failed++
	_, _ = fmt.Fprintf(t.out, "FAILED %s: %v\n", what, err)
}

// agent is a pod as an author could write it. It passes Pod Security
// restricted.
func (t *test) agent() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "selftest-", Labels: map[string]string{"app.kubernetes.io/name": "attache-selftest"}},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			AutomountServiceAccountToken:  new(false),
			TerminationGracePeriodSeconds: new(int64(5)),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(65532)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "agent", Image: t.Image, Args: []string{"version"},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// injected makes a pod, and tells what its sidecar lacks. A namespace that is
// a moment old has no service account yet, and is not yet opted in for every
// API server.
func (t *test) injected(ctx context.Context) (pod *corev1.Pod, err error) {
	var last error
	err = wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
		pod, err = t.client.CoreV1().Pods(t.Namespace).Create(ctx, t.agent(), metav1.CreateOptions{})
		if err != nil {
			if last == nil || ctx.Err() == nil { // the end of time is no reason
				last = err
			}
			return false, nil
		}
		i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecar })
		switch {
		case i < 0:
			last = errors.New("has no " + sidecar + ": does the webhook's namespaceSelector match, and is the namespace labelled?")
		case pod.Spec.InitContainers[i].RestartPolicy == nil:
			last = errors.New(sidecar + " is no native sidecar")
		default:
			return true, nil
		}
		return false, t.client.CoreV1().Pods(t.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})
	})
	if err != nil && last != nil {
		err = last
	}
	return pod, err
}

// attacks tries what the guards must refuse, as dry runs where that is enough.
// The webhook looks at none of these.
func (t *test) attacks(ctx context.Context, pod *corev1.Pod) {
	pods := t.client.CoreV1().Pods(t.Namespace)
	dry := []string{metav1.DryRunAll}
	for _, a := range []struct {
		what string
		try  func() error
	}{
		{"a pod in the node's network", func() error {
			p := t.agent()
			p.Spec.HostNetwork = true
			_, err := pods.Create(ctx, p, metav1.CreateOptions{DryRun: dry})
			return err
		}},
		{"another image for the sidecar", func() error {
			_, err := pods.Patch(ctx, pod.Name, types.StrategicMergePatchType,
				[]byte(`{"spec":{"initContainers":[{"name":"`+sidecar+`","image":"example.com/another"}]}}`), metav1.PatchOptions{DryRun: dry})
			return err
		}},
		{"a debug container that may trace processes", func() error {
			_, err := pods.Patch(ctx, pod.Name, types.StrategicMergePatchType,
				[]byte(`{"spec":{"ephemeralContainers":[{"name":"debug","image":"x","securityContext":{"capabilities":{"add":["SYS_PTRACE"]}}}]}}`),
				metav1.PatchOptions{DryRun: dry}, "ephemeralcontainers")
			return err
		}},
		{"a command in the sidecar", func() error {
			return t.client.CoreV1().RESTClient().Post().Namespace(t.Namespace).Resource("pods").Name(pod.Name).SubResource("exec").
				Param("container", sidecar).Param("command", "version").Param("stdout", "true").Do(ctx).Error()
		}},
		{"a token like the sidecar's", func() error {
			_, err := t.client.CoreV1().ServiceAccounts(t.Namespace).CreateToken(ctx, "default",
				&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}, metav1.CreateOptions{DryRun: dry})
			return err
		}},
	} {
		t.report("refused: "+a.what, t.refused(ctx, a.try))
	}
}

// refused waits until the guards refuse: one that was just made takes seconds.
func (t *test) refused(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(t.Patience, 20*time.Second))
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(ctx, poll, true, func(context.Context) (bool, error) {
		last = try()
		return last != nil && strings.Contains(last.Error(), "ValidatingAdmissionPolicy 'attache-"), nil
	})
	switch {
	case err == nil:
		return nil
	case last == nil:
		return errors.New("was admitted: is the policy bound (kubectl get validatingadmissionpolicybindings)?")
	case apierrors.IsForbidden(last) || apierrors.IsInvalid(last):
		return fmt.Errorf("was refused, but not by a guard: %w", last)
	}
	return last
}

// ran waits until the pod has ended well, and says where it stands if it does
// not.
func (t *test) ran(ctx context.Context, name string) error {
	var pod *corev1.Pod
	err := wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
		p, err := t.client.CoreV1().Pods(t.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		pod = p
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed, nil
	})
	if err == nil && pod.Status.Phase == corev1.PodSucceeded {
		return nil
	}
	if pod == nil {
		return err
	}
	return fmt.Errorf("is %s: %s", pod.Status.Phase, where(pod))
}

// where is what the kubelet says of each container that is not done.
func where(pod *corev1.Pod) string {
	var lines []string
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			lines = append(lines, string(c.Type)+": "+c.Message)
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil:
			lines = append(lines, fmt.Sprintf("%s: waits, %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message))
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			lines = append(lines, fmt.Sprintf("%s: ended with %d, %s", s.Name, s.State.Terminated.ExitCode, s.State.Terminated.Message))
		case s.State.Running != nil && !s.Ready:
			lines = append(lines, s.Name+": runs, and is not ready; kubectl logs -n "+pod.Namespace+" "+pod.Name+" -c "+s.Name)
		}
	}
	if len(lines) == 0 {
		return "no node has taken it"
	}
	return strings.Join(lines, "; ")
}
