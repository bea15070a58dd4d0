package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/attache-dev/attache/webhook/inject"
)

// The API server takes objects of at most 3 MiB, of which an update brings
// two, and its escapes may double what it sends.
const maxReview = 8 << 20

const (
	reviewVersion = "admission.k8s.io/v1"
	reviewKind    = "AdmissionReview"
)

// review is an AdmissionReview, of which objects stay as they were sent: a typed
// one would lose the fields that are newer than our library.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID         string          `json:"uid"`
	Kind        groupKind       `json:"kind"`
	Resource    groupResource   `json:"resource"`
	SubResource string          `json:"subResource"`
	Name        string          `json:"name"`
	Namespace   string          `json:"namespace"`
	Operation   string          `json:"operation"`
	UserInfo    User            `json:"userInfo"`
	DryRun      bool            `json:"dryRun"`
	Object      json.RawMessage `json:"object"`
	OldObject   json.RawMessage `json:"oldObject"`
}

// User is who asks the API server, as it authenticated them.
type User struct {
	Username string   `json:"username"`
	UID      string   `json:"uid"`
	Groups   []string `json:"groups"`
}

type groupKind struct {
	Group   string `json:"group"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
}

type groupResource struct {
	Group    string `json:"group"`
	Version  string `json:"version"`
	Resource string `json:"resource"`
}

type response struct {
	UID       string  `json:"uid"`
	Allowed   bool    `json:"allowed"`
	Status    *status `json:"status,omitempty"`
	Patch     []byte  `json:"patch,omitempty"` // base64 on the wire
	PatchType string  `json:"patchType,omitempty"`
	// AuditAnnotations go to the API server's own audit log.
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
}

type status struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Code    int32  `json:"code"`
}

// badReview is an answer to what is no review that we could answer as such.
type badReview struct {
	code int
	text string
}

// Error implements error.
func (b *badReview) Error() string { return b.text }

// readBody reads what should be a review, until ctx's deadline.
func readBody(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, &badReview{http.StatusUnsupportedMediaType, "send application/json"}
	}
	c := http.NewResponseController(w)
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetReadDeadline(end) // not supported: the server's own holds
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &badReview{http.StatusRequestEntityTooLarge, fmt.Sprintf("is larger than %d bytes", tooLarge.Limit)}
	} else if err != nil {
		return nil, &badReview{http.StatusBadRequest, "the body cannot be read"}
	}
	_ = c.SetReadDeadline(time.Time{}) // the connection goes on
	return body, nil
}

// parseReview reads one review of an object. Members that we do not know are
// left alone: newer API servers have them.
func parseReview(body []byte) (*request, error) {
	var in review
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, &badReview{http.StatusBadRequest, "is no JSON of an AdmissionReview"} // the error may quote the pod
	}
	switch q := in.Request; {
	case in.APIVersion != reviewVersion || in.Kind != reviewKind:
		return nil, &badReview{http.StatusBadRequest, "is not an AdmissionReview of " + reviewVersion}
	case q == nil || q.UID == "" || len(q.UID) > 128 || in.Response != nil:
		return nil, &badReview{http.StatusBadRequest, "has no request with a uid"}
	default:
		return q, nil
	}
}

// decodeObject reads an object of a review, with numbers as they are written.
func decodeObject(raw json.RawMessage) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var o map[string]any
	if err := d.Decode(&o); err != nil || o == nil {
		return nil, errors.New("is no object")
	}
	return o, nil
}

func allow(uid string) *response { return &response{UID: uid, Allowed: true} }

func deny(uid string, code int32, reason, message string) *response {
	return &response{UID: uid, Status: &status{Status: "Failure", Message: message, Reason: reason, Code: code}}
}

// addPatch encodes the operations.
func (r *response) addPatch(ops []inject.Operation) error {
	if len(ops) == 0 {
		return nil
	}
	b, err := json.Marshal(ops)
	if err != nil {
		return err
	}
	r.Patch, r.PatchType = b, "JSONPatch"
	return nil
}

func writeReview(w http.ResponseWriter, r *response) error {
	b, err := json.Marshal(review{APIVersion: reviewVersion, Kind: reviewKind, Response: r})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(b)
	return err
}
