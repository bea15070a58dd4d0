package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// kindSidecar is the kind of producers that have no say in what policies were:
// each sits beside an agent.
const kindSidecar = "sidecar"

// document keeps what a record of the control plane says of documents: a change
// of one, or which ones a version of the policy set consists of.
func (c *commit) document(ctx context.Context, r *audit.Record) error {
	if r.Change == nil && (r.Event == nil || r.Event.Name != audit.EventPolicyBundle) {
		return nil
	}
	if e := c.epochs[r.Epoch]; e == nil || e.producer.Kind == kindSidecar {
		return nil
	}
	if r.Change != nil {
		return c.change(ctx, r)
	}
	for _, x := range bundleOf(r) {
		if _, err := c.t.exec(ctx, "INSERT INTO bundle (version, digest) VALUES (?,?) ON CONFLICT DO NOTHING", x[0], x[1]); err != nil {
			return err
		}
	}
	return nil
}

// bundleOf returns version and digest of each document of a policy set that a
// record tells of.
func bundleOf(r *audit.Record) [][2]string {
	if r.Event == nil || r.Event.Name != audit.EventPolicyBundle {
		return nil
	}
	version := plain(r.Event.Fields["version"])
	if version == "" {
		return nil
	}
	var l [][2]string
	for key, text := range r.Event.Fields {
		if key != "documents" && !strings.HasPrefix(key, "documents.") {
			continue
		}
		for line := range strings.Lines(text) { // kind, name, generation, digest
			if f := strings.Fields(plain(line)); len(f) > 0 {
				l = append(l, [2]string{version, f[len(f)-1]})
			}
		}
	}
	return l
}

// documentOf returns the version of a document that a record tells of; false if
// it is no document of ours.
func documentOf(r *audit.Record) (DocumentVersion, bool) {
	ch := r.Change
	if ch == nil || ch.VersionAfter == "" && ch.VersionBefore == "" {
		return DocumentVersion{}, false
	}
	v := DocumentVersion{Digest: ch.VersionAfter, Kind: ch.Kind, Namespace: ch.Namespace, Name: ch.Name, Operation: ch.Operation,
		Previous: ch.VersionBefore, Text: ch.Text, Diff: ch.Diff, Time: r.Time, Record: r.ID}
	if r.Event != nil {
		v.Event = r.Event.Name
	}
	if ch.By != nil {
		v.Author, v.Groups = ch.By.Username, ch.By.Groups
	}
	return v, true
}

func (c *commit) change(ctx context.Context, r *audit.Record) error {
	v, ok := documentOf(r)
	if !ok {
		return nil
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.counters.Document++
	_, err = c.t.exec(ctx, "INSERT INTO document (number, digest, kind, namespace, name, time, record, body) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
		c.counters.Document, plain(v.Digest), plain(v.Kind), plain(v.Namespace), plain(v.Name), r.Time.UnixMicro(), plain(r.ID), body)
	return err
}

const (
	defaultDocuments = 100
	maxDocuments     = 1000
)

// Documents returns document versions, newest first. They are kept longer than
// the records that told of them.
func (d *DB) Documents(ctx context.Context, q DocumentQuery) ([]DocumentVersion, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = defaultDocuments
	}
	where, args := "WHERE 1 = 1", []any{}
	for _, x := range []struct{ term, value string }{
		{" AND digest = ?", q.Digest},
		{" AND kind = ?", q.Kind},
		{" AND namespace = ?", q.Namespace},
		{" AND name = ?", q.Name},
		{" AND digest IN (SELECT digest FROM bundle WHERE version = ?)", q.Version},
	} {
		if x.value != "" {
			where += x.term
			args = append(args, plain(x.value))
		}
	}
	var l []DocumentVersion
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		var err error
		if l, err = t.documents(ctx, where+" ORDER BY time DESC, number DESC LIMIT ?", append(args, min(limit, maxDocuments))...); err != nil {
			return err
		}
		for i := range l {
			if l[i].Author == "" && l[i].Digest != "" {
				if err := t.author(ctx, &l[i]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return l, err
}

func (t *tx) documents(ctx context.Context, where string, args ...any) ([]DocumentVersion, error) {
	var l []DocumentVersion
	err := t.each(ctx, func(scan func(...any) error) error {
		var body []byte
		if err := scan(&body); err != nil {
			return err
		}
		var v DocumentVersion
		if err := json.Unmarshal(body, &v); err != nil {
			return damaged("a document version: %v", err)
		}
		l = append(l, v)
		return nil
	}, "SELECT body FROM document "+where, args...)
	return l, err
}

// author finds who asked for a version that came to be: admission knows the
// person, and the controller that saw the result does not.
func (t *tx) author(ctx context.Context, v *DocumentVersion) error {
	l, err := t.documents(ctx, "WHERE digest = ? AND kind = ? AND namespace = ? AND name = ? ORDER BY time DESC, number DESC LIMIT 50",
		plain(v.Digest), plain(v.Kind), plain(v.Namespace), plain(v.Name))
	if err != nil {
		return err
	}
	// The request comes before what came of it, by another replica's clock.
	for _, x := range l {
		if x.Author != "" && x.Time.Before(v.Time.Add(clockSkew)) {
			v.Author, v.Groups = x.Author, x.Groups
			if v.Diff == "" {
				v.Diff = x.Diff
			}
			return nil
		}
	}
	return nil
}

// clockSkew is how much the clocks of two replicas may differ.
const clockSkew = time.Minute
