package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/webhook/inject"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func (r *rig) alerts() float64 {
	r.t.Helper()
	all, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "attache_issuer_alerts_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	r.t.Fatal("no metric of alerts")
	return 0
}

func (r *rig) leases(t *testing.T) []string {
	t.Helper()
	list := &coordv1.LeaseList{}
	if err := r.c.List(t.Context(), list, client.InNamespace(r.control)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range list.Items {
		out = append(out, l.Name)
	}
	return out
}

// retire takes the templates of c out of the set, as an operator does.
func retire(t *testing.T, r *rig, c inject.Config) {
	t.Helper()
	list, err := c.Templates()
	if err != nil {
		t.Fatal(err)
	}
	for _, tm := range list {
		a := issuer.Accepted{Template: tm.Hash, Digest: tm.Image[strings.Index(tm.Image, "sha256:"):], Image: tm.Image}
		if ok, err := r.set.Retire(t.Context(), a.Name()); err != nil || !ok {
			t.Fatalf("retire %s: %v, %v", a.Name(), ok, err)
		}
	}
	r.serveSet(t)
}

// serveSet starts the replica anew: what it had read is forgotten.
func (r *rig) serveSet(t *testing.T) {
	t.Helper()
	r.metrics = newRegistry()
	r.t = t
	r.serve()
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// controllers makes a Deployment and its ReplicaSet.
func (r *rig) controllers(t *testing.T) (*appsv1.Deployment, *appsv1.ReplicaSet) {
	t.Helper()
	labels := map[string]string{"x": "y"}
	tpl := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "i"}}}}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: r.ns}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: tpl}}
	r.create(d)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: r.ns, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}},
		Spec:       appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: tpl},
	}
	r.create(rs)
	return d, rs
}

func claimsOf(t testing.TB, token string) map[string]any {
	t.Helper()
	tok, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := tok.UnsafeClaimsWithoutVerification(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestJWT(t *testing.T) {
	r := start(t)
	a := r.admit("agent", labelled("app", "web"), nil)
	a.mustAttest()
	resp, err := a.jwt(&controlpb.JWTRequest{Audience: upstream, Claims: []byte(`{"purpose":"x"}`)})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.ParseSigned(resp.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	keys := r.keys.Issuer().Keys(t.Context())
	var std jwt.Claims
	var more struct {
		Purpose string `json:"purpose"`
		Attache struct {
			Pod    string `json:"pod"`
			Node   string `json:"node"`
			PodUID string `json:"pod_uid"`
		} `json:"attache"`
	}
	if err := tok.Claims(keys.Key(tok.Headers[0].KeyID)[0].Key, &std, &more); err != nil {
		t.Fatalf("verify by the published keys: %v", err)
	}
	want := jwt.Expected{Issuer: "https://cluster.test", Subject: "spiffe://cluster.test/ns/" + r.ns + "/sa/default", AnyAudience: jwt.Audience{upstream}, Time: time.Now()}
	if err := std.Validate(want); err != nil {
		t.Error(err)
	}
	if life := std.Expiry.Time().Sub(std.IssuedAt.Time()); life > 5*time.Minute {
		t.Errorf("lives %v, want at most 5m", life)
	}
	if more.Purpose != "x" || more.Attache.Pod != "agent" || more.Attache.PodUID != string(a.pod.UID) || more.Attache.Node != r.node {
		t.Errorf("claims: %+v", more)
	}
	c := claimsOf(t, resp.Token)["attache"].(map[string]any)
	if c["labels"].(map[string]any)["app"] != "web" || c["posture"].(map[string]any)["digest"] != "pending" {
		t.Errorf("posture claims: %v", c)
	}
	e := r.lastEvent()
	if e.Kind != "jwt" || e.Outcome != "issued" || e.JTI != std.ID || e.JTI == "" || e.Audience != upstream || e.Pod != "agent" {
		t.Errorf("recorded: %+v", e)
	}
	if strings.Contains(r.logged(), resp.Token) || !strings.Contains(r.logged(), std.ID) {
		t.Error("the log holds the token, or lacks its id")
	}
}

func TestJWTRefusals(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	r.mu.Lock()
	r.clients = []string{"billing-client"}
	r.mu.Unlock()
	for _, tt := range []struct {
		name, reason string
		req          *controlpb.JWTRequest
	}{
		{"audience that is not in the policy", "audience_not_in_policy", &controlpb.JWTRequest{Audience: "https://evil.example"}},
		{"no audience", "bad_request", &controlpb.JWTRequest{}},
		{"long audience", "bad_request", &controlpb.JWTRequest{Audience: upstream + "/" + strings.Repeat("a", 2000)}},
		{"negative lifetime", "bad_request", &controlpb.JWTRequest{Audience: upstream, TtlSeconds: -1}},
		{"long claims", "bad_request", &controlpb.JWTRequest{Audience: upstream, Claims: []byte(`{"a":"` + strings.Repeat("a", 5000) + `"}`)}},
		{"claims that are no object", "bad_request", &controlpb.JWTRequest{Audience: upstream, Claims: []byte(`[1]`)}},
		{"claims that are null", "bad_request", &controlpb.JWTRequest{Audience: upstream, Claims: []byte(`null`)}},
		{"posture of its own", "bad_request", &controlpb.JWTRequest{Audience: upstream, Claims: []byte(`{"attache":{"pod":"other"}}`)}},
		{"subject of its own", "bad_request", &controlpb.JWTRequest{Audience: upstream, Claims: []byte(`{"Sub":"spiffe://cluster.test/ns/a/sa/b"}`)}},
		{"client id that is not in the policy", "audience_not_in_policy", &controlpb.JWTRequest{Audience: upstream, ClientId: "other-client"}},
		{"SPIFFE ID of another as client id", "audience_not_in_policy", &controlpb.JWTRequest{Audience: upstream, ClientId: "spiffe://cluster.test/ns/a/sa/b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			_, err := a.jwt(tt.req)
			r.refusedFor(err, tt.reason)
		})
	}
	t.Run("long lifetime is shortened", func(t *testing.T) {
		r.t = t
		resp, err := a.jwt(&controlpb.JWTRequest{Audience: upstream, TtlSeconds: 3600})
		if err != nil {
			t.Fatal(err)
		}
		if life := time.Until(resp.Expires.AsTime()); life > 5*time.Minute {
			t.Errorf("lives %v", life)
		}
	})
	t.Run("client ids of the policy and its own", func(t *testing.T) {
		r.t = t
		for _, id := range []string{"billing-client", "spiffe://cluster.test/ns/" + r.ns + "/sa/default"} {
			resp, err := a.jwt(&controlpb.JWTRequest{Audience: upstream, ClientId: id})
			if err != nil {
				t.Fatal(err)
			}
			if c := claimsOf(t, resp.Token); c["iss"] != id || c["sub"] != id {
				t.Errorf("client assertion: %v", c)
			}
		}
	})
	t.Run("from another address", func(t *testing.T) {
		r.t = t
		mine := a.address
		defer func() { a.address = mine }()
		a.address = nextAddress()
		_, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "address")
	})
	t.Run("foreign image since", func(t *testing.T) {
		r.t = t
		b := r.admit("patched", nil, nil)
		b.mustAttest()
		b.update(func(p *corev1.Pod) { // an image is mutable; the kubelet restarts the container with it
			for i := range p.Spec.InitContainers {
				if p.Spec.InitContainers[i].Name == inject.SidecarName {
					p.Spec.InitContainers[i].Image = evilImage
				}
			}
		})
		_, err := b.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "sidecar_digest")
	})
	t.Run("debugged since", func(t *testing.T) {
		r.t = t
		b := r.admit("debugged", nil, nil)
		b.mustAttest()
		b.debug(t, corev1.EphemeralContainer{TargetContainerName: inject.SidecarName, EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "registry.example/shell"}})
		_, err := b.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "debug_container")
	})
	t.Run("deleted pod", func(t *testing.T) {
		r.t = t
		b := r.admit("deleted", nil, nil)
		b.mustAttest()
		if err := r.c.Delete(t.Context(), b.pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		_, err := b.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "pod_gone")
	})
	t.Run("pod of the same name", func(t *testing.T) {
		r.t = t
		b := r.admit("again", nil, nil)
		b.mustAttest()
		svid := *b.svid
		if err := r.c.Delete(t.Context(), b.pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		c := r.admit("again", nil, nil)
		c.address = b.address
		c.report("containerd://start-1", 0)
		c.svid = &svid
		_, err := c.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, "pod_gone")
	})
}

// TestJWTRate: a pod gets so many tokens, and others theirs.
func TestJWTRate(t *testing.T) {
	r := start(t, func(c *issuer.Config, _ *issuer.KeysConfig) { c.JWTRate, c.JWTBurst = 0.001, 5 })
	a, b := r.admit("agent", nil, nil), r.admit("other", nil, nil)
	a.mustAttest()
	b.mustAttest()
	for range 5 {
		if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.jwt(&controlpb.JWTRequest{Audience: upstream})
	r.refusedFor(err, "rate")
	if _, err := b.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("another pod: %v", err)
	}
}

// TestRecordOrRefuse: what cannot be recorded is not issued.
func TestRecordOrRefuse(t *testing.T) {
	r := start(t, func(c *issuer.Config, _ *issuer.KeysConfig) {
		c.Record = func(_ context.Context, e issuer.Event) error {
			if e.Kind == "jwt" {
				return errors.New("the disk is full")
			}
			return nil
		}
	})
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err == nil || strings.Contains(err.Error(), "disk") {
		t.Errorf("got %v, want a refusal that says nothing of the cause", err)
	}
}

// headerOf is the key id and the algorithm of a token.
func headerOf(t testing.TB, token string) string {
	t.Helper()
	tok, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return tok.Headers[0].KeyID + " " + tok.Headers[0].Algorithm
}

// TestPeer: other services of the control plane are told of a caller only while
// its pod would be attested.
func TestPeer(t *testing.T) {
	r := start(t)
	who := func(a *agent) (*controlpb.JWTResponse, error) {
		return a.jwt(&controlpb.JWTRequest{Audience: peerAudience})
	}
	a := r.admit("agent", nil, nil)
	a.mustAttest()
	got, err := who(a)
	if err != nil || got.Id != string(a.pod.UID) || got.Token != "spiffe://cluster.test/ns/"+r.ns+"/sa/default" {
		t.Fatalf("got %v, %v", got, err)
	}
	_, err = a.dial().JWT(t.Context(), &controlpb.JWTRequest{Audience: peerAudience})
	r.refusedFor(err, "no_svid")
	mine := a.address
	a.address = nextAddress()
	_, err = who(a)
	r.refusedFor(err, "address")
	a.address = mine
	stolen := *a.svid
	a.key, a.instance = newKey(t), newInstance()
	a.report("containerd://start-2", 1)
	a.mustAttest()
	if _, err := who(a); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	_, err = a.dial(stolen).JWT(t.Context(), &controlpb.JWTRequest{Audience: peerAudience})
	r.refusedFor(err, "second_key")
	a.debug(t, corev1.EphemeralContainer{TargetContainerName: inject.SidecarName, EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "registry.example/shell"}})
	_, err = who(a)
	r.refusedFor(err, "debug_container")
	// Looking costs reads of the API server: one pod cannot use up all.
	for range 500 {
		if _, err = who(a); status.Code(err) == codes.ResourceExhausted {
			break
		}
	}
	r.refusedFor(err, "rate")
}
