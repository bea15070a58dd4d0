package issuer_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/proto"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/webhook/inject"
)

func TestAttest(t *testing.T) {
	r := start(t)
	a := r.admit("agent", labelled("app", "web"), nil)
	resp := a.mustAttest()
	var certs, roots []*x509.Certificate
	for _, d := range resp.Certificates {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	for _, d := range resp.Roots {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, c)
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.test")
	id, _, err := x509svid.Verify(certs, x509bundle.FromX509Authorities(td, roots))
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://cluster.test/ns/" + r.ns + "/sa/default"; id.String() != want || resp.Workload.SpiffeId != want {
		t.Errorf("SPIFFE ID: got %s and %s, want %s", id, resp.Workload.SpiffeId, want)
	}
	if !a.key.PublicKey.Equal(certs[0].PublicKey) || certs[0].Subject.SerialNumber != string(a.pod.UID) {
		t.Errorf("the SVID is not of the pod's key, or names pod %q instead of %s", certs[0].Subject.SerialNumber, a.pod.UID)
	}
	if life := certs[0].NotAfter.Sub(resp.ServerTime.AsTime()); life > time.Hour || life < 59*time.Minute {
		t.Errorf("the SVID lives %v, want an hour", life)
	}
	w := resp.Workload
	if w.Pod != "agent" || w.PodUid != string(a.pod.UID) || w.Node != r.node || w.Labels["app"] != "web" {
		t.Errorf("workload: %+v", w)
	}
	if w.Posture[issuer.PostureDigest] != "pending" || len(w.Images) != 0 {
		t.Errorf("the agent has not started, and its image is said to be %q %v", w.Posture[issuer.PostureDigest], w.Images)
	}
	if e := r.lastEvent(); e.Outcome != "issued" || e.Kind != "x509" || e.Serial == "" || e.UID != string(a.pod.UID) {
		t.Errorf("event: %+v", e)
	}
	if strings.Contains(r.logged(), a.token) {
		t.Error("the log holds the token")
	}
}

// TestRefusals: each check refuses what it is for. Every one was seen to fail
// with its check taken out.
func TestRefusals(t *testing.T) {
	r := start(t)
	other := r.env.Namespace(t, nil) // not opted in
	for _, tt := range []struct {
		name, reason  string
		before, after podChange
		change        func(t *testing.T, a *agent)
	}{
		{name: "no token", reason: "token", change: func(_ *testing.T, a *agent) { a.token = "" }},
		{name: "garbage for a token", reason: "token", change: func(_ *testing.T, a *agent) { a.token = "a.b.c" }},
		{name: "wrong audience", reason: "token", change: func(_ *testing.T, a *agent) { a.token = a.newToken("https://kubernetes.default.svc.cluster.local") }},
		{name: "token that is bound to no pod", reason: "unbound_token", change: func(_ *testing.T, a *agent) { a.token = r.tokenFor("default", nil, audience) }},
		{name: "deleted pod", reason: "token", change: func(t *testing.T, a *agent) {
			if err := r.c.Delete(t.Context(), a.pod, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "ended pod", reason: "pod_gone", change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })
		}},
		{name: "address of another pod", reason: "address", change: func(_ *testing.T, a *agent) { a.address = nextAddress() }},
		{name: "addresses not reported", reason: "not_reported_yet", change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) { s.PodIP, s.PodIPs = "", nil })
		}},
		{name: "sidecar not reported", reason: "not_reported_yet", change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) { s.InitContainerStatuses = nil })
		}},
		{name: "sidecar that has ended", reason: "not_reported_yet", change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) {
				s.InitContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}
			})
		}},
		{name: "host network", reason: "shared_with_host", after: func(p map[string]any) {
			spec(p)["hostNetwork"] = true
			for _, l := range []string{"initContainers", "containers"} {
				for _, c := range spec(p)[l].([]any) {
					delete(c.(map[string]any), "ports")
				}
			}
		}},
		{name: "processes of the host", reason: "shared_with_host", after: func(p map[string]any) { spec(p)["hostPID"] = true }},
		{name: "shared processes", reason: "shared_with_host", after: func(p map[string]any) { spec(p)["shareProcessNamespace"] = true }},
		{name: "no sidecar", reason: "sidecar", after: func(p map[string]any) {
			delete(spec(p), "initContainers")
		}},
		{name: "sidecar that is no native one", reason: "sidecar", after: func(p map[string]any) {
			c := container(p, "initContainers", inject.SidecarName)
			delete(c, "restartPolicy")
			delete(c, "startupProbe")
			delete(c, "readinessProbe")
		}},
		{name: "foreign image", reason: "sidecar_digest", after: func(p map[string]any) { container(p, "initContainers", inject.SidecarName)["image"] = evilImage }},
		{name: "image without a digest", reason: "sidecar_digest", after: func(p map[string]any) {
			container(p, "initContainers", inject.SidecarName)["image"] = "registry.example/attache-sidecar:evil"
		}},
		{name: "tag that resolves to a foreign image", reason: "sidecar_digest", after: func(p map[string]any) {
			container(p, "initContainers", inject.SidecarName)["image"] = "registry.example/attache-sidecar:evil"
		}, change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) { s.InitContainerStatuses[0].ImageID = evilImage })
		}},
		{name: "foreign image that still runs", reason: "sidecar_digest", change: func(_ *testing.T, a *agent) {
			a.report("containerd://start-1", 0, func(s *corev1.PodStatus) { s.InitContainerStatuses[0].ImageID = evilImage })
		}},
		{name: "other arguments", reason: "template", after: func(p map[string]any) {
			c := container(p, "initContainers", inject.SidecarName)
			c["args"] = append(c["args"].([]any), "--debug-dump")
		}},
		{name: "a command", reason: "template", after: func(p map[string]any) {
			container(p, "initContainers", inject.SidecarName)["command"] = []any{"/bin/sh"}
		}},
		{name: "another control plane", reason: "template", after: func(p map[string]any) {
			for _, e := range container(p, "initContainers", inject.SidecarName)["env"].([]any) {
				if e := e.(map[string]any); e["name"] == "ATTACHE_CONTROL" {
					e["value"] = "evil.example:443"
				}
			}
		}},
		{name: "user of the sidecar in another container", reason: "sidecar_user", after: func(p map[string]any) {
			container(p, "containers", "app")["securityContext"] = map[string]any{"runAsUser": json.Number("64200")}
		}},
		{name: "user of the sidecar in the pod", reason: "sidecar_user", after: func(p map[string]any) {
			spec(p)["securityContext"] = map[string]any{"runAsUser": json.Number("64200")}
		}},
		{name: "second volume with our audience", reason: "audience_elsewhere", after: func(p map[string]any) {
			spec(p)["volumes"] = append(spec(p)["volumes"].([]any), map[string]any{"name": "mine", "projected": map[string]any{"sources": []any{
				map[string]any{"serviceAccountToken": map[string]any{"audience": audience, "path": "t"}},
			}}})
		}},
		{name: "second token in our volume", reason: "audience_elsewhere", after: func(p map[string]any) {
			for _, v := range spec(p)["volumes"].([]any) {
				if v := v.(map[string]any); v["name"] == "attache-token" {
					pr := v["projected"].(map[string]any)
					pr["sources"] = append(pr["sources"].([]any), map[string]any{"serviceAccountToken": map[string]any{"audience": audience, "path": "t"}})
				}
			}
		}},
		{name: "token in another container", reason: "token_mounted_elsewhere", after: mountInApp("attache-token")},
		{name: "state in another container", reason: "token_mounted_elsewhere", after: mountInApp("attache-state")},
		{name: "token in an ephemeral container", reason: "token_mounted_elsewhere", change: func(t *testing.T, a *agent) {
			a.debug(t, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: "registry.example/shell", VolumeMounts: []corev1.VolumeMount{{Name: "attache-token", MountPath: "/t"}},
			}})
		}},
		{name: "user of the sidecar in an ephemeral container", reason: "sidecar_user", change: func(t *testing.T, a *agent) {
			uid := int64(64200)
			a.debug(t, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: "registry.example/shell", SecurityContext: &corev1.SecurityContext{RunAsUser: &uid},
			}})
		}},
		{name: "ephemeral container that joins the sidecar", reason: "debug_container", change: func(t *testing.T, a *agent) {
			a.debug(t, corev1.EphemeralContainer{TargetContainerName: inject.SidecarName, EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "registry.example/shell"}})
		}},
		{name: "certificate request of another key", reason: "csr", change: func(_ *testing.T, a *agent) { a.instance += "!csr" }},
		{name: "no instance", reason: "bad_request", change: func(_ *testing.T, a *agent) { a.instance = "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			a := r.admit("agent-"+strings.ReplaceAll(strings.ToLower(tt.name), " ", "-"), tt.before, tt.after)
			if tt.change != nil {
				tt.change(t, a)
			}
			req := a.request()
			if strings.HasSuffix(a.instance, "!csr") { // the signature is another key's
				a.instance = strings.TrimSuffix(a.instance, "!csr")
				req.Instance = a.instance
				req.Csr = forged(t, a)
			}
			_, err := a.send(req)
			r.refusedFor(err, tt.reason)
		})
	}
	t.Run("namespace that is not opted in", func(t *testing.T) {
		r.t = t
		mine := r.ns
		defer func() { r.ns = mine }()
		r.ns = other
		a := r.admit("agent", nil, nil)
		_, err := a.attest()
		r.refusedFor(err, "not_opted_in")
	})
	t.Run("namespace that is opted out later", func(t *testing.T) {
		r.t = t
		mine := r.ns
		defer func() { r.ns = mine }()
		r.ns = r.env.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
		a := r.admit("agent", nil, nil)
		a.mustAttest()
		ns := &corev1.Namespace{}
		if err := r.c.Get(t.Context(), types.NamespacedName{Name: r.ns}, ns); err != nil {
			t.Fatal(err)
		}
		delete(ns.Labels, "attache.dev/inject")
		if err := r.c.Update(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		_, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "not_opted_in")
		_, err = a.send(a.request(), *a.svid)
		r.refusedFor(err, "not_opted_in")
	})
}

func mountInApp(volume string) podChange {
	return func(p map[string]any) {
		c := container(p, "containers", "app")
		c["volumeMounts"] = append(c["volumeMounts"].([]any), map[string]any{"name": volume, "mountPath": "/mine"})
	}
}

// forged is a certificate request whose signature does not fit its key.
func forged(t *testing.T, a *agent) []byte {
	t.Helper()
	b := csrFor(t, a.key, a.token, a.instance)
	b[len(b)-1] ^= 1
	return b
}

// debug adds an ephemeral container.
func (a *agent) debug(t *testing.T, c corev1.EphemeralContainer) {
	t.Helper()
	a.read()
	a.pod.Spec.EphemeralContainers = append(a.pod.Spec.EphemeralContainers, c)
	if err := a.r.c.SubResource("ephemeralcontainers").Update(t.Context(), a.pod); err != nil {
		t.Fatal(err)
	}
}

// TestTokenFromBeforeTheNode: a token made before the pod was on its node, or
// for another, proves nothing about where the pod is.
func TestTokenFromBeforeTheNode(t *testing.T) {
	r := start(t)
	a := r.admit("agent", func(p map[string]any) { delete(spec(p), "nodeName") }, nil)
	_, err := a.attest()
	r.refusedFor(err, "not_reported_yet")
	early := a.token
	bind := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: a.name, Namespace: r.ns}, Target: corev1.ObjectReference{Kind: "Node", Name: r.node}}
	if err := r.c.SubResource("binding").Create(t.Context(), a.pod, bind); err != nil {
		t.Fatal(err)
	}
	_, err = a.attest()
	r.refusedFor(err, "node")
	if a.token = a.newToken(audience); a.token == early {
		t.Fatal("the token is the same")
	}
	a.mustAttest()
}

// TestCertificateRequestIsBound: a request is worth nothing with another token
// or instance, which is what somebody who saw it would have.
func TestCertificateRequestIsBound(t *testing.T) {
	r := start(t)
	a, b := r.admit("agent", nil, nil), r.admit("other", nil, nil)
	seen := a.request()
	req := b.request()
	req.Csr = seen.Csr
	_, err := b.send(req)
	r.refusedFor(err, "csr")
	again := a.request()
	again.Csr, again.Instance = seen.Csr, newInstance()
	_, err = a.send(again)
	r.refusedFor(err, "csr")
	if _, err := a.send(seen); err != nil {
		t.Errorf("the request itself: %v", err)
	}
}

// TestOneKey: one live key a pod, until the kubelet reports another start of
// its sidecar.
func TestOneKey(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	first, firstKey := *a.svid, a.key

	t.Run("the same key again", func(t *testing.T) {
		r.t = t
		a.mustAttest() // an answer that was lost
		if _, err := a.send(a.request(), first); err != nil {
			t.Errorf("renewal: %v", err)
		}
	})
	t.Run("second key without a restart", func(t *testing.T) {
		r.t = t
		a.key, a.instance = newKey(t), newInstance()
		_, err := a.attest()
		r.refusedFor(err, "second_key")
	})
	t.Run("second key that shows the SVID of the first", func(t *testing.T) {
		r.t = t
		_, err := a.send(a.request(), first)
		r.refusedFor(err, "renewal")
	})
	t.Run("SVID of another pod", func(t *testing.T) {
		r.t = t
		b := r.admit("other", nil, nil)
		b.key = firstKey // as if it had been stolen
		_, err := b.send(b.request(), first)
		r.refusedFor(err, "renewal")
	})
	t.Run("after a restart", func(t *testing.T) {
		r.t = t
		a.report("containerd://start-2", 1)
		a.mustAttest()
	})
	t.Run("key of the start before", func(t *testing.T) {
		r.t = t
		second := a.key
		a.key = firstKey
		_, err := a.attest()
		r.refusedFor(err, "second_key")
		a.svid = &first
		_, err = a.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "second_key")
		a.key = second
	})
	t.Run("key that outlived its sidecar", func(t *testing.T) {
		r.t = t
		a.report("containerd://start-3", 2)
		_, err := a.attest()
		r.refusedFor(err, "second_key")
	})
}

// TestSecondReplica: what one replica noted, another knows.
func TestSecondReplica(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	r.metrics = newRegistry()
	r.serve()
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("the SVID of one replica at the other: %v", err)
	}
	a.key = newKey(t)
	_, err := a.attest()
	r.refusedFor(err, "second_key")
}

// TestSecondKeyAlerts: a refused second key is an alert once the kubelet had
// time to report a restart, and none if it did.
func TestSecondKeyAlerts(t *testing.T) {
	r := start(t)
	for _, tt := range []struct {
		name    string
		restart bool
		alerts  float64
	}{{"attack", false, 1}, {"restart that the kubelet reports late", true, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			before := r.alerts()
			a := r.admit("agent-"+strings.ReplaceAll(tt.name, " ", "-"), nil, nil)
			a.mustAttest()
			a.key = newKey(t)
			_, err := a.attest()
			r.refusedFor(err, "second_key")
			r.server.Judge(t.Context())
			if got := r.alerts(); got != before {
				t.Fatalf("an alert before the grace ends")
			}
			if tt.restart {
				a.report("containerd://start-2", 1)
			}
			r.ahead.Add(int64(time.Minute))
			r.server.Judge(t.Context())
			if got := r.alerts() - before; got != tt.alerts {
				t.Errorf("%v alerts, want %v", got, tt.alerts)
			}
			list := &corev1.EventList{}
			if err := r.c.List(t.Context(), list, client.InNamespace(r.ns)); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, e := range list.Items {
				if e.Reason == "SecondIdentityKey" && e.InvolvedObject.UID == a.pod.UID && e.Type == corev1.EventTypeWarning {
					n++
				}
			}
			if n != int(tt.alerts) {
				t.Errorf("%d events on the pod, want %v", n, tt.alerts)
			}
		})
	}
}

// TestUpgrade: pods of an older template or image renew and go on while it is
// accepted; the operator counts and retires it.
func TestUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name    string
		upgrade func(*inject.Config)
		reason  string
	}{
		{"template", func(c *inject.Config) { c.HealthPort = 15099 }, "template"},
		{"image", func(c *inject.Config) { c.Image = newImage }, "template"},
		{"both", func(c *inject.Config) { c.Image, c.HealthPort = newImage, 15099 }, "template"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t)
			r.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "attache-guard", Namespace: r.control}})
			r.accept(r.inject) // the replica before
			r.serveSet(t)
			r.accept(r.inject)
			old := r.admit("old", nil, nil)
			old.mustAttest()
			was := r.inject
			tt.upgrade(&r.inject)
			r.accept(r.inject)
			fresh := r.admit("new", nil, nil)
			fresh.mustAttest()
			if _, err := old.send(old.request(), *old.svid); err != nil {
				t.Fatalf("the old pod's renewal after the upgrade: %v", err)
			}
			if _, err := old.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
				t.Fatalf("the old pod's token after the upgrade: %v", err)
			}
			if n, of := r.counted(t); n != 1 || of != 1 {
				t.Errorf("%d pods of the new one and %d of the old one are counted, want 1 and 1", n, of)
			}
			retire(t, r, was)
			_, err := old.send(old.request(), *old.svid)
			r.refusedFor(err, tt.reason)
			if !strings.Contains(err.Error(), "retired") {
				t.Errorf("the refusal does not say why: %v", err)
			}
			_, err = old.jwt(&controlpb.JWTRequest{Audience: upstream})
			r.refusedFor(err, tt.reason)
			if _, err := fresh.send(fresh.request(), *fresh.svid); err != nil {
				t.Errorf("the new pod: %v", err)
			}
			// Admission that still makes the old one does not bring it back.
			r.serveSet(t)
			r.accept(was)
			_, err = old.send(old.request(), *old.svid)
			r.refusedFor(err, tt.reason)
		})
	}
}

const newImage = "registry.example/attache-sidecar@sha256:3333333333333333333333333333333333333333333333333333333333333333"

// counted are the pods of what is accepted newest, and of the rest.
func (r *rig) counted(t *testing.T) (newest, rest int) {
	t.Helper()
	set, err := r.set.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pods, err := issuer.List(t.Context(), r.c, r.control)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := r.inject.Templates()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range set {
		for _, p := range pods {
			if !a.Has(p) {
				continue
			}
			if a.Image == mine[0].Image && slices.ContainsFunc(mine, func(m inject.Template) bool { return m.Hash == a.Template }) {
				newest++
			} else {
				rest++
			}
		}
	}
	return newest, rest
}

// TestRetiredOnTheWatch: a pod that has not changed is refused, too, and the
// guards' list follows.
func TestRetiredOnTheWatch(t *testing.T) {
	r := start(t)
	r.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "attache-guard", Namespace: r.control}, Data: map[string]string{"images": "kept"}})
	r.serveSet(t)
	r.accept(r.inject)
	guard := func() map[string]string {
		cm := &corev1.ConfigMap{}
		if err := r.c.Get(t.Context(), types.NamespacedName{Namespace: r.control, Name: "attache-guard"}, cm); err != nil {
			t.Fatal(err)
		}
		return cm.Data
	}
	if g := guard(); g["images.accepted"] != goodImage || g["images"] != "kept" {
		t.Errorf("guard: %q", g)
	}
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Fatal(err)
	}
	set, err := r.set.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range set {
		if _, err := r.set.Retire(t.Context(), s.Name()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the refusal", func() bool {
		_, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
		return err != nil && r.lastEvent().Reason == "template"
	})
	if g := guard(); strings.Contains(g["images.accepted"], goodImage) {
		t.Errorf("guard still accepts the image: %q", g)
	}
}

// TestLabelsAreFrozen: a pod whose labels changed gets nothing more.
func TestLabelsAreFrozen(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(map[string]string)
		frozen bool
	}{
		{"changed", func(l map[string]string) { l["app"] = "billing" }, true},
		{"added", func(l map[string]string) { l["team"] = "finance" }, true},
		{"removed", func(l map[string]string) { delete(l, "app") }, true},
		{"one that no policy selects on", func(l map[string]string) { l["leader"] = "yes" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, func(c *issuer.Config, _ *issuer.KeysConfig) {
				c.Frozen = func(_, label string) bool { return label != "leader" }
			})
			a := r.admit("agent", labelled("app", "web"), nil)
			a.mustAttest()
			a.update(func(p *corev1.Pod) { tt.change(p.Labels) })
			_, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
			_, err2 := a.send(a.request(), *a.svid)
			if !tt.frozen {
				if err != nil || err2 != nil {
					t.Errorf("got %v, %v", err, err2)
				}
				return
			}
			r.refusedFor(err, "labels_changed")
			r.refusedFor(err2, "labels_changed")
			// Put back, the pod goes on.
			a.update(func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} })
			if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
				t.Errorf("with its labels back: %v", err)
			}
		})
	}
}

// TestExpiredSVID: it is refused at the handshake, and its key may attest
// again with the token.
func TestExpiredSVID(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	then, err := issuer.OpenKeys(t.Context(), issuer.KeysConfig{
		Client: r.c, Namespace: r.control, TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test"),
		Now: func() time.Time { return time.Now().Add(-2 * time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://cluster.test/ns/" + r.ns + "/sa/default")
	old, err := then.Issuer().SignX509(id, a.key.Public(), peer.Subject(string(a.pod.UID)))
	if err != nil {
		t.Fatal(err)
	}
	a.svid = &tls.Certificate{Certificate: [][]byte{old[0].Raw}, PrivateKey: a.key}
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err == nil {
		t.Error("a token for an SVID that expired an hour ago")
	}
	_, err = a.dial().JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream})
	r.refusedFor(err, "no_svid")
	a.mustAttest()
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("after attesting again: %v", err)
	}
}

// TestForeignCertificate: authorities of others are not ours.
func TestForeignCertificate(t *testing.T) {
	r, foreign := start(t), start(t)
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	b := foreign.admit("agent", nil, nil)
	b.mustAttest()
	if _, err := a.dial(*b.svid).JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream}); err == nil {
		t.Error("an SVID of another authority was accepted")
	}
	self := selfSigned(t, a)
	if _, err := a.dial(self).JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream}); err == nil {
		t.Error("a self-signed certificate was accepted")
	}
}

func selfSigned(t *testing.T, a *agent) tls.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(a.svid.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(nil, c, c, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// TestPosture: what is known of a pod, and what becomes known.
func TestPosture(t *testing.T) {
	r := start(t)
	ns := &corev1.Namespace{}
	if err := r.c.Get(t.Context(), types.NamespacedName{Name: r.ns}, ns); err != nil {
		t.Fatal(err)
	}
	ns.Annotations = map[string]string{"attache.dev/owners": "team-a@example, team-b@example"}
	if err := r.c.Update(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	deployment, replicas := r.controllers(t)
	a := r.admit("agent", func(p map[string]any) {
		p["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{
			"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replicas.Name, "uid": string(replicas.UID), "controller": true,
		}}
		spec(p)["securityContext"] = map[string]any{"runAsNonRoot": true}
	}, nil)
	w := a.mustAttest().Workload
	want := map[string]string{
		"digest": "pending", "owner_chain": "ReplicaSet/" + replicas.Name + ",Deployment/" + deployment.Name, "controller": "Deployment/" + deployment.Name,
		"run_as_non_root": "true", "privileged": "false", "read_only_root_filesystem": "false", "capabilities_dropped": "false",
		"sidecar_digest": goodImage[strings.Index(goodImage, "sha256:"):],
	}
	for k, v := range want {
		if w.Posture[k] != v {
			t.Errorf("posture %s: got %q, want %q", k, w.Posture[k], v)
		}
	}
	if w.Owner != "team-a@example" || w.OwnerSource != "namespace" {
		t.Errorf("owner: got %q from %q", w.Owner, w.OwnerSource)
	}
	a.report("containerd://start-1", 0, appRuns)
	a.read()
	now, err := r.server.Workload(t.Context(), a.pod)
	if err != nil {
		t.Fatal(err)
	}
	image := "registry.example/agent@" + appDigest
	if now.Posture["digest"] != "known" || !slices.Equal(now.Images, []string{image}) {
		t.Errorf("after the start: digest %q, images %v", now.Posture["digest"], now.Images)
	}
	resp, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
	if err != nil {
		t.Fatal(err)
	}
	if c := claimsOf(t, resp.Token)["attache"].(map[string]any); !strings.Contains(mustJSON(t, c["images"]), appDigest) {
		t.Errorf("the token says %v", c)
	}
	a.debug(t, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug-1", Image: "registry.example/shell"}})
	a.read()
	if now, err = r.server.Workload(t.Context(), a.pod); err != nil || now.Posture["ephemeral_containers"] != "debug-1" || now.Posture["digest"] != "pending" {
		t.Errorf("with an ephemeral container: %v, %v", now, err)
	}
	// A replica that never attested the pod says the same of it: bundles have
	// one version everywhere. Both say what was attested of the sidecar.
	r.serve(func(c *issuer.Config, _ *issuer.KeysConfig) { c.Metrics = nil })
	other, err := r.server.Workload(t.Context(), a.pod)
	if err != nil || !proto.Equal(now, other) || other.Posture["sidecar_template"] != w.Posture["sidecar_template"] || w.Posture["sidecar_template"] == "" {
		t.Errorf("another replica: %v, %v; this one: %v", other, err, now)
	}
}

// TestForget: keys of pods that are gone are forgotten, others are not.
func TestForget(t *testing.T) {
	r := start(t)
	gone, stays := r.admit("gone", nil, nil), r.admit("stays", nil, nil)
	gone.mustAttest()
	stays.mustAttest()
	if err := r.c.Delete(t.Context(), gone.pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	if err := r.server.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	names := r.leases(t)
	if contains(names, string(gone.pod.UID)) || !contains(names, string(stays.pod.UID)) {
		t.Errorf("leases: %v", names)
	}
	_, err := gone.jwt(&controlpb.JWTRequest{Audience: upstream})
	r.refusedFor(err, "second_key")
}

// TestAttestRate: an address gets so many attestations, and others theirs.
func TestAttestRate(t *testing.T) {
	r := start(t, func(c *issuer.Config, _ *issuer.KeysConfig) { c.AttestRate, c.AttestBurst = 0.001, 3 })
	a, b := r.admit("agent", nil, nil), r.admit("other", nil, nil)
	for range 3 {
		a.mustAttest()
	}
	_, err := a.attest()
	r.refusedFor(err, "rate")
	b.mustAttest()
}

// TestByTheKubelet: the node's own identity gets a token for its pod, as a
// kubelet does, and another node's does not.
func TestByTheKubelet(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	as := func(node string) client.Client {
		config, err := r.env.User("system:node:"+node, "system:nodes")
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New(config, client.Options{Scheme: scheme.Scheme})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	admin, token := r.c, ""
	request := func(node string) error {
		tr := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
			Audiences: []string{audience}, BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: a.name, UID: a.pod.UID},
		}}
		sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: r.ns}}
		err := as(node).SubResource("token").Create(t.Context(), sa, tr)
		token = tr.Status.Token
		return err
	}
	// The node authorizer's graph follows the API by itself.
	eventually(t, "a token for the pod's node", func() bool { return request(r.node) == nil })
	a.token = token
	r.c = as(r.node)
	a.read()
	a.pod.Status.Phase = corev1.PodRunning
	if err := r.c.Status().Update(t.Context(), a.pod); err != nil {
		t.Errorf("the kubelet's report: %v", err)
	}
	r.c = admin
	a.mustAttest()
	r.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.node + "-other"}})
	if err := request(r.node + "-other"); !apierrors.IsForbidden(err) {
		t.Errorf("a token of the pod for another node: %v", err)
	}
}
