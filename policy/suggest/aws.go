package suggest

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy/awsscope"
	"github.com/attache-dev/attache/policy/replay"
)

// narrowAWS writes the policy of an aws credential from what calls asked. What
// they asked lies within the rule's present policy; where that has more than
// plain Allow statements, it stays as it is, for a list of what was used would
// lose its conditions.
func (d *draft) narrowAWS(r *ruleDraft) {
	if r.Credential == nil || len(r.uses) == 0 {
		return
	}
	if u := r.uses[0].record.Credential; u == nil || u.AWS == nil {
		return
	}
	r.RawPaths = false // read by awsscope, byte for byte
	scope := v1alpha1.AWSScope{}
	if r.Credential.AWS != nil {
		scope = *r.Credential.AWS
	}
	if scope.Granularity == string(awsscope.GranularitySession) || scope.Granularity == string(awsscope.GranularityTask) || !plain(d.most(r.Credential)) {
		return
	}
	by := map[string]map[string]bool{} // resources by action
	for _, u := range r.uses {
		access, why := replay.AccessOf(&u.record)
		if why != "" {
			return
		}
		for _, a := range access {
			if by[a.Action] == nil {
				by[a.Action] = map[string]bool{}
			}
			for _, res := range a.Resources {
				by[a.Action][string(res)] = true
			}
		}
	}
	doc, ok := document(by, d.exact[r.Hosts[0]])
	if !ok {
		return
	}
	scope.Policy = doc
	r.Credential.AWS = &scope
	r.Paths = nil // the policy names the objects
}

// most is the policy that bounds a rule's sessions now; nil: none does.
func (d *draft) most(c *v1alpha1.CredentialRef) json.RawMessage {
	if c.AWS != nil && len(c.AWS.Policy) > 0 {
		return c.AWS.Policy
	}
	if b := d.b.opts.Bundle; b != nil {
		for i := range b.Providers {
			if p := &b.Providers[i]; p.Metadata.Name == c.Provider && p.Spec.AWS != nil {
				return p.Spec.AWS.Policy
			}
		}
	}
	return nil
}

// plain reports a policy, or none, of Allow statements with nothing but actions
// and resources.
func plain(doc json.RawMessage) bool {
	if len(doc) == 0 {
		return true
	}
	var p struct{ Statement json.RawMessage }
	if json.Unmarshal(doc, &p) != nil {
		return false
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(p.Statement, &list) != nil {
		var one map[string]json.RawMessage
		if json.Unmarshal(p.Statement, &one) != nil {
			return false
		}
		list = append(list, one)
	}
	for _, s := range list {
		for k, v := range s {
			switch k {
			case "Sid", "Action", "Resource":
			case "Effect":
				if string(bytes.TrimSpace(v)) != `"Allow"` {
					return false
				}
			default:
				return false
			}
		}
	}
	return true
}

// manyObjects is from how many on objects of one folder become all of it.
const manyObjects = 4

// document is an IAM policy: one statement for all actions with equal
// resources. It answers false where that would not compile.
func document(by map[string]map[string]bool, exact bool) (json.RawMessage, bool) {
	type statement struct {
		Effect           string
		Action, Resource []string
	}
	same := map[string]*statement{}
	for _, action := range slices.Sorted(maps.Keys(by)) {
		res := slices.Sorted(maps.Keys(by[action]))
		if !exact {
			res = folders(res)
		}
		k := strings.Join(res, "\n")
		if same[k] == nil {
			same[k] = &statement{Effect: "Allow", Resource: res}
		}
		same[k].Action = append(same[k].Action, action)
	}
	doc := struct {
		Version   string
		Statement []*statement
	}{Version: "2012-10-17"}
	for _, k := range slices.Sorted(maps.Keys(same)) {
		doc.Statement = append(doc.Statement, same[k])
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, false
	}
	_, err = awsscope.ParsePolicy(b)
	return b, err == nil
}

// folders replaces many resources of one folder by all of it.
func folders(list []string) []string {
	in := map[string]int{}
	folder := func(s string) string {
		if i := strings.LastIndexByte(s, '/'); i > 0 && strings.HasPrefix(s, "arn:") {
			return s[:i+1]
		}
		return ""
	}
	for _, s := range list {
		in[folder(s)]++
	}
	var out []string
	for _, s := range list {
		if f := folder(s); f != "" && in[f] >= manyObjects {
			s = f + "*"
		}
		out = append(out, s)
	}
	return slices.Compact(slices.Sorted(slices.Values(out)))
}
