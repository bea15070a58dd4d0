package trail

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
)

// PathAPIServer is where the API server's audit webhook backend sends its
// events (audit.k8s.io/v1), if the operator of the cluster sets one up: what a
// ValidatingAdmissionPolicy refuses reaches nobody else.
const PathAPIServer = "/k8s-audit"

// maxEvents bounds a batch: the API server sends 400 events, some with objects.
const maxEvents = 32 << 20

// auditEvent is what of an audit event is read.
type auditEvent struct {
	AuditID    string `json:"auditID"`
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string   `json:"username"`
		UID      string   `json:"uid"`
		Groups   []string `json:"groups"`
	} `json:"user"`
	ImpersonatedUser *struct {
		Username string `json:"username"`
	} `json:"impersonatedUser"`
	ObjectRef *struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"responseStatus"`
}

// refused is what the API server says when a guard refuses.
var refused = regexp.MustCompile(`ValidatingAdmissionPolicy '(attache-[a-z0-9.-]+)' with binding '[^']*' denied request: (?s:(.*))`)

// guard reads a denial by one of our guards out of an event.
func (e *auditEvent) guard() (Guard, bool) {
	if e.Stage != "ResponseComplete" || e.ResponseStatus == nil || e.ResponseStatus.Code < 400 {
		return Guard{}, false
	}
	m := refused.FindStringSubmatch(e.ResponseStatus.Message)
	if m == nil || strings.Contains(e.RequestURI, "dryRun=") {
		return Guard{}, false
	}
	g := Guard{ID: e.AuditID, Policy: m[1], Verb: e.Verb, Reason: m[2], By: User{e.User.Username, e.User.UID, e.User.Groups}}
	if o := e.ObjectRef; o != nil {
		g.Resource, g.SubResource, g.Namespace, g.Name = o.Resource, o.Subresource, o.Namespace, o.Name
	}
	if e.ImpersonatedUser != nil {
		g.Impersonated = e.ImpersonatedUser.Username
	}
	return g, true
}

// APIServer takes the API server's audit events and records those of our
// guards' denials. Who sends them shows the bearer token in a file, which is
// read for each request, so that it can be replaced.
type APIServer struct {
	Trail     *Trail
	TokenFile string
	Log       *slog.Logger
}

// errToken says what is wrong with the file, and not what is in it.
var errToken = errors.New("holds no token of at least 32 characters")

func (a *APIServer) known(r *http.Request) (bool, error) {
	text, err := os.ReadFile(a.TokenFile)
	if err != nil {
		return false, err
	}
	want := strings.TrimSpace(string(text))
	if len(want) < 32 {
		return false, fmt.Errorf("%s %w", a.TokenFile, errToken)
	}
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	x, y := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want)) // of equal length
	return ok && subtle.ConstantTimeCompare(x[:], y[:]) == 1, nil
}

// ServeHTTP implements http.Handler.
func (a *APIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ok, err := a.known(r)
	if err != nil {
		a.Log.ErrorContext(r.Context(), "events of the API server are not taken", "cause", err)
		http.Error(w, "not set up", http.StatusServiceUnavailable)
		return
	}
	if !ok {
		http.Error(w, "show the bearer token", http.StatusUnauthorized)
		return
	}
	var list struct {
		APIVersion string       `json:"apiVersion"`
		Kind       string       `json:"kind"`
		Items      []auditEvent `json:"items"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxEvents)).Decode(&list); err != nil || list.Kind != "EventList" || list.APIVersion != "audit.k8s.io/v1" {
		http.Error(w, "is no EventList of audit.k8s.io/v1", http.StatusBadRequest)
		return
	}
	for i := range list.Items {
		g, ok := list.Items[i].guard()
		if !ok {
			continue
		}
		if err := a.Trail.Denied(r.Context(), g); err != nil { // the API server sends the batch again
			http.Error(w, "cannot be recorded now", http.StatusServiceUnavailable)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}
