package api_test

import (
	"fmt"
	"testing"

	"github.com/attache-dev/attache/api"
)

// fleet has n namespaces, each with a provider and a policy of its own, and
// uses of a shared provider.
func fleet(t testing.TB, n int) api.Objects {
	o := cluster(t, shared, rails)
	for i := range n {
		more := objects(t,
			fmt.Sprintf(`{kind: CredentialProvider, metadata: {name: own, namespace: ns%d}, spec: {destinations: [{host: api.own.test}], jwt: {}}}`, i),
			fmt.Sprintf(`{kind: AccessPolicy, metadata: {name: uses, namespace: ns%d}, spec: {rules: [
				{name: shared, hosts: [a.shared.test], action: allow, when: task.open, credential: {provider: shared}},
				{name: own, hosts: [api.own.test], action: allow, credential: {provider: own}}]}}`, i))
		o.List = append(o.List, more...)
		o.Namespaces[fmt.Sprint("ns", i)] = map[string]string{"tier": "gold"}
	}
	return o
}

func BenchmarkCatalog(b *testing.B) {
	o := fleet(b, 200)
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			if _, err := api.NewCatalog(o); err != nil {
				b.Fatal(err)
			}
		}
	})
	c, err := api.NewCatalog(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("next", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			o.List[len(o.List)-1].Spec = fmt.Appendf(nil, `{"rules": [{"name": "r%d", "hosts": ["a.test"], "action": "allow"}]}`, i)
			if c, err = c.Next(o); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pod", func(b *testing.B) {
		pod := agent()
		pod.Namespace = "ns7"
		for b.Loop() {
			if _, err := c.ForPod(pod); err != nil {
				b.Fatal(err)
			}
		}
	})
}
