package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/control/reconcile"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/client/clienttest"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/test/cluster"
)

const patience = 2 * time.Minute

// rig is an API server with our resources, and one replica's engine.
type rig struct {
	t      *testing.T
	env    *cluster.Env
	client client.Client
	ns     string // opted in
	own    string // the control plane's
	ca     *xdstest.Authority
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	if err := crd.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func setup(t *testing.T) *rig {
	t.Helper()
	env := cluster.API(t)
	if err := env.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: newScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, env: env, client: c, ca: xdstest.NewAuthority(t)}
	r.ns = env.Namespace(t, map[string]string{api.InjectLabel: api.InjectEnabled})
	r.own = env.Namespace(t, nil)
	t.Cleanup(func() { // cluster-scoped objects would meet the next test
		ctx := context.Background()
		for _, o := range []client.Object{&crd.ClusterAccessPolicy{}, &crd.ClusterCredentialProvider{}, &crd.Revocation{}, &crd.AttacheConfig{}} {
			_ = c.DeleteAllOf(ctx, o)
		}
	})
	return r
}

// replica is one replica of the control plane.
type replica struct {
	*reconcile.Engine
	store  *xds.Server
	events *events.FakeRecorder
	addr   string
	writes sync.Map // of status, by name: *atomic.Int64
	stop   func()
}

func (p *replica) written(name string) int64 {
	n, _ := p.writes.LoadOrStore(name, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

// counting is a client that counts writes of status.
type counting struct {
	client.Client
	n *sync.Map
}

func (c *counting) Status() client.SubResourceWriter {
	return &countingStatus{c.Client.Status(), c.n}
}

type countingStatus struct {
	client.SubResourceWriter
	n *sync.Map
}

func (c *countingStatus) Apply(ctx context.Context, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
	n, _ := c.n.LoadOrStore(o.(interface{ GetName() string }).GetName(), new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	return c.SubResourceWriter.Apply(ctx, o, opts...)
}

func (r *rig) replica(name string, leads bool) *replica {
	r.t.Helper()
	s := newScheme(r.t)
	config := rest.CopyConfig(r.env.Config)
	config.QPS, config.Burst = 200, 400
	ca, err := cache.New(config, cache.Options{Scheme: s, ByObject: map[client.Object]cache.ByObject{
		&corev1.Pod{}:       {Transform: reconcile.Strip, Namespaces: map[string]cache.Config{r.ns: {}}},
		&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{r.own: {}}},
	}})
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		r.t.Fatal(err)
	}
	p := &replica{events: events.NewFakeRecorder(100)}
	var engine *reconcile.Engine
	store := xds.New(xds.Config{Current: func() bool { return engine.Current() }})
	var elected chan struct{}
	if !leads {
		elected = make(chan struct{})
	}
	engine, err = reconcile.New(reconcile.Config{
		Cache: ca, Client: &counting{Client: c, n: &p.writes}, Store: store, Namespace: r.own, Replica: name, Elected: elected, Settle: 10 * time.Millisecond,
		TrustDomain: xdstest.TrustDomain, Workload: workload, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
		Check:    func(b *api.Bundle) error { _, err := policy.Compile(b); return err },
		Recorder: p.events,
		Root: func(_ context.Context, namespace, name, key string) error {
			if name == "missing" {
				return fmt.Errorf("%w: Secret %s/%s does not exist", minting.ErrDenied, namespace, name)
			}
			return nil
		},
		Ping: func(ctx context.Context) error { return c.Get(ctx, client.ObjectKey{Name: r.own}, &corev1.Namespace{}) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := engine.Watch(ctx); err != nil {
		r.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = ca.Start(ctx) })
	wg.Go(func() {
		if err := engine.Start(ctx); err != nil && !errors.Is(err, context.Canceled) {
			r.t.Errorf("engine ended: %v", err)
		}
	})
	addr, stopServing := r.ca.Serve("", store.Register)
	p.Engine, p.store, p.addr = engine, store, addr
	p.stop = sync.OnceFunc(func() { store.Close(); stopServing(); cancel(); wg.Wait() })
	r.t.Cleanup(p.stop)
	r.until("replica "+name+" is ready", func() (bool, string) { return engine.Ready() == nil && engine.Current(), "" })
	return p
}

func workload(_ context.Context, p *corev1.Pod) (*controlpb.Workload, error) {
	return &controlpb.Workload{
		SpiffeId:  "spiffe://" + xdstest.TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.Spec.ServiceAccountName,
		Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName, Pod: p.Name, PodUid: string(p.UID), Labels: p.Labels, Owner: "team@example.com",
	}, nil
}

// until asks until the answer is yes.
func (r *rig) until(what string, ok func() (bool, string)) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, state := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("never became so: %s; it is %s", what, state)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.t.Context().Done():
			r.t.Fatal(r.t.Context().Err())
		}
	}
}

// apply applies manifests; NS stands for the namespace.
func (r *rig) apply(manifests string) {
	r.t.Helper()
	out, err := r.env.Kubectl(r.t.Context(), strings.ReplaceAll(manifests, "NS", r.ns), "apply", "--server-side", "--field-manager=author", "--force-conflicts", "-f", "-")
	if err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

func (r *rig) pod(name string, labels map[string]string) *corev1.Pod {
	r.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: name, Labels: labels, Annotations: map[string]string{api.StatusAnnotation: "{}"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "agent"}}, TerminationGracePeriodSeconds: new(int64)},
	}
	if err := r.client.Create(r.t.Context(), p); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) sidecar(p *replica, pod *corev1.Pod) *clienttest.Sidecar {
	svid := r.ca.SVID(pod.Namespace, "default", string(pod.UID), time.Now().Add(time.Hour))
	return clienttest.Start(r.t, p.addr, r.ca.Client(svid), string(pod.UID))
}

func (r *rig) condition(o client.Object, typ string) (metav1.Condition, crd.Status) {
	r.t.Helper()
	if err := r.client.Get(r.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		r.t.Fatal(err)
	}
	var s crd.Status
	switch v := o.(type) {
	case *crd.AccessPolicy:
		s = v.Status
	case *crd.CredentialProvider:
		s = v.Status
	case *crd.ClusterAccessPolicy:
		s = v.Status
	}
	c := meta.FindStatusCondition(s.Conditions, typ)
	if c == nil || c.ObservedGeneration != o.GetGeneration() {
		return metav1.Condition{}, s
	}
	return *c, s
}

func (r *rig) becomes(o client.Object, typ string, status metav1.ConditionStatus, reason, text string) crd.Status {
	r.t.Helper()
	var s crd.Status
	r.until(fmt.Sprintf("%T %s has %s=%s (%s, %q)", o, o.GetName(), typ, status, reason, text), func() (bool, string) {
		var c metav1.Condition
		c, s = r.condition(o, typ)
		return c.Status == status && c.Reason == reason && strings.Contains(c.Message, text), fmt.Sprintf("%+v", s)
	})
	return s
}

func (r *rig) policyObject(name string) *crd.AccessPolicy {
	return &crd.AccessPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: name}}
}

const provider = `
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: model, namespace: NS}
spec:
  destinations: [{host: api.model.example}]
  apiKey: {secretRef: {name: model-key, key: key}}
`

const allow = `
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: agents, namespace: NS}
spec:
  rules:
  - {name: model, hosts: [api.model.example], action: allow, credential: {provider: model}}
`

// decide decides a GET of a host by what a sidecar was sent.
func decide(t *testing.T, b *controlpb.Bundle, host string) policy.Decision {
	t.Helper()
	docs, err := api.ParseFor(api.PlacePod, "documents", b.GetDocuments())
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Compile(docs)
	if err != nil {
		t.Fatal(err)
	}
	return set.Decide(&policy.Request{Host: host, Port: 443, Scheme: "https", Method: "GET", Path: "/", Protocol: policy.HTTP, Workload: clienttest.Workload(t, b), Time: time.Now()})
}

// A policy reaches the sidecars that it concerns and its status says so; a bad
// edit leaves the last good one in force, also for a replica that starts
// later; a repaired one goes out.
func TestPolicyLife(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	pod := r.pod("agent", nil)
	s := r.sidecar(a, pod)
	first := s.Next(t)
	if d := decide(t, first, "api.model.example"); d.Verdict != policy.Deny {
		t.Errorf("without a policy the verdict is %v", d.Verdict)
	}
	r.apply(provider + "---" + allow)
	good := s.Until(t, func(b *controlpb.Bundle) bool {
		return strings.Contains(string(b.GetDocuments()), "agents") && strings.Contains(string(b.GetDocuments()), "model-key")
	})
	if d := decide(t, good, "api.model.example"); d.Verdict != policy.Inject {
		t.Errorf("the verdict is %v: %s", d.Verdict, d.Reason)
	}
	st := r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "1 of 1 sidecars have generation 1")
	if st.Sidecars.Summary != "1/1" || st.InForce == nil || st.InForce.Generation != 1 || st.InForce.Spec != nil {
		t.Errorf("status is %+v", st)
	}
	r.becomes(r.policyObject("agents"), crd.ConditionAccepted, metav1.ConditionTrue, crd.ReasonAccepted, "")
	r.becomes(r.policyObject("agents"), crd.ConditionResolvedRefs, metav1.ConditionTrue, crd.ReasonResolvedRefs, "")

	// What no schema sees: an expression that does not compile.
	r.apply(strings.Replace(allow, "action: allow", `when: "nonsense(", action: allow`, 1))
	st = r.becomes(r.policyObject("agents"), crd.ConditionAccepted, metav1.ConditionFalse, string(api.ReasonInvalid), "generation 1 stays in force")
	if st.InForce == nil || st.InForce.Generation != 1 || st.InForce.Spec == nil {
		t.Errorf("in force is %+v", st.InForce)
	}
	r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionFalse, "NotInForce", "")
	s.Quiet(t)
	select {
	case e := <-a.events.Events:
		if !strings.HasPrefix(e, "Warning Invalid ") || !strings.Contains(e, "generation 1 stays in force") {
			t.Errorf("the event is %s", e)
		}
	case <-time.After(patience):
		t.Error("no event tells of the rejection")
	}

	// A replica that never saw the good one makes the same bundle, so that a
	// client that moves there is sent nothing.
	b := r.replica("b", false)
	r.until("b serves what a serves", func() (bool, string) {
		x, ok1 := a.store.Bundle(string(pod.UID))
		y, ok2 := b.store.Bundle(string(pod.UID))
		return ok1 && ok2 && x.Same(y), fmt.Sprint(ok1, ok2)
	})
	s.Move(b.addr)
	r.until("the sidecar is at b", func() (bool, string) {
		ack, ok := b.store.Acks()[string(pod.UID)]
		return ok && ack.Bundle != nil, fmt.Sprint(ok)
	})
	s.Quiet(t)

	r.apply(strings.Replace(allow, "action: allow", "methods: [GET], action: allow", 1))
	s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), "methods") })
	// The leader learns of it from b's report.
	st = r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "1 of 1 sidecars have generation 3")
	if st.InForce.Spec != nil {
		t.Errorf("a spec is kept of generation %d", st.InForce.Generation)
	}
}

// A policy that sends a provider's credential elsewhere says so in its status,
// and gives none.
func TestConfusedDeputy(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	r.apply(provider + "---" + strings.Replace(allow, "hosts: [api.model.example]", "hosts: [evil.example]", 1))
	r.becomes(r.policyObject("agents"), crd.ConditionResolvedRefs, metav1.ConditionFalse, string(api.ReasonDestinationNotAllowed), "evil.example")
	s := r.sidecar(a, r.pod("agent", nil))
	b := s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), "evil.example") })
	for _, host := range []string{"evil.example", "api.model.example"} {
		if d := decide(t, b, host); d.Verdict != policy.Deny {
			t.Errorf("%s: the verdict is %v: %s", host, d.Verdict, d.Reason)
		}
	}
	// A provider of another namespace, and one of the cluster that is not
	// granted, cannot be used either.
	r.apply(`
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: shared}
spec:
  allowedNamespaces: {names: [somebody-else]}
  destinations: [{host: api.model.example}]
  apiKey: {secretRef: {name: shared-key, key: key}}
---` + strings.Replace(allow, "provider: model", "provider: shared", 1))
	r.becomes(r.policyObject("agents"), crd.ConditionResolvedRefs, metav1.ConditionFalse, string(api.ReasonRefNotPermitted), "shared")
	b = s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), "shared") })
	if strings.Contains(string(b.GetDocuments()), "shared-key") {
		t.Error("a provider that is not granted is in the bundle")
	}
	if d := decide(t, b, "api.model.example"); d.Verdict != policy.Deny {
		t.Errorf("the verdict is %v", d.Verdict)
	}
}

// A NACK becomes a condition with the sidecar's own words.
func TestRefusedBySidecar(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	s := r.sidecar(a, r.pod("agent", nil))
	s.Next(t)
	s.Refuse(errors.New("no room for this policy"))
	r.apply(provider + "---" + allow)
	st := r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionFalse, crd.ReasonRejected, "no room for this policy")
	if st.Sidecars.Rejected != 1 || st.Sidecars.Programmed != 0 {
		t.Errorf("status is %+v", st.Sidecars)
	}
	s.Refuse(nil)
	r.apply(strings.Replace(allow, "action: allow", "methods: [GET], action: allow", 1))
	r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
}

// Pods get what concerns them, and nothing when they are not, or no longer,
// opted in; they share what they can.
func TestSelection(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	r.apply(provider + "---" + strings.Replace(allow, "rules:", "workloads: [{matchLabels: {app: writer}}]\n  rules:", 1))
	writer, reader := r.pod("writer", map[string]string{"app": "writer", "pod": "1"}), r.pod("reader", map[string]string{"app": "reader"})
	second := r.pod("writer-2", map[string]string{"app": "writer", "pod": "2"})
	get := func(p *corev1.Pod) *xds.Bundle {
		var b *xds.Bundle
		r.until(p.Name+" has a bundle", func() (bool, string) { b, _ = a.store.Bundle(string(p.UID)); return b != nil, "" })
		return b
	}
	w, rd, w2 := get(writer), get(reader), get(second)
	r.until("the writer has its policy", func() (bool, string) {
		w, w2 = get(writer), get(second)
		return strings.Contains(string(w.Documents), "agents") && strings.Contains(string(w2.Documents), "agents"), ""
	})
	if &w.Documents[0] != &w2.Documents[0] {
		t.Error("pods with equal labels do not share their documents")
	}
	if strings.Contains(string(rd.Documents), "agents") || strings.Contains(string(rd.Documents), "model") {
		t.Errorf("the reader was given %s", rd.Documents)
	}
	if w.Objects[xds.Object{Kind: "AccessPolicy", Namespace: r.ns, Name: "agents"}] != 1 {
		t.Errorf("objects are %v", w.Objects)
	}
	// One without the sidecar's annotation gets none.
	plain := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "plain"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	if err := r.client.Create(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	// A deleted pod is forgotten.
	if err := r.client.Delete(t.Context(), reader); err != nil {
		t.Fatal(err)
	}
	r.until("the reader is gone", func() (bool, string) { _, ok := a.store.Bundle(string(reader.UID)); return !ok, "" })
	if _, ok := a.store.Bundle(string(plain.UID)); ok {
		t.Error("a pod without sidecar has a bundle")
	}
	// So are all once the namespace is opted out.
	ns := &corev1.Namespace{}
	if err := r.client.Get(t.Context(), client.ObjectKey{Name: r.ns}, ns); err != nil {
		t.Fatal(err)
	}
	delete(ns.Labels, api.InjectLabel)
	if err := r.client.Update(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	r.until("the writers are gone", func() (bool, string) { _, ok := a.store.Bundle(string(writer.UID)); return !ok, "" })
}

// A revocation reaches the sidecars; its status counts who acknowledged it and
// lists who did not, with the end of all that they may hold.
func TestRevocation(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	r.apply(provider + "---" + allow)
	here, away := r.pod("here", nil), r.pod("away", nil)
	s := r.sidecar(a, here)
	s.Next(t)
	rev := &crd.Revocation{ObjectMeta: metav1.ObjectMeta{Name: "incident-" + r.ns}}
	rev.Spec.Owner, rev.Spec.Reason = "team@example.com", "key was seen in a log"
	if err := r.client.Create(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if got := s.Revoked(t); got.GetId() != rev.Name || got.GetOwner() != "team@example.com" || !got.GetNotBefore().AsTime().Equal(rev.CreationTimestamp.Add(time.Second)) {
		t.Errorf("the sidecar was told %v", got)
	}
	r.until("one acknowledged, one is outstanding", func() (bool, string) {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); err != nil {
			t.Fatal(err)
		}
		return rev.Status.Acknowledged == 1 && rev.Status.Total == 2, fmt.Sprintf("%+v", rev.Status)
	})
	o := rev.Status.Outstanding
	if len(o) != 1 || o[0].Pod != "away" || o[0].UID != string(away.UID) {
		t.Fatalf("outstanding is %+v", o)
	}
	// It was not heard since, so its policy ends 15 minutes after the revocation
	// and what it then has minted 5 minutes later.
	if d := o[0].LatestExpiry.Sub(rev.CreationTimestamp.Time); d < 20*time.Minute || d > 22*time.Minute {
		t.Errorf("what it holds ends after %v", d)
	}
	s2 := r.sidecar(a, away)
	s2.Revoked(t)
	r.until("it is complete", func() (bool, string) {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); err != nil {
			t.Fatal(err)
		}
		c := meta.FindStatusCondition(rev.Status.Conditions, crd.ConditionComplete)
		return c != nil && c.Status == metav1.ConditionTrue && len(rev.Status.Outstanding) == 0, fmt.Sprintf("%+v", rev.Status)
	})
}

// A guard rail that was in force, and is bad now without anybody knowing what
// it said, holds everything: nobody gets documents without it.
func TestLostGuardRail(t *testing.T) {
	r := setup(t)
	const rail = `
apiVersion: attache.dev/v1alpha1
kind: ClusterAccessPolicy
metadata: {name: rail}
spec:
  rules:
  - {name: never, hosts: [api.model.example], methods: [DELETE], action: deny}
`
	a := r.replica("a", true)
	r.apply(provider + "---" + allow + "---" + rail)
	pod := r.pod("agent", nil)
	s := r.sidecar(a, pod)
	s.Until(t, func(b *controlpb.Bundle) bool {
		return strings.Contains(string(b.GetDocuments()), "rail") && strings.Contains(string(b.GetDocuments()), "agents")
	})
	obj := &crd.ClusterAccessPolicy{ObjectMeta: metav1.ObjectMeta{Name: "rail"}}
	r.becomes(obj, crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
	a.stop()
	// Edited while no control plane runs, and no webhook either.
	r.apply(strings.Replace(rail, "action: deny", `when: "nonsense(", action: deny`, 1))
	b := r.replica("b", true)
	st := r.becomes(obj, crd.ConditionAccepted, metav1.ConditionFalse, string(api.ReasonInvalid), "generation 1 was in force, and what it said is not known any more")
	if st.InForce == nil || st.InForce.Generation != 1 {
		t.Errorf("in force is %+v", st.InForce)
	}
	s.Move(b.addr)
	r.until("the sidecar is heard at b", func() (bool, string) {
		ack, ok := b.store.Acks()[string(pod.UID)]
		return ok && !ack.Heard.IsZero(), ""
	})
	fresh := r.sidecar(b, r.pod("new", nil))
	r.until("the new pod is known", func() (bool, string) { return len(b.store.Acks()) == 2, "" })
	s.Quiet(t)
	fresh.Quiet(t)
	r.apply(rail)
	got := fresh.Next(t)
	if d := decide(t, got, "api.model.example"); d.Verdict != policy.Inject || !strings.Contains(string(got.GetDocuments()), "rail") {
		t.Errorf("after the repair: %v, %s", d.Verdict, got.GetDocuments())
	}
}

// A provider whose Secret cannot be read says so.
func TestSecretNotReadable(t *testing.T) {
	r := setup(t)
	r.replica("a", true)
	r.apply(provider)
	p := &crd.CredentialProvider{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "model"}}
	r.becomes(p, crd.ConditionResolvedRefs, metav1.ConditionTrue, crd.ReasonResolvedRefs, "")
	r.apply(strings.Replace(provider, "model-key", "missing", 1))
	r.becomes(p, crd.ConditionResolvedRefs, metav1.ConditionFalse, reconcile.ReasonSecretNotReadable, r.ns+"/missing does not exist")
	r.becomes(p, crd.ConditionAccepted, metav1.ConditionTrue, crd.ReasonAccepted, "")
}
