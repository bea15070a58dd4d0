// Package server is the admission webhook: it reads reviews of the API server,
// gives package inject what it must know of a pod's namespace, and answers. It
// makes no call to the API while a pod waits, unless the caches do not know the
// namespace yet.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/attache-dev/attache/webhook/inject"
)

// Settings is what an admission must know besides the pod.
type Settings struct {
	Namespace map[string]any // its metadata, as JSON has it
	Config    inject.Config  // without a nonce
}

// Pod is what of a pod decides which providers it may use.
type Pod struct {
	Namespace, ServiceAccount string
	Labels                    map[string]string
}

// Source gives settings, from caches. It is called concurrently; what it
// returns is shared and must not be changed. Its errors match [ErrNamespace] if
// the namespace is unknown.
type Source interface {
	Settings(ctx context.Context, pod Pod) (Settings, error)
}

// ErrNamespace is matched by errors about a namespace that nobody knows.
var ErrNamespace = errors.New("namespace is not known")

// Options are the parts of a [Server].
type Options struct {
	Source   Source      // required
	Validate Validator   // of objects other than pods; nil allows them
	Events   func(Event) // is told of what became of pods; must not block; nil for none
	// Changed is told of each change of an object that Validate let pass, before
	// it is answered; a dry run is none. Its error refuses the change. nil for
	// nobody.
	Changed func(context.Context, Change) error
	// Admitted is told of what became of each pod; must not block for long. A
	// dry run is told of to nobody. nil for nobody.
	Admitted func(context.Context, Admission)
	Metrics  *Metrics         // nil for none
	Log      *slog.Logger     // required
	Deadline time.Duration    // of one review; 0 is 4 s, below the API server's 5
	Parallel int              // reviews at a time; 0 is 64
	now      func() time.Time // of tests
}

// Server answers reviews. It can be used concurrently.
type Server struct {
	Options
	slots   chan struct{}
	readers *readers
}

// New makes a server.
func New(o Options) (*Server, error) {
	if o.Source == nil || o.Log == nil {
		return nil, errors.New("webhook server: Source and Log are required")
	}
	if o.Deadline == 0 {
		o.Deadline = 4 * time.Second
	}
	if o.Parallel == 0 {
		o.Parallel = 64
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Changed == nil {
		o.Changed = func(context.Context, Change) error { return nil }
	}
	if o.Admitted == nil {
		o.Admitted = func(context.Context, Admission) {}
	}
	return &Server{o, make(chan struct{}, o.Parallel), newReaders(o.Parallel)}, nil
}

// Paths that the webhook configurations name.
const (
	PathMutate   = "/mutate"
	PathValidate = "/validate"
	// PathRecord is for what is recorded and never refused for what it is: that
	// objects are deleted.
	PathRecord = "/record"
)

// Handler serves both paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathMutate, s.serve(s.mutate))
	mux.HandleFunc("POST "+PathValidate, s.serve(s.validate))
	mux.HandleFunc("POST "+PathRecord, s.serve(s.record))
	return mux
}

// Results of admissions, in metrics.
const (
	resultInjected  = "injected"
	resultUnchanged = "unchanged" // a round before has done it
	resultSkipped   = "skipped"
	resultDenied    = "denied"
	resultAllowed   = "allowed" // is none of a pod
	resultError     = "error"   // ours; denied
	resultBad       = "bad"     // no review
)

// answer decides one review. It returns the event that tells of it, if any.
type answer func(context.Context, *request) (r *response, result string, e *Event)

func (s *Server) serve(decide answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		began := s.now()
		ctx, cancel := context.WithTimeout(r.Context(), s.Deadline)
		defer cancel()
		full := func() {
			s.Metrics.admission(resultError, s.now().Sub(began), 0)
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // net/http would wait for the rest
			http.Error(w, "too many reviews at a time", http.StatusServiceUnavailable)
		}
		// Whoever reaches the port can send slowly: that takes the sender's own
		// room, and none of the API server's.
		done, ok := s.readers.enter(ctx, r.RemoteAddr)
		if !ok {
			full()
			return
		}
		body, err := readBody(ctx, w, r)
		done()
		select {
		case s.slots <- struct{}{}: // bounds memory, not only work
			defer func() { <-s.slots }()
		case <-ctx.Done():
			full()
			return
		}
		var q *request
		if err == nil {
			q, err = parseReview(body)
		}
		if err != nil {
			code := http.StatusBadRequest
			if bad := (*badReview)(nil); errors.As(err, &bad) {
				code = bad.code
			}
			s.Metrics.admission(resultBad, s.now().Sub(began), 0)
			http.Error(w, err.Error(), code)
			return
		}
		res, result, event := decide(ctx, q)
		if err := writeReview(w, res); err != nil {
			s.Log.DebugContext(ctx, "answer to a review not sent", "err", err)
		}
		s.Metrics.admission(result, s.now().Sub(began), len(res.Patch))
		s.Log.DebugContext(ctx, "admission", "result", result, "namespace", q.Namespace, "dry_run", q.DryRun, "patch_bytes", len(res.Patch))
		// What tells others is a side effect, which a dry run has none of.
		if event != nil && !q.DryRun {
			s.Events(*event)
		}
	}
}

// mutate injects the sidecar into new pods.
func (s *Server) mutate(ctx context.Context, q *request) (*response, string, *Event) {
	if q.Resource.Group != "" || q.Resource.Resource != "pods" || q.SubResource != "" || q.Operation != "CREATE" {
		return allow(q.UID), resultAllowed, nil
	}
	pod, err := decodeObject(q.Object)
	if err != nil {
		return deny(q.UID, http.StatusBadRequest, "BadRequest", "object: "+err.Error()), resultDenied, nil
	}
	facts := podFacts(pod, q.Namespace)
	settings, err := s.Source.Settings(ctx, facts)
	if err != nil {
		return s.failed(ctx, q, pod, err)
	}
	settings.Config.Nonce = rand.Text() // 130 bits
	r, err := inject.Pod(pod, settings.Namespace, settings.Config)
	if denied := (*inject.Denied)(nil); errors.As(err, &denied) {
		s.admitted(ctx, q, pod, facts, resultDenied, "", denied.Error())
		return deny(q.UID, http.StatusForbidden, "Forbidden", "Attaché: "+denied.Error()),
			resultDenied, eventOf(q, pod, reasonRefused, denied.Error())
	} else if err != nil {
		return s.failed(ctx, q, pod, err)
	}
	res := allow(q.UID)
	res.Warnings = r.Warnings
	if r.Skipped != "" {
		res.AuditAnnotations = map[string]string{"skipped": r.Skipped}
		what := Skipped
		if r.OptedOut {
			what = OptedOut
		}
		s.admitted(ctx, q, pod, facts, what, "", r.Skipped)
		return res, resultSkipped, eventOf(q, pod, reasonSkipped, r.Skipped)
	}
	if err := res.addPatch(r.Patch); err != nil {
		return s.failed(ctx, q, pod, err)
	}
	res.AuditAnnotations = map[string]string{"mode": string(r.Mode)}
	if len(r.Patch) == 0 {
		return res, resultUnchanged, nil
	}
	s.admitted(ctx, q, pod, facts, resultInjected, string(r.Mode), "")
	return res, resultInjected, eventOf(q, pod, reasonInjected, injectedNote(r))
}

// injectedNote repeats the warnings: those of a pod that a controller makes
// reach nobody else.
func injectedNote(r inject.Result) string {
	note := fmt.Sprintf("pods get the Attaché sidecar, in %s mode", r.Mode)
	if len(r.Warnings) > 0 {
		note += fmt.Sprintf("; warnings (%d): %s", len(r.Warnings), strings.Join(r.Warnings, "; "))
	}
	return note
}

// failed refuses a pod for a reason that is not its author's. A pod without
// sidecar would be worse, and one without word, too.
func (s *Server) failed(ctx context.Context, q *request, pod map[string]any, err error) (*response, string, *Event) {
	s.Log.ErrorContext(ctx, "admission failed", "namespace", q.Namespace, "err", err)
	text := "Attaché cannot tell how to inject pods of this namespace; the operator finds the reason in the log of attache-control"
	switch {
	case errors.Is(err, ErrNamespace):
		text = fmt.Sprintf("namespace: %q is not known to Attaché's control plane yet; try again", q.Namespace)
	case errors.Is(err, inject.ErrConfig):
		text = "AttacheConfig default: " + err.Error() + "; the operator must correct it"
	}
	s.admitted(ctx, q, pod, podFacts(pod, q.Namespace), resultError, "", text)
	return deny(q.UID, http.StatusInternalServerError, "InternalError", "Attaché: "+text), resultError, eventOf(q, pod, reasonRefused, text)
}

// podFacts reads what selects providers; inject reports wrong types.
func podFacts(pod map[string]any, namespace string) Pod {
	p := Pod{Namespace: namespace, Labels: map[string]string{}}
	meta, _ := pod["metadata"].(map[string]any)
	labels, _ := meta["labels"].(map[string]any)
	for k, v := range labels {
		if s, ok := v.(string); ok {
			p.Labels[k] = s
		}
	}
	spec, _ := pod["spec"].(map[string]any)
	if p.ServiceAccount, _ = spec["serviceAccountName"].(string); p.ServiceAccount == "" {
		p.ServiceAccount = "default" // the ServiceAccount plugin sets it
	}
	return p
}
