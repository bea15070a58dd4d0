package api

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"slices"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// digest fills in Generations and Version. Paths are not enough: a CA file
// that changes in place is a changed provider.
func (l *loader) digest(b *Bundle) {
	b.Generations = make(map[string]string, len(b.Providers))
	for _, p := range b.Providers {
		h := sha256.New()
		writeJSON(h, p.Spec)
		for _, d := range p.Spec.Destinations {
			l.hashFile(h, d.CAFile)
		}
		if p.Spec.OAuth2 != nil {
			l.hashFile(h, p.Spec.OAuth2.CAFile)
		}
		if p.Spec.AWS != nil {
			l.hashFile(h, p.Spec.AWS.CAFile)
		}
		if p.Spec.APIKey != nil && p.Spec.APIKey.Vault != nil {
			l.hashFile(h, p.Spec.APIKey.Vault.CAFile)
		}
		b.Generations[p.Metadata.Name] = hex.EncodeToString(h.Sum(nil))
	}
	h := sha256.New()
	providers := slices.SortedFunc(slices.Values(b.Providers), func(x, y v1alpha1.CredentialProvider) int {
		return cmp.Compare(x.Metadata.Name, y.Metadata.Name)
	})
	policies := slices.SortedFunc(slices.Values(b.Policies), func(x, y v1alpha1.AccessPolicy) int {
		return cmp.Or(cmp.Compare(x.Metadata.Namespace, y.Metadata.Namespace), cmp.Compare(x.Metadata.Name, y.Metadata.Name))
	})
	writeJSON(h, b.Config)
	writeJSON(h, providers)
	writeJSON(h, policies)
	writeJSON(h, b.Grants)
	for _, f := range b.files {
		l.hashFile(h, f)
	}
	b.Version = hex.EncodeToString(h.Sum(nil))
}

// hashFile adds what a CA file held when it was checked.
func (l *loader) hashFile(h hash.Hash, path string) {
	if path == "" {
		return
	}
	sum := sha256.Sum256(l.certs[path].data)
	writeJSON(h, path)
	h.Write(sum[:])
}

// writeJSON is unambiguous: field names are written, map keys are sorted.
func writeJSON(h hash.Hash, v any) {
	data, err := json.Marshal(v)
	if err != nil { // only values that were parsed from YAML
		panic("api: marshal document: " + err.Error())
	}
	h.Write(data)
	h.Write([]byte{0})
}
