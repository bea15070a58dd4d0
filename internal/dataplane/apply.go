package dataplane

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// Apply puts a bundle in force, or changes nothing.
func (p *Plane) Apply(b *api.Bundle) error {
	p.mu.Lock()
	same := p.applied == b.Version
	p.mu.Unlock()
	if same {
		return nil
	}
	state, routes, err := pipeline.NewState(b, p.proofs)
	if err != nil {
		return err
	}
	minters, err := p.minters(b)
	if err != nil {
		return err
	}
	p.router.Set(minters)
	p.upstream.SetRoutes(routes)
	p.pipe.SetState(state)
	fields := describe(b)
	if later := waitsForRestart(p.cfg.Bundle, b); len(later) > 0 {
		fields["needs_restart"] = strings.Join(later, "; ")
		for _, l := range later {
			p.say("start attache run again for this edit: " + l)
		}
	}
	p.mu.Lock()
	p.applied = b.Version
	p.mu.Unlock()
	p.inForce.Set(1)
	p.Event("policy.loaded", fields)
	return nil
}

// Rejected is told of an edit that is not in force, and by nil that the
// documents are good again.
func (p *Plane) Rejected(err error) {
	if err == nil {
		p.inForce.Set(1)
		p.say("the configuration is good again")
		return
	}
	p.inForce.Set(0)
	p.Event("policy.rejected", map[string]string{"error": err.Error()})
	p.say("the edited configuration is not in force, the last good one stays:", err.Error())
}

// minters makes the providers of a bundle.
func (p *Plane) minters(b *api.Bundle) (map[string]minting.Minter, error) {
	deps := minting.Deps{Client: p.upstream.Client, Logger: p.cfg.Log, Now: time.Now, Env: p.env.Take, Broker: p.cfg.Broker}
	first := KeyFiles(p.cfg.Bundle)
	out := make(map[string]minting.Minter, len(b.Providers))
	for i := range b.Providers {
		doc := b.Providers[i]
		at := func(field, text string) error {
			return api.Problem{Ref: api.Ref{Kind: v1alpha1.KindCredentialProvider, Namespace: doc.Metadata.Namespace, Name: doc.Metadata.Name, Field: field}, Text: text}
		}
		// A variable that the agent may have inherited is no place for a key.
		if k := doc.Spec.APIKey; k != nil && k.Env != "" && !slices.Contains(p.keys, k.Env) {
			return nil, at("spec.apiKey.env", k.Env+" is taken from the environment at the start only; start attache run again")
		}
		// Nor is a file that its sandbox, made at the start, does not hide.
		if k := doc.Spec.APIKey; k != nil && k.File != "" && !slices.Contains(first, k.File) {
			return nil, at("spec.apiKey.file", k.File+" is hidden from the agent at the start only; start attache run again")
		}
		if a := doc.Spec.AWS; a != nil && a.TokenFile != "" && !slices.Contains(first, a.TokenFile) {
			return nil, at("spec.aws.tokenFile", a.TokenFile+" is hidden from the agent at the start only; start attache run again")
		}
		m, err := all.Guarded(doc, deps, &p.guard)
		if err != nil {
			return nil, at("spec", err.Error())
		}
		out[doc.Metadata.Name] = minting.OfGeneration(b.Generations[doc.Metadata.Name], m)
	}
	return out, nil
}

// KeyFiles lists the files of a bundle that hold keys, or a token that stands
// for one.
func KeyFiles(b *api.Bundle) []string {
	var files []string
	for i := range b.Providers {
		if k := b.Providers[i].Spec.APIKey; k != nil && k.File != "" {
			files = append(files, k.File)
		}
		if a := b.Providers[i].Spec.AWS; a != nil && a.TokenFile != "" {
			files = append(files, a.TokenFile)
		}
	}
	for _, s := range b.Config.Spec.Audit.Sinks {
		for _, h := range s.HeadersFrom {
			files = append(files, h.File)
		}
		for _, f := range []string{s.TLS.KeyFile, s.ObjectStore.AccessKeyFile, s.ObjectStore.SecretKeyFile} {
			if f != "" {
				files = append(files, f)
			}
		}
	}
	return files
}

// waitsForRestart lists what of an edited bundle takes effect only when the
// run starts again: the agent's environment, its ports, and the program's own
// settings are made once.
func waitsForRestart(old, b *api.Bundle) []string {
	var out []string
	if !reflect.DeepEqual(old.Config.Spec, b.Config.Spec) {
		out = append(out, "AttacheConfig is read at the start")
	}
	had := atStart(old)
	for name, what := range atStart(b) {
		if had[name] != what {
			out = append(out, fmt.Sprintf("%s is made at the start", name))
		}
	}
	slices.Sort(out)
	return out
}

// atStart describes what providers ask for in the agent's environment.
func atStart(b *api.Bundle) map[string]string {
	out := map[string]string{}
	for i := range b.Providers {
		for _, ph := range b.Providers[i].Spec.Placeholders {
			out["placeholder "+ph.Env] = b.Providers[i].Metadata.Name + " " + ph.Prefix
		}
		if a := b.Providers[i].Spec.AWS; a != nil {
			out["AWS environment of "+b.Providers[i].Metadata.Name] = fmt.Sprint(a.Doors, a.RoleARN, a.Region, a.Endpoint)
		}
		for _, u := range b.Providers[i].Spec.BaseURLs {
			out["base URL "+u.Env] = fmt.Sprintf("%+v", u)
		}
	}
	return out
}
