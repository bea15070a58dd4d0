package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

const auditPod = "attache-audit-0"

// recordsFolder is the volume of the record store, as the node has it.
func (r *run) recordsFolder() string { return filepath.Join(r.dir, "records") }

// recordsVolume is a disk that outlives the pod of the store.
func (r *run) recordsVolume(ctx context.Context) error {
	if err := os.MkdirAll(r.recordsFolder(), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(r.recordsFolder(), 0o777); err != nil { // fsGroup is not applied to it
		return err
	}
	return r.apply(ctx, fmt.Sprintf(`{apiVersion: v1, kind: PersistentVolume, metadata: {name: records}, spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, hostPath: {path: %q}}}`, r.recordsFolder()))
}

// storeURL is the collector's own file. Who reads it must do so while the
// collector runs: the files beside it are whose process opens it first.
func (r *run) storeURL() string { return "sqlite:" + filepath.Join(r.recordsFolder(), "records.db") }

func (r *run) inStore(ctx context.Context, ask func(db *store.DB) error) error {
	if _, err := r.auditReady(ctx); err != nil {
		return err
	}
	db, err := store.Open(ctx, r.storeURL(), store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(ask(db), db.Close())
}

// auditReady waits for the collector.
func (r *run) auditReady(ctx context.Context) (*corev1.Pod, error) {
	return r.pod(ctx, nsControl, "app.kubernetes.io/component=audit")
}

// heads are the epochs of a pod's sidecar, the oldest first.
func (r *run) heads(ctx context.Context, pod *corev1.Pod) (out []store.Head, err error) {
	err = r.inStore(ctx, func(db *store.DB) error {
		all, err := db.Heads(ctx)
		for _, h := range all {
			if h.Producer.ID == string(pod.UID) {
				out = append(out, h)
			}
		}
		return err
	})
	slices.SortFunc(out, func(a, b store.Head) int { return a.Opened.Compare(b.Opened) })
	return out, err
}

// closed waits until each of n epochs of a pod is in the store, the last one up
// to its end, and says whether all is there, once.
func (r *run) closed(ctx context.Context, pod *corev1.Pod, n int) (heads []store.Head, err error) {
	err = until(ctx, "the end of "+pod.Name+"'s records arrives", func() (bool, string) {
		heads, err = r.heads(ctx, pod)
		if err != nil {
			return false, err.Error()
		}
		return len(heads) == n && heads[n-1].Closed, fmt.Sprintf("%+v", heads)
	})
	if err != nil {
		return nil, err
	}
	return heads, whole(heads)
}

// whole says that no line of an epoch is missing or there twice.
func whole(heads []store.Head) error {
	for _, h := range heads {
		if h.First != 1 || h.Lines != h.Last || len(h.Gaps) > 0 || !h.Chained {
			return fmt.Errorf("epoch %s has %d lines from %d to %d, gaps %v", h.Epoch, h.Lines, h.First, h.Last, h.Gaps)
		}
	}
	return nil
}

// search returns what a query finds, all of it.
func (r *run) search(ctx context.Context, query string) (rows []store.Row, err error) {
	f, err := audit.ParseFilter(query, time.Now())
	if err != nil {
		return nil, err
	}
	err = r.inStore(ctx, func(db *store.DB) error {
		for page, err := range db.Pages(ctx, store.Query{Filter: f}) {
			if err != nil {
				return err
			}
			rows = append(rows, page.Rows...)
		}
		return nil
	})
	return rows, err
}

// told compares the records of a path with the calls that arrived there: each
// has one. Of calls that a death cut off the outcome is not known.
func (r *run) told(ctx context.Context, path string, cut int) error {
	rows, err := r.search(ctx, "path:"+path+" verdict:inject")
	if err != nil {
		return err
	}
	ids, ok := map[string]bool{}, 0
	for _, row := range rows {
		if ids[row.ID] {
			return fmt.Errorf("record %s is there twice", row.ID)
		}
		ids[row.ID] = true
		if row.Result != nil && row.Result.Outcome == audit.OutcomeOK {
			ok++
		}
	}
	seen := len(r.world.seen(reportsHost, path))
	if len(rows) < seen || ok > seen || ok < seen-cut {
		return fmt.Errorf("%d calls arrived at %s, and %d records tell of them, %d of an answer", seen, path, len(rows), ok)
	}
	return nil
}

// records: each call of a Job is in the store when the Job has ended, and its
// sidecar has signed the end of its records. An operator finds them by the
// command that reads stores.
func records(ctx context.Context, r *run) error {
	const path, n = "/v1/records", 20
	a := app{name: "records", image: imageClients, command: []string{"sh", "-c", fmt.Sprintf(`for i in $(echo %s); do curl -fsS -m 30 %s || exit 1; done`, strings.Repeat("x ", n), at(reportsHost, path))}}
	if err := r.apply(ctx, a.job(nsAgents)); err != nil {
		return err
	}
	if err := r.jobDone(ctx, nsAgents, a.name); err != nil {
		return err
	}
	pods, err := r.pods(ctx, nsAgents, "job-name="+a.name)
	if err != nil || len(pods) != 1 {
		return fmt.Errorf("%d pods: %w", len(pods), err)
	}
	heads, err := r.closed(ctx, &pods[0], 1)
	if err != nil {
		return err
	}
	if err := r.signed(ctx, heads[0]); err != nil {
		return err
	}
	if p := heads[0].Producer; p.Kind != audit.KindSidecar || p.Namespace != nsAgents || p.Workload != spiffeID(nsAgents) {
		return fmt.Errorf("the producer is %+v", p)
	}
	out, err := r.attache(ctx, "audit", "search", "--store", r.storeURL(), "-o", "json", "agent:"+spiffeID(nsAgents)+" path:"+path+" outcome:ok")
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(out) {
		var rec audit.Record
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			return fmt.Errorf("%w in %s", err, line)
		}
		if rec.Process == nil || rec.Process.UID != 1000 || rec.Credential == nil || rec.Credential.Handle == "" {
			return fmt.Errorf("record %s lacks the user or the credential: %s", rec.ID, line)
		}
		found++
	}
	if seen := len(r.world.seen(reportsHost, path)); found != n || seen != n {
		return fmt.Errorf("%d calls arrived, and %d of %d records are found: %s", seen, found, n, out)
	}
	return nil
}

// attache runs the operator's program.
func (r *run) attache(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(r.cli, "attache"), args...) //nolint:gosec // ours
	cmd.Env = append(os.Environ(), "HOME="+r.dir)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("attache %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return string(out), nil
}

// caughtUp waits until the records of the calls until now are in the store. A pod
// that is deleted before has a moment only, its grace period, to send what it has.
func (r *run) caughtUp(ctx context.Context, path string) error {
	begin, calls := time.Now(), len(r.world.seen(reportsHost, path))
	err := until(ctx, "the records of the outage arrive", func() (bool, string) {
		rows, err := r.search(ctx, "path:"+path+" outcome:ok")
		return err == nil && len(rows) >= calls, fmt.Sprintf("%d of %d, %v", len(rows), calls, err)
	})
	if err == nil {
		r.say("      what %s had kept was there %.1f s after the collector", path, time.Since(begin).Seconds())
	}
	return err
}

// signed says that the last line of an epoch is its end, signed. The collector
// has compared the signature with the peer's certificate.
func (r *run) signed(ctx context.Context, h store.Head) error {
	return r.inStore(ctx, func(db *store.DB) error {
		for l, err := range db.Lines(ctx, h.Epoch, h.Last) {
			if err != nil {
				return err
			}
			var rec audit.Record
			if err := json.Unmarshal(l.JSON, &rec); err != nil {
				return err
			}
			if e := rec.Event; e == nil || rec.Type != audit.TypeEpochEnd || e.Fields["signature"] == "" || e.Fields["last"] != fmt.Sprint(h.Last) {
				return fmt.Errorf("epoch %s does not end in a signed close: %s", h.Epoch, l.JSON)
			}
			return nil
		}
		return fmt.Errorf("epoch %s has no line %d", h.Epoch, h.Last)
	})
}

// collectorKilled kills the collector under load: nothing is lost, and nothing
// is there twice.
func collectorKilled(ctx context.Context, r *run) error {
	a := app{name: "load", args: []string{"loop", "20ms", at(reportsHost, "/v1/load")}}
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app="+a.name)
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/load", spiffeID(nsAgents)); err != nil {
		return err
	}
	c, err := r.auditReady(ctx)
	if err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/load"))
	if err := r.node.KillContainer(ctx, containerID(c, "audit")); err != nil {
		return err
	}
	if err := until(ctx, "the kubelet starts the collector again, and calls go on", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsControl).Get(ctx, c.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		n := len(r.world.seen(reportsHost, "/v1/load")) - seen
		return restarts(now, "audit") > restarts(c, "audit") && isReady(now) && n > 50, fmt.Sprintf("%d calls, %s", n, state(now))
	}); err != nil {
		return err
	}
	if err := r.caughtUp(ctx, "/v1/load"); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "delete", "deployment", a.name); err != nil {
		return err
	}
	if _, err := r.closed(ctx, p, 1); err != nil {
		return err
	}
	return r.told(ctx, "/v1/load", 1) // the agent is killed within a call, at most
}

// spoolResumes: a sidecar is killed. Its next start goes on with what the
// first one had not sent, and says which epoch it follows.
func spoolResumes(ctx context.Context, r *run) error {
	a := app{name: "resume", args: []string{"loop", "50ms", at(reportsHost, "/v1/resume")}}
	if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
		return err
	}
	p, err := r.pod(ctx, nsAgents, "app="+a.name)
	if err != nil {
		return err
	}
	if err := r.world.verified(ctx, reportsHost, "/v1/resume", spiffeID(nsAgents)); err != nil {
		return err
	}
	if err := r.node.KillContainer(ctx, containerID(p, "attache-sidecar")); err != nil {
		return err
	}
	if err := until(ctx, "the sidecar serves again", func() (bool, string) {
		now, err := r.kube.CoreV1().Pods(nsAgents).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return restarts(now, "attache-sidecar") > 0 && isReady(now), state(now)
	}); err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/resume"))
	if err := until(ctx, "calls go on", func() (bool, string) {
		return len(r.world.seen(reportsHost, "/v1/resume")) > seen+5, "they do not"
	}); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "delete", "deployment", a.name); err != nil {
		return err
	}
	heads, err := r.closed(ctx, p, 2)
	if err != nil {
		return err
	}
	if heads[0].Closed {
		return errors.New("the epoch that was killed has an end: the case is broken")
	}
	err = r.inStore(ctx, func(db *store.DB) error {
		for l, err := range db.Lines(ctx, heads[1].Epoch, 1) {
			if err != nil {
				return err
			}
			var rec audit.Record
			if err := json.Unmarshal(l.JSON, &rec); err != nil {
				return err
			}
			if e := rec.Event; e == nil || e.Fields["previous_epoch"] != heads[0].Epoch || e.Fields["previous_head"] != heads[0].Hash.String() {
				return fmt.Errorf("the second epoch does not follow %s (%s): %s", heads[0].Epoch, heads[0].Hash, l.JSON)
			}
			return nil
		}
		return errors.New("the second epoch has no first line")
	})
	return errors.Join(err, r.told(ctx, "/v1/resume", 2))
}

// lossOf is the pod that goes while the collector is down, keptBy one that stays.
var lossOf, keptBy *corev1.Pod

// collectorDown: calls go on, and an agent's pod goes with all that it could not
// send, while the collector is down. What becomes of the records, lossShown
// looks at when other cases have passed the time.
func collectorDown(ctx context.Context, r *run) error {
	lost, kept := looping("lost", reportsHost), looping("kept", reportsHost)
	for _, a := range []app{lost, kept} {
		if err := r.apply(ctx, a.deployment(nsAgents)); err != nil {
			return err
		}
	}
	for _, a := range []struct {
		name string
		pod  **corev1.Pod
	}{{lost.name, &lossOf}, {kept.name, &keptBy}} {
		p, err := r.pod(ctx, nsAgents, "app="+a.name)
		if err != nil {
			return err
		}
		*a.pod = p
		if err := until(ctx, a.name+"'s first records arrive", func() (bool, string) {
			heads, err := r.heads(ctx, p)
			return err == nil && len(heads) == 1 && heads[0].Last > 3, fmt.Sprint(heads, err)
		}); err != nil {
			return err
		}
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "scale", "statefulset/attache-audit", "--replicas=0"); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "wait", "--for=delete", "pod/"+auditPod, "--timeout=60s"); err != nil {
		return err
	}
	seen := len(r.world.seen(reportsHost, "/v1/lost"))
	if err := until(ctx, "calls go on without the collector", func() (bool, string) {
		return len(r.world.seen(reportsHost, "/v1/lost")) > seen+5, "they do not"
	}); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "delete", "deployment", lost.name, "--cascade=foreground"); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "scale", "statefulset/attache-audit", "--replicas=1"); err != nil {
		return err
	}
	_, err := r.auditReady(ctx)
	return err
}

// lossShown: what a pod has kept while the collector was down is there, all of
// it; what went with another pod is told, with its numbers.
func lossShown(ctx context.Context, r *run) error {
	if lossOf == nil {
		return errors.New("no pod was lost: run it with collector-down")
	}
	if err := r.caughtUp(ctx, "/v1/kept"); err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsAgents, "delete", "deployment", "kept"); err != nil {
		return err
	}
	if _, err := r.closed(ctx, keptBy, 1); err != nil {
		return err
	}
	if err := r.told(ctx, "/v1/kept", 1); err != nil {
		return err
	}
	heads, err := r.heads(ctx, lossOf)
	if err != nil || len(heads) != 1 || heads[0].Closed {
		return fmt.Errorf("the pod has not lost anything: %+v, %w", heads, err)
	}
	var rows []store.Row
	if err := until(ctx, "the loss is recorded", func() (bool, string) {
		rows, err = r.search(ctx, "event:"+audit.EventProducerLost+" "+string(lossOf.UID))
		return err == nil && len(rows) > 0, fmt.Sprint(rows, err)
	}); err != nil {
		return err
	}
	f := rows[0].Event.Fields
	if len(rows) != 1 || f["producer"] != string(lossOf.UID) || f["epoch"] != heads[0].Epoch || f["from"] != fmt.Sprint(heads[0].Last+1) {
		return fmt.Errorf("the pod's last line is %d of %s, and it is recorded as %v", heads[0].Last, heads[0].Epoch, rows)
	}
	return nil
}

// author: of a denied call's record one finds the text of the policy that
// denied it, and who wrote that.
func author(ctx context.Context, r *run) error {
	user, err := r.node.User("ana@example.com", "system:masters")
	if err != nil {
		return err
	}
	policy := fmt.Sprintf(`
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: author, namespace: %s}
spec:
  rules:
  - {name: closed, hosts: [%s], paths: ["/v1/author"], action: deny, reason: closed by ana}
`, nsAgents, openHost)
	if _, err := r.node.KubectlAs(ctx, user, policy, "apply", "-f", "-"); err != nil {
		return err
	}
	defer r.remove(ctx, nsAgents, "accesspolicy/author")
	if err := r.apply(ctx, looping("author", openHost).deployment(nsAgents)); err != nil {
		return err
	}
	var rows []store.Row
	if err := until(ctx, "the denial is recorded", func() (bool, string) {
		rows, err = r.search(ctx, "path:/v1/author verdict:deny")
		return err == nil && len(rows) > 0 && rows[0].Decision.Version != "", fmt.Sprint(len(rows), err)
	}); err != nil {
		return fmt.Errorf("%w; %s", err, r.appLog(ctx, nsAgents, "author"))
	}
	var documents []store.DocumentVersion
	return until(ctx, "version "+rows[0].Decision.Version+" of the policy is known, and by whom it is", func() (bool, string) {
		err := r.inStore(ctx, func(db *store.DB) (err error) {
			documents, err = db.Documents(ctx, store.DocumentQuery{Version: rows[0].Decision.Version, Kind: "AccessPolicy", Namespace: nsAgents, Name: "author"})
			return err
		})
		for _, d := range documents {
			if d.Author == "ana@example.com" && strings.Contains(d.Text, "closed by ana") {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v, %v", documents, err)
	})
}
