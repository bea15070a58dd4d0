package chart

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// policies are the guards of a rendering, by name.
func policies(t testing.TB, text string) map[string]object {
	t.Helper()
	all := map[string]object{}
	for _, doc := range strings.Split(text, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if o["kind"] == "ValidatingAdmissionPolicy" {
			all[o["metadata"].(object)["name"].(string)] = o
		}
	}
	return all
}

// without takes out the validation whose message has this text, and fails the
// test if none or more than one has.
func without(t testing.TB, policy object, message string) object {
	t.Helper()
	policy = runtime.DeepCopyJSON(policy)
	spec := policy["spec"].(object)
	removed := 0
	for _, v := range spec["validations"].([]any) {
		if strings.Contains(v.(object)["message"].(string), message) {
			removed++
			v.(object)["expression"] = "true"
		}
	}
	if removed != 1 {
		t.Fatalf("%d validations have %q in their message; want one", removed, message)
	}
	return policy
}

// only makes a copy of a policy that speaks of the namespaces with one label,
// with its binding.
func only(t testing.TB, policy object, name, label string) string {
	t.Helper()
	policy = runtime.DeepCopyJSON(policy)
	policy["metadata"] = object{"name": name}
	spec := policy["spec"].(object)
	spec["matchConstraints"].(object)["namespaceSelector"] = object{"matchLabels": object{"chart-test": label}}
	binding := object{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": object{"name": name},
		"spec": object{"policyName": name, "validationActions": []any{"Deny"}},
	}
	if spec["paramKind"] != nil {
		binding["spec"].(object)["paramRef"] = object{"name": "attache-guard", "namespace": release, "parameterNotFoundAction": "Deny"}
	}
	var text strings.Builder
	for _, o := range []object{policy, binding} {
		b, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "---\n%s", b)
	}
	return text.String()
}

func (a podAttack) pod(t testing.TB) object {
	p := agentPod()
	if a.from == nil {
		p = injected(t, a.mode)
	}
	a.change(p)
	return p
}

// Each attack is refused by the validation that is meant for it, and admitted
// when that validation alone is taken out. Harmless pods are admitted.
func TestPodGuards(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	guards := map[string]map[string]object{"": policies(t, render(t, ""))}
	for name, values := range renderings {
		guards[name] = policies(t, render(t, values))
	}
	const policy = "attache-pods"
	var text strings.Builder
	for name, g := range guards {
		if name != "" {
			text.WriteString(only(t, g[policy], "test-"+name, name))
		}
	}
	mutant := func(i int) string { return fmt.Sprintf("test-mutant-%d", i) }
	for i, a := range podAttacks {
		text.WriteString(only(t, without(t, guards[a.rendering][policy], a.want), mutant(i), mutant(i)))
	}
	g.apply(t, text.String())

	namespace := func(label string, more map[string]string) string {
		labels := map[string]string{"chart-test": label}
		if label == "" {
			labels = map[string]string{"attache.dev/inject": "enabled"}
		}
		maps.Copy(labels, more)
		return g.namespace(t, labels)
	}
	// A pod that every form of the policy refuses twice: it tells whether the
	// policy is active at all.
	canary := injected(t, "")
	onSpec(set("hostPID", true))(canary)
	onSpec(set("hostNetwork", true))(canary)
	active := func(ns string) {
		waitActive(t, "the policy in "+ns, func() string {
			_, err := create(ctx, g.eve, ns, canary)
			return refusal(err)
		})
	}
	for i, a := range podAttacks {
		t.Run("deny "+a.name, func(t *testing.T) {
			t.Parallel()
			ns := namespace(a.rendering, a.labels)
			active(ns)
			_, err := create(ctx, g.eve, ns, a.pod(t))
			if got := refusal(err); !strings.Contains(got, a.want) {
				t.Errorf("got %v, want a refusal with %q", err, a.want)
			}
			ns = namespace(mutant(i), a.labels)
			active(ns)
			if _, err := create(ctx, g.eve, ns, a.pod(t)); err != nil {
				t.Errorf("without that validation got %v, want the pod admitted: what else refuses it?", err)
			}
		})
	}
	for _, a := range harmlessPods {
		t.Run("admit "+a.name, func(t *testing.T) {
			t.Parallel()
			ns := namespace(a.rendering, a.labels)
			active(ns)
			if _, err := create(ctx, g.eve, ns, a.pod(t)); err != nil {
				t.Error(err)
			}
		})
	}
	// Every validation has an attack.
	for rendering, g := range guards {
		for _, v := range g[policy]["spec"].(object)["validations"].([]any) {
			found := false
			for _, a := range podAttacks {
				found = found || strings.Contains(v.(object)["message"].(string), a.want)
			}
			if !found {
				t.Errorf("rendering %q: no attack on %v", rendering, v.(object)["message"])
			}
		}
	}
}
