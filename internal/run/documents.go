package run

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/replace"
)

// knownDocuments is the file beside a spool that says which documents it holds
// already: a folder of documents that did not change is recorded once a day.
const knownDocuments = "documents.json"

const (
	documentsAgain = 24 * time.Hour // before a spool that is bounded lets go of them
	opLoad         = "load"
)

// known is what a spool holds of documents.
type known struct {
	Versions  map[string]time.Time `json:"versions"`  // sets of documents, by version
	Documents map[string]knownText `json:"documents"` // the newest text of each, by kind and name
}

type knownText struct {
	Digest string    `json:"digest"`
	At     time.Time `json:"at"`
}

// fresh reports whether what was recorded then is still there.
func fresh(at, now time.Time) bool { return now.Sub(at) < documentsAgain && !now.Before(at) }

// document is one as records have it.
type document struct {
	kind, namespace, name string
	text, digest          string
}

// recordDocuments writes the documents of a bundle to the records, unless the
// spool holds them: who reads that a decision was made by a version opens its
// texts. It is as in a cluster: an event for each text that is new, and one for
// what the version consists of.
func (p *plane) recordDocuments(b *api.Bundle, now time.Time) error {
	file := filepath.Join(p.spoolDir, knownDocuments)
	k := readKnown(file)
	if at, ok := k.Versions[b.Version]; ok && fresh(at, now) {
		return nil
	}
	docs, err := documentsOf(b)
	if err != nil {
		return err
	}
	var members []string
	for _, d := range docs {
		members = append(members, fmt.Sprintf("%s %s 0 %s", d.kind, strings.TrimPrefix(d.namespace+"/"+d.name, "/"), d.digest))
		before := k.Documents[d.at()]
		if before.Digest == d.digest && fresh(before.At, now) {
			continue
		}
		r := &audit.Record{Event: &audit.Event{Name: changedEvent(d.kind), Fields: map[string]string{"kind": d.kind, "name": d.name, "operation": opLoad, "config": p.o.Config}},
			Change: &audit.Change{Kind: d.kind, Namespace: d.namespace, Name: d.name, Operation: opLoad, VersionAfter: d.digest, Text: d.text}}
		if before.Digest != d.digest {
			r.Change.VersionBefore = before.Digest
		}
		if err := p.spool.Write(r); err != nil {
			return fmt.Errorf("record %s %s: %w", d.kind, d.name, err)
		}
		k.Documents[d.at()] = knownText{d.digest, now}
	}
	if err := p.spool.Event(audit.EventPolicyBundle, audit.BundleFields(b.Version, members)); err != nil {
		return fmt.Errorf("record what policy version %s consists of: %w", b.Version, err)
	}
	for v, at := range k.Versions {
		if !fresh(at, now) {
			delete(k.Versions, v)
		}
	}
	k.Versions[b.Version] = now
	// Without the file they are recorded once more: that loses nothing.
	if err := k.write(file); err != nil {
		p.o.Log.Warn("not noted that documents are recorded", "cause", err)
	}
	return nil
}

// apply puts an edit in force and records its documents.
func (p *plane) apply(b *api.Bundle) error {
	if err := p.Apply(b); err != nil {
		return err
	}
	if err := p.recordDocuments(b, time.Now()); err != nil {
		p.o.Log.Error("the documents that came into force are not recorded", "cause", err)
	}
	return nil
}

func (d *document) at() string { return d.kind + " " + d.namespace + "/" + d.name }

// documentsOf are the documents of a bundle as they are in force, with defaults.
func documentsOf(b *api.Bundle) ([]document, error) {
	var out []document
	add := func(t v1alpha1.TypeMeta, m v1alpha1.ObjectMeta, of any) error {
		text, err := documentText(of)
		if err != nil {
			return fmt.Errorf("%s %s: %w", t.Kind, m.Name, err)
		}
		sum := sha256.Sum256(text)
		out = append(out, document{t.Kind, m.Namespace, m.Name, string(text), hex.EncodeToString(sum[:])})
		return nil
	}
	err := add(b.Config.TypeMeta, b.Config.Metadata, b.Config)
	for i := range b.Providers {
		err = errors.Join(err, add(b.Providers[i].TypeMeta, b.Providers[i].Metadata, b.Providers[i]))
	}
	for i := range b.Policies {
		err = errors.Join(err, add(b.Policies[i].TypeMeta, b.Policies[i].Metadata, b.Policies[i]))
	}
	return out, err
}

// documentText is a document as YAML. Equal documents have equal texts.
func documentText(of any) ([]byte, error) {
	b, err := json.Marshal(of)
	if err != nil {
		return nil, err
	}
	var n yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(b, &n); err != nil {
		return nil, err
	}
	block(&n)
	return yaml.Marshal(&n)
}

// block turns JSON's style into that of documents.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

func changedEvent(kind string) string {
	switch kind {
	case v1alpha1.KindAttacheConfig:
		return audit.EventConfigChanged
	case v1alpha1.KindCredentialProvider, v1alpha1.KindClusterCredentialProvider:
		return audit.EventProviderChanged
	}
	return audit.EventPolicyChanged
}

// readKnown reads the file; what cannot be read is not known.
func readKnown(file string) known {
	k := known{}
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &k) != nil {
		k = known{}
	}
	if k.Versions == nil {
		k.Versions = map[string]time.Time{}
	}
	if k.Documents == nil {
		k.Documents = map[string]knownText{}
	}
	return k
}

// write replaces the file in one step: a killed run leaves the old one.
func (k *known) write(file string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return replace.File(file, b, replace.How{Durability: replace.Volatile, Sole: true})
}
