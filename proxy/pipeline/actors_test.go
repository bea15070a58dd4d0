package pipeline_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// TestRecordTellsTheChainOfAgents: whom the human's token names comes into each
// record of the task, allowed or not.
func TestRecordTellsTheChainOfAgents(t *testing.T) {
	tasks := &calledTasks{}
	r := newRig(t, settings{transport: func(c *pipeline.Config) { tasks.Tasks = c.Tasks; c.Tasks = tasks }})
	tk, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: r.workload, RunID: r.workload.RunID, Purpose: "x", OpenedBy: task.ByOrchestrator})
	if err != nil {
		t.Fatal(err)
	}
	want := []audit.Actor{{Subject: r.workload.ID.String(), Issuer: "https://sts.test"}, {Subject: "spiffe://attache.test/agent/planner"}}
	for _, u := range []string{"https://open.test/", "https://nowhere.test/"} {
		r.get(u, "Attache-Task", tk.ID)
	}
	recs := r.records(2)
	for _, rec := range recs {
		if !slices.Equal(rec.Actors, want) {
			t.Errorf("%s: actors %v, want %v", rec.Result.Outcome, rec.Actors, want)
		}
	}
}

// TestRecordMasksTokensInPaths: what an API wants in its path is not written.
func TestRecordMasksTokensInPaths(t *testing.T) {
	r := newRig(t, settings{})
	const secret = "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
	r.get("https://open.test/bot110201543:" + secret + "/sendMessage?" + secret + "=1")
	rec := r.record()
	if rec.Request.Path != "/bot110201543:"+audit.Mask+"/sendMessage" || !slices.Equal(rec.Request.QueryKeys, []string{audit.Mask}) {
		t.Errorf("request %+v", rec.Request)
	}
	if strings.Contains(r.wrote(t), secret) {
		t.Error("the secret is in what was written")
	}
}

// calledTasks are tasks of an agent that another one called.
type calledTasks struct{ pipeline.Tasks }

func (c *calledTasks) Lookup(id string, w *identity.Workload) (*identity.Task, error) {
	t, err := c.Tasks.Lookup(id, w)
	if t != nil {
		k := *t
		k.Actors = []identity.Actor{{Subject: w.ID.String(), Issuer: "https://sts.test"}, {Subject: "spiffe://attache.test/agent/planner"}}
		t = &k
	}
	return t, err
}
