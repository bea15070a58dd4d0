package reconcile

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/control/xds"
)

// maxReport bounds a report, packed; a ConfigMap holds 1 MiB. With about 30
// bytes a pod this is some 30,000 pods of one replica.
const (
	maxReport   = 900 << 10
	maxUnpacked = 64 << 20
	reportKey   = "acks.json.gz"
)

// report is what sidecars said to one replica. Each replica keeps one in a
// ConfigMap of its own, since only the leader writes status.
type report struct {
	Time time.Time            `json:"time"`
	Sets [][]generation       `json:"sets"` // what bundles were made of
	Pods map[string]reportPod `json:"pods"` // by uid
}

type generation struct {
	Kind       string `json:"k"`
	Namespace  string `json:"ns,omitempty"`
	Name       string `json:"n"`
	Generation int64  `json:"g"`
}

type reportPod struct {
	Set         int      `json:"s"` // index of Sets; -1: nothing applied yet
	Nack        string   `json:"e,omitempty"`
	Revocations []string `json:"r,omitempty"`
	At          int64    `json:"t"` // Unix seconds, whole minutes
	Ended       bool     `json:"x,omitempty"`
}

// ownReport is what sidecars said to this replica.
func (e *Engine) ownReport() report {
	r := report{Pods: map[string]reportPod{}}
	index := map[string]int{}
	for uid, a := range e.Store.Acks() {
		p := reportPod{Set: -1, Nack: a.Nack, At: a.Heard.Truncate(time.Minute).Unix(), Revocations: slices.Sorted(maps.Keys(a.Revocations)), Ended: !a.Ended.IsZero()}
		if a.Bundle != nil {
			set := make([]generation, 0, len(a.Bundle.Objects))
			for o, g := range a.Bundle.Objects {
				set = append(set, generation{o.Kind, o.Namespace, o.Name, g})
			}
			slices.SortFunc(set, func(x, y generation) int {
				return bytes.Compare([]byte(x.Kind+"\x00"+x.Namespace+"\x00"+x.Name), []byte(y.Kind+"\x00"+y.Namespace+"\x00"+y.Name))
			})
			key := fmt.Sprint(set)
			i, ok := index[key]
			if !ok {
				i = len(r.Sets)
				index[key] = i
				r.Sets = append(r.Sets, set)
			}
			p.Set = i
		}
		r.Pods[uid] = p
	}
	return r
}

// merge adds what a report says. A pod that two replicas know was heard last
// by one of them.
func (r *report) merge(into map[string]heard) {
	sets := make([]map[xds.Object]int64, len(r.Sets))
	for i, set := range r.Sets {
		sets[i] = make(map[xds.Object]int64, len(set))
		for _, g := range set {
			sets[i][xds.Object{Kind: g.Kind, Namespace: g.Namespace, Name: g.Name}] = g.Generation
		}
	}
	for uid, p := range r.Pods {
		h := heard{Ended: p.Ended, Nack: p.Nack, At: time.Unix(p.At, 0), Revocations: map[string]bool{}}
		if p.Set >= 0 && p.Set < len(sets) {
			h.Objects = sets[p.Set]
		}
		for _, id := range p.Revocations {
			h.Revocations[id] = true
		}
		old, ok := into[uid]
		switch {
		case !ok, old.Ended && !h.Ended:
		case h.Ended && !old.Ended:
			continue
		case h.At.After(old.At):
		case old.At.After(h.At):
			continue
		case len(h.Objects) == 0: // in the same minute: the one that knows more
			continue
		}
		for id := range old.Revocations { // once revoked, revoked
			h.Revocations[id] = true
		}
		into[uid] = h
	}
}

// pack encodes r with its time.
func (r report) pack(now time.Time) ([]byte, error) {
	r.Time = now
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(r); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if b.Len() > maxReport {
		return nil, fmt.Errorf("what %d sidecars said is %d bytes long, packed; at most %d can be reported", len(r.Pods), b.Len(), maxReport)
	}
	return b.Bytes(), nil
}

func unpack(data []byte) (report, error) {
	var r report
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return r, err
	}
	err = json.NewDecoder(io.LimitReader(z, maxUnpacked)).Decode(&r)
	return r, err
}

// writeReport stores this replica's report.
func (e *Engine) writeReport(ctx context.Context, r report) error {
	data, err := r.pack(e.Now())
	if err != nil {
		return err
	}
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: reportPrefix + e.Replica, Labels: map[string]string{reportLabel: reportLabelValue}},
		BinaryData: map[string][]byte{reportKey: data},
	}
	e.metrics.writes.WithLabelValues("report").Inc()
	err = e.Client.Update(ctx, m, client.FieldOwner(FieldOwner))
	if apierrors.IsNotFound(err) {
		err = e.Client.Create(ctx, m, client.FieldOwner(FieldOwner))
	}
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// heard gathers what sidecars said to all replicas, and removes the reports of
// replicas that are long gone.
func (e *Engine) heard(ctx context.Context, own report) (map[string]heard, error) {
	out := map[string]heard{}
	own.merge(out)
	list := &corev1.ConfigMapList{}
	if err := e.Cache.List(ctx, list, client.InNamespace(e.Namespace), client.MatchingLabels{reportLabel: reportLabelValue}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list reports: %w", err)
	}
	for i := range list.Items {
		m := &list.Items[i]
		if m.Name == reportPrefix+e.Replica {
			continue
		}
		r, err := unpack(m.BinaryData[reportKey])
		switch age := e.Now().Sub(r.Time); {
		case err == nil && age < reportOld:
			r.merge(out)
		case err != nil || age > 20*reportOld:
			if err := e.Client.Delete(ctx, m.DeepCopy()); client.IgnoreNotFound(err) != nil {
				e.Log.WarnContext(ctx, "old report not removed", "name", m.Name, "cause", err)
			}
		}
	}
	return out, nil
}
