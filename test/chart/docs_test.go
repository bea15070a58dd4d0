package chart

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const guardsPage = "../../docs/guards.md"

// The page of the guards lists what these tests try, and nothing else.
func TestGuardsPage(t *testing.T) {
	var b strings.Builder
	row := func(number, star, name, policy, does string) {
		if number == "" {
			number = "–"
		}
		fmt.Fprintf(&b, "| %s | %s%s | `%s` | %s |\n", number, name, star, policy, does)
	}
	b.WriteString("Numbers 1 to 11 are the attacks that were known when the guards were designed, 12 is the pod that no webhook has seen; the others were found while building them.\n\n")
	b.WriteString("| # | attack | policy | refused with |\n|---|---|---|---|\n")
	attacks := 0
	for _, a := range podAttacks {
		note := ""
		switch {
		case a.rendering != "":
			note = " (`" + strings.TrimSuffix(strings.TrimPrefix(renderings[a.rendering], "guards: {"), "}\n") + "`)"
		case a.mode != "":
			note = " (" + string(a.mode) + ")"
		}
		row(a.number, note, a.name, "attache-pods", "…"+a.want+"…")
		attacks++
	}
	tenants := map[string]bool{"attache-pod-status": true, "attache-bindings": true}
	for _, c := range podChanges {
		star := ""
		if tenants[c.policy] || strings.HasSuffix(c.name, "by status") {
			star = " *"
		}
		row(c.number, star, c.name, c.policy, "…"+c.want+"…")
		attacks++
	}
	for _, c := range namespaceChanges {
		row(c.number, " *", "namespace: "+c.name, "attache-namespaces", "…"+c.want+"…")
		attacks++
	}
	for _, c := range []string{"namespace: no opt-in, by finalizers", "namespace: labels that providers select by (`frozenNamespaceLabels`)"} {
		row("", " *", c, "attache-namespaces", "")
		attacks++
	}
	row("3", "", "token request with our audience, in the namespace and elsewhere, bound to a pod, or by a user called like a node", "attache-tokens", "…only nodes may ask for it…")
	row("3", "", "request for a certificate of our signer, by who may make requests, or by a user called like a node", "attache-certificates", "…only nodes may ask for it…")
	row("7", " *", "exec, run, attach or checkpoint through nodes/proxy, also with a path written in another way", "attache-nodes", "…nobody may exec in, attach to or checkpoint…")
	attacks += 3
	fmt.Fprintf(&b, "\n%d attacks. Harmless, and admitted: ", attacks)
	var names []string
	for _, a := range harmlessPods {
		names = append(names, a.name)
	}
	for _, c := range harmlessChanges {
		names = append(names, c.name)
	}
	b.WriteString(strings.Join(names, "; ") + ".\n")

	text, err := os.ReadFile(guardsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- attacks -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- /attacks -->")
	if !ok || !ok2 {
		t.Fatal("docs/guards.md has no place for the attacks")
	}
	want := before + "<!-- attacks -->\n" + b.String() + "<!-- /attacks -->" + after
	if *update {
		if err := os.WriteFile(guardsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if string(text) != want && !*update {
		t.Error("docs/guards.md is stale: go test ./test/chart -run TestGuardsPage -update")
	}
}
