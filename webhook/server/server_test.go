package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/attache-dev/attache/webhook/inject"
)

type object = map[string]any

// static is a Source of one namespace.
type static struct {
	Settings
	err error
}

func (s static) get() Source {
	return sourceFunc(func(context.Context, Pod) (Settings, error) { return s.Settings, s.err })
}

type sourceFunc func(context.Context, Pod) (Settings, error)

func (f sourceFunc) Settings(ctx context.Context, p Pod) (Settings, error) { return f(ctx, p) }

func settings() Settings {
	return Settings{
		Namespace: object{"name": "team-a", "labels": object{"attache.dev/inject": "enabled"}},
		Config: inject.Config{
			Image: "registry.example/attache-sidecar:v1", Control: "attache-control.attache-system.svc:8443", ControlCA: "roots",
			Placeholders: []inject.Placeholder{{Env: "OPENAI_API_KEY", Prefix: "sk-", Provider: "openai"}},
		},
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newTestServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Source == nil {
		o.Source = static{Settings: settings()}.get()
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const deploymentPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"agent-","labels":{"app":"agent"},
"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"agent-1","uid":"u-1","controller":true}]},
"spec":{"serviceAccountName":"agent","aFieldOfTheFuture":{"n":12345678901234567890},
"containers":[{"name":"agent","image":"agent","env":[{"name":"TOKEN","value":"hunter2hunter2"}]}]}}`

func reviewOf(pod string, change func(object)) []byte {
	r := object{
		"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "newerMember": 1,
		"request": object{
			"uid": "r-1", "kind": object{"version": "v1", "kind": "Pod"}, "resource": object{"version": "v1", "resource": "pods"},
			"namespace": "team-a", "operation": "CREATE", "object": json.RawMessage(pod), "newerMember": object{},
		},
	}
	if change != nil {
		change(r)
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return b
}

func post(t testing.TB, h http.Handler, path string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func answerTo(t testing.TB, h http.Handler, path string, body []byte) *response {
	t.Helper()
	w := post(t, h, path, body)
	var out review
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	if out.APIVersion != reviewVersion || out.Kind != reviewKind || out.Response == nil || out.Response.UID != "r-1" {
		t.Fatalf("answer %s", w.Body)
	}
	return out.Response
}

// The patch, applied by the library of the API server, gives the pod that
// inject built; nothing of the author's is lost, and numbers stay as they are.
func TestPatch(t *testing.T) {
	h := newTestServer(t, Options{}).Handler()
	res := answerTo(t, h, PathMutate, reviewOf(deploymentPod, nil))
	if !res.Allowed || res.PatchType != "JSONPatch" || res.AuditAnnotations["mode"] != "explicit" {
		t.Fatalf("answer %+v", res)
	}
	p, err := jsonpatch.DecodePatch(res.Patch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Apply([]byte(deploymentPod))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte(`12345678901234567890`)) || !bytes.Contains(out, []byte("hunter2hunter2")) {
		t.Errorf("lost: %s", out)
	}
	if bytes.Contains(res.Patch, []byte("hunter2")) {
		t.Errorf("the patch repeats a secret: %s", res.Patch)
	}
	if !slices.ContainsFunc(res.Warnings, func(w string) bool { return strings.Contains(w, "spec.containers[0].env[0] (TOKEN)") }) {
		t.Errorf("warnings %q", res.Warnings)
	}
	pod, err := decodeObject(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inject.TemplateOf(pod); err != nil {
		t.Error(err)
	}
	if again := answerTo(t, h, PathMutate, reviewOf(string(out), nil)); !again.Allowed || len(again.Patch) > 0 {
		t.Errorf("the second round patches: %s", again.Patch)
	}
	// Placeholders differ between pods.
	if other := answerTo(t, h, PathMutate, reviewOf(deploymentPod, nil)); bytes.Equal(other.Patch, res.Patch) {
		t.Error("two pods have the same placeholders")
	}
}

func TestAnswers(t *testing.T) {
	hostNetwork := strings.Replace(deploymentPod, `"spec":{`, `"spec":{"hostNetwork":true,`, 1)
	broken := settings()
	broken.Config.Mode = "sideways"
	notIn := settings()
	notIn.Namespace = object{"labels": object{}}
	for name, c := range map[string]struct {
		settings Settings
		err      error
		pod      string
		change   func(request object)
		allowed  bool
		patch    bool
		message  string
		event    string
		result   string
	}{
		"injected":       {settings: settings(), pod: deploymentPod, allowed: true, patch: true, event: "Injected", result: resultInjected},
		"dry run":        {settings: settings(), pod: deploymentPod, change: func(r object) { r["dryRun"] = true }, allowed: true, patch: true, result: resultInjected},
		"refused":        {settings: settings(), pod: hostNetwork, message: "Attaché: spec.hostNetwork: is true", event: "InjectionRefused", result: resultDenied},
		"refused dry":    {settings: settings(), pod: hostNetwork, change: func(r object) { r["dryRun"] = true }, message: "spec.hostNetwork", result: resultDenied},
		"not opted in":   {settings: notIn, pod: deploymentPod, allowed: true, event: "InjectionSkipped", result: resultSkipped},
		"unknown":        {err: fmt.Errorf("%w: x", ErrNamespace), pod: deploymentPod, message: `namespace: "team-a" is not known to Attaché's control plane yet; try again`, event: "InjectionRefused", result: resultError},
		"no settings":    {err: errors.New("https://10.0.0.1 refused"), pod: deploymentPod, message: "the operator finds the reason in the log", event: "InjectionRefused", result: resultError},
		"bad settings":   {settings: broken, pod: deploymentPod, message: "AttacheConfig default: ", event: "InjectionRefused", result: resultError},
		"no object":      {settings: settings(), pod: "null", message: "object: is no object", result: resultDenied},
		"wrong type":     {settings: settings(), pod: `{"spec":{"containers":7}}`, message: "spec.containers: is not a list", result: resultDenied},
		"an update":      {settings: settings(), pod: deploymentPod, change: func(r object) { r["operation"] = "UPDATE" }, allowed: true, result: resultAllowed},
		"a subresource":  {settings: settings(), pod: deploymentPod, change: func(r object) { r["subResource"] = "resize" }, allowed: true, result: resultAllowed},
		"not a pod":      {settings: settings(), pod: deploymentPod, change: func(r object) { r["resource"] = object{"resource": "services"} }, allowed: true, result: resultAllowed},
		"another group":  {settings: settings(), pod: deploymentPod, change: func(r object) { r["resource"] = object{"group": "x", "resource": "pods"} }, allowed: true, result: resultAllowed},
		"nobody to tell": {settings: settings(), pod: strings.Replace(deploymentPod, `"controller":true`, `"controller":false`, 1), allowed: true, patch: true, result: resultInjected},
	} {
		t.Run(name, func(t *testing.T) {
			var events []Event
			m := NewMetrics()
			h := newTestServer(t, Options{Source: static{c.settings, c.err}.get(), Metrics: m, Events: func(e Event) { events = append(events, e) }}).Handler()
			res := answerTo(t, h, PathMutate, reviewOf(c.pod, func(r object) {
				if c.change != nil {
					c.change(r["request"].(object))
				}
			}))
			if res.Allowed != c.allowed || (len(res.Patch) > 0) != c.patch {
				t.Errorf("answer %+v", res)
			}
			if c.message != "" && (res.Status == nil || !strings.Contains(res.Status.Message, c.message) || res.Status.Code < 400) {
				t.Errorf("status %+v; want %s", res.Status, c.message)
			}
			if strings.Contains(fmt.Sprint(res), "10.0.0.1") {
				t.Error("the author reads the operator's addresses")
			}
			got := ""
			if len(events) > 0 {
				got = events[0].Reason
				if events[0].About.Name != "agent-1" || events[0].About.Namespace != "team-a" {
					t.Errorf("about %+v", events[0].About)
				}
			}
			if got != c.event || len(events) > 1 {
				t.Errorf("events %v; want %q", events, c.event)
			}
			if n := counter(t, m, c.result); n != 1 {
				t.Errorf("%s counts %v", c.result, n)
			}
		})
	}
}

func TestBadReviews(t *testing.T) {
	h := newTestServer(t, Options{}).Handler()
	for name, c := range map[string]struct {
		body []byte
		code int
	}{
		"empty":           {nil, 400},
		"no JSON":         {[]byte("{"), 400},
		"a list":          {[]byte("[]"), 400},
		"two values":      {append(reviewOf(deploymentPod, nil), "{}"...), 400},
		"another version": {reviewOf(deploymentPod, func(r object) { r["apiVersion"] = "admission.k8s.io/v1beta1" }), 400},
		"another kind":    {reviewOf(deploymentPod, func(r object) { r["kind"] = "TokenReview" }), 400},
		"no request":      {reviewOf(deploymentPod, func(r object) { delete(r, "request") }), 400},
		"no uid":          {reviewOf(deploymentPod, func(r object) { delete(r["request"].(object), "uid") }), 400},
		"an answer":       {reviewOf(deploymentPod, func(r object) { r["response"] = object{} }), 400},
		"too large":       {append(reviewOf(deploymentPod, nil), bytes.Repeat([]byte(" "), maxReview)...), 413},
	} {
		for _, path := range []string{PathMutate, PathValidate} {
			if w := post(t, h, path, c.body); w.Code != c.code || strings.Contains(w.Body.String(), "hunter2") {
				t.Errorf("%s at %s: %d %s", name, path, w.Code, w.Body)
			}
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, PathMutate, bytes.NewReader(reviewOf(deploymentPod, nil)))
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusUnsupportedMediaType {
		t.Errorf("without a content type: %d", w.Code)
	}
	for _, m := range []string{http.MethodGet, http.MethodPut} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), m, PathMutate, nil)); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", m, w.Code)
		}
	}
}

// As many reviews as there are slots are worked at; others wait, and are told
// when that takes too long.
func TestBoundedWork(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{})
	s := newTestServer(t, Options{Parallel: 1, Deadline: 50 * time.Millisecond, Source: sourceFunc(func(context.Context, Pod) (Settings, error) {
		close(entered)
		<-release
		return settings(), nil
	})})
	h := s.Handler()
	first := make(chan int)
	go func() { first <- post(t, h, PathMutate, reviewOf(deploymentPod, nil)).Code }()
	<-entered
	if w := post(t, h, PathMutate, reviewOf(deploymentPod, nil)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("the second review: %d", w.Code)
	}
	close(release)
	if code := <-first; code != http.StatusOK {
		t.Errorf("the first review: %d", code)
	}
}

func TestValidatePath(t *testing.T) {
	var asked Object
	findings := []Finding{{Text: "spec.x: is odd; change it"}, {Text: "spec.y: may be odd", Warning: true}}
	var fail error
	h := newTestServer(t, Options{Validate: func(_ context.Context, o Object) ([]Finding, error) {
		asked = o
		return findings, fail
	}}).Handler()
	body := reviewOf(`{"spec":{}}`, func(r object) {
		r["request"].(object)["kind"] = object{"group": "attache.dev", "kind": "AccessPolicy"}
		r["request"].(object)["name"] = "p"
	})
	res := answerTo(t, h, PathValidate, body)
	if res.Allowed || res.Status.Code != 422 || !strings.Contains(res.Status.Message, "spec.x: is odd; change it") || asked.Kind != "AccessPolicy" || asked.Namespace != "team-a" || asked.Name != "p" {
		t.Errorf("answer %+v %+v about %+v", res, res.Status, asked)
	}
	findings = findings[1:]
	if res = answerTo(t, h, PathValidate, body); !res.Allowed || !slices.Equal(res.Warnings, []string{"spec.y: may be odd"}) {
		t.Errorf("answer %+v", res)
	}
	fail = errors.New("secret detail")
	if res = answerTo(t, h, PathValidate, body); res.Allowed || strings.Contains(res.Status.Message, "detail") {
		t.Errorf("answer %+v", res)
	}
	gone := reviewOf("null", func(r object) { r["request"].(object)["operation"] = "DELETE" })
	if res = answerTo(t, h, PathValidate, gone); !res.Allowed {
		t.Errorf("a deletion: %+v", res)
	}
}

// Whatever comes, the handler answers with a status of HTTP or a review that
// allows or denies, and never allows what it cannot read.
func FuzzReview(f *testing.F) {
	f.Add(reviewOf(deploymentPod, nil))
	f.Add(reviewOf(`{"spec":{"containers":[{}]}}`, nil))
	f.Add(reviewOf("null", nil))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","object":{}}}`))
	h := newTestServer(f, Options{}).Handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{PathMutate, PathValidate} {
			w := post(t, h, path, body)
			if w.Code != http.StatusOK {
				if w.Code != 400 && w.Code != 413 {
					t.Fatalf("status %d", w.Code)
				}
				continue
			}
			var out review
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil || out.Response.UID == "" {
				t.Fatalf("answer %s, %v", w.Body, err)
			}
			if !out.Response.Allowed && (out.Response.Status == nil || out.Response.Status.Message == "") {
				t.Fatalf("denied without a word: %s", w.Body)
			}
			if out.Response.Allowed && len(out.Response.Patch) > 0 && !json.Valid(out.Response.Patch) {
				t.Fatalf("patch %s", out.Response.Patch)
			}
		}
	})
}

func counter(t testing.TB, m *Metrics, result string) float64 {
	t.Helper()
	w := httptest.NewRecorder()
	handlerOf(m).ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", nil))
	b, _ := io.ReadAll(w.Body)
	var v float64
	for line := range strings.SplitSeq(string(b), "\n") {
		if n, err := fmt.Sscanf(line, `attache_admissions_total{result="`+result+`"} %g`, &v); n == 1 && err == nil {
			return v
		}
	}
	t.Fatalf("no counter of %s in %s", result, b)
	return 0
}
