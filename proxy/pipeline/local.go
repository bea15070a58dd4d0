package pipeline

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
)

// LocalHost is the name under which Attaché itself answers agents through the
// proxy, where a rule with openTask lets them open a task of their own:
// POST /v1/tasks {"purpose": "…", "ttl": "10m"} and DELETE /v1/tasks/ID.
const LocalHost = "attache.internal"

// localBody bounds a request to LocalHost.
const localBody = 64 << 10

type taskWish struct {
	Purpose string `json:"purpose"`
	TTL     string `json:"ttl,omitempty"`
}

type taskAnswer struct {
	ID      string    `json:"id"`
	Header  string    `json:"header"` // where later requests name the task
	Expires time.Time `json:"expires"`
}

// serveLocal answers a request that policy allowed to LocalHost. Nothing
// leaves us, but it is recorded like every other request.
func (x *exchange) serveLocal(ctx context.Context, w http.ResponseWriter) {
	if f := x.begin(ctx); f != nil { // no record, no task
		x.refuse(w, f)
		return
	}
	status, answer, f := x.local(ctx)
	if f != nil {
		x.decision.Verdict = policy.Deny
		x.result.Outcome = audit.OutcomeDenied
		x.refuse(w, f)
		return
	}
	x.result.Status, x.result.Outcome = status, audit.OutcomeOK
	x.finish()
	h := w.Header()
	h.Set("Attache-Record", x.rec.ID)
	h.Set("Cache-Control", "no-store")
	body := []byte{}
	if answer != nil {
		h.Set("Content-Type", "application/json")
		body, _ = json.Marshal(answer) // strings and times only
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func (x *exchange) local(ctx context.Context) (int, any, *Refusal) {
	bad := func(reason string) (int, any, *Refusal) {
		return 0, nil, &Refusal{Status: http.StatusBadRequest, Code: CodeBadRequest, Reason: reason}
	}
	if !x.decision.OpenTask || x.p.cfg.OpenTask == nil {
		return 0, nil, &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: "agents may open tasks only where a rule says openTask: true"}
	}
	if id, ok := strings.CutPrefix(x.path, "/v1/tasks/"); ok && x.req.Method == http.MethodDelete {
		if err := x.p.cfg.CloseTask(id, x.conn.Caller.Workload); err != nil {
			return 0, nil, &Refusal{Status: http.StatusNotFound, Code: CodeTaskUnknown, Reason: "no open task of this agent's own has this id"}
		}
		return http.StatusNoContent, nil, nil
	}
	if x.path != "/v1/tasks" || x.req.Method != http.MethodPost {
		return bad("want POST /v1/tasks or DELETE /v1/tasks/ID")
	}
	var wish taskWish
	dec := json.NewDecoder(io.LimitReader(x.req.Body, localBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&wish); err != nil || wish.Purpose == "" {
		return bad(`want a body like {"purpose": "reconcile invoices", "ttl": "10m"}`)
	}
	var ttl time.Duration
	if wish.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(wish.TTL); err != nil || ttl <= 0 {
			return bad(`ttl is a duration such as "10m"`)
		}
	}
	t, err := x.p.cfg.OpenTask(ctx, x.conn.Caller, wish.Purpose, ttl)
	if err != nil {
		return 0, nil, &Refusal{Status: http.StatusForbidden, Code: CodeTaskUnknown, Reason: "the task was not opened", Err: err}
	}
	x.task = t
	x.describeTask()
	return http.StatusCreated, taskAnswer{ID: t.ID, Header: "Attache-Task", Expires: t.Expires}, nil
}
