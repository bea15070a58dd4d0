package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity"
	compiler "github.com/attache-dev/attache/policy"
)

// objects reads documents as the API server would have them, each a second
// younger than the one before.
func objects(t testing.TB, parts ...string) []api.Object {
	t.Helper()
	var list []api.Object
	for i, p := range parts {
		var doc struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
			Spec     any
		}
		if err := yaml.Unmarshal([]byte(p), &doc); err != nil {
			t.Fatal(err)
		}
		spec, err := json.Marshal(doc.Spec)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, api.Object{Kind: doc.Kind, Namespace: doc.Metadata.Namespace, Name: doc.Metadata.Name, Spec: spec,
			Created: time.Unix(int64(1_800_000_000+i), 0)})
	}
	return list
}

func check(b *api.Bundle) error {
	_, err := compiler.Compile(b)
	return err
}

func cluster(t testing.TB, parts ...string) api.Objects {
	return api.Objects{
		List:  objects(t, parts...),
		Check: check,
		Namespaces: map[string]map[string]string{
			"team": {"tier": "gold"}, "other": {"tier": "tin"},
		},
		TrustDomain: "example.org",
	}
}

func agent() api.Pod {
	return api.Pod{SPIFFEID: "spiffe://example.org/ns/team/sa/agent", Namespace: "team", ServiceAccount: "agent", Labels: map[string]string{"app": "a"}}
}

const (
	shared = `{kind: ClusterCredentialProvider, metadata: {name: shared}, spec: {destinations: [{host: "**.shared.test"}], allowedNamespaces: {selector: {matchLabels: {tier: gold}}}, jwt: {}, placeholders: [{env: SHARED_KEY, prefix: sk-}]}}`
	own    = `{kind: CredentialProvider, metadata: {name: own, namespace: team}, spec: {destinations: [{host: api.own.test}], apiKey: {secretRef: {name: own, key: key}}}}`
	uses   = `{kind: AccessPolicy, metadata: {name: uses, namespace: team}, spec: {rules: [
		{name: shared, hosts: [a.shared.test, "*.b.shared.test"], action: allow, credential: {provider: shared}},
		{name: own, hosts: [api.own.test], action: allow, credential: {provider: own}}]}}`
	rails = `{kind: ClusterAccessPolicy, metadata: {name: rails}, spec: {rules: [{name: no-x, hosts: [x.test], action: deny}]}}`
)

func forPod(t testing.TB, o api.Objects, pod api.Pod) (*api.Catalog, *api.Selection) {
	t.Helper()
	c, err := api.NewCatalog(o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.ForPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func names(s *api.Selection) string {
	var list []string
	for _, r := range s.Objects {
		list = append(list, r.String())
	}
	return strings.Join(list, ", ")
}

// Where the AttacheConfig names no resolvers, pods have the control plane's:
// never those of their own resolv.conf, which their author writes.
func TestNameservers(t *testing.T) {
	for name, tt := range map[string]struct {
		config []string
		want   string
	}{
		"no config":           {nil, "192.0.2.53"},
		"config without":      {[]string{`{kind: AttacheConfig, metadata: {name: default}, spec: {limits: {maxStreams: 7}}}`}, "192.0.2.53"},
		"config":              {[]string{`{kind: AttacheConfig, metadata: {name: default}, spec: {cluster: {nameservers: ["10.96.0.10"]}}}`}, "10.96.0.10"},
		"config not in force": {[]string{`{kind: AttacheConfig, metadata: {name: default}, spec: {cluster: {nameservers: [x]}}}`}, "192.0.2.53"},
	} {
		t.Run(name, func(t *testing.T) {
			o := cluster(t, tt.config...)
			o.Nameservers = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
			_, s := forPod(t, o, agent())
			if got := s.Bundle.Config.Spec.Cluster.Nameservers; !slices.Equal(got, []string{tt.want}) {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func TestForPod(t *testing.T) {
	o := cluster(t, shared, own, uses, rails,
		`{kind: AccessPolicy, metadata: {name: uses, namespace: other}, spec: {rules: [{name: r, hosts: [z.test], action: allow}]}}`,
		`{kind: CredentialProvider, metadata: {name: unused, namespace: team}, spec: {destinations: [{host: u.test}], jwt: {}}}`,
		`{kind: AccessPolicy, metadata: {name: others, namespace: team}, spec: {targetRefs: [{kind: ServiceAccount, name: robot}], rules: [{name: r, hosts: [z.test], action: allow}]}}`,
		`{kind: AttacheConfig, metadata: {name: default}, spec: {limits: {maxStreams: 7}, workload: {name: w}, cluster: {nameservers: ["10.96.0.10"], owners: {team: [alice]}}}}`)
	c, s := forPod(t, o, agent())
	if len(c.Problems()) > 0 || len(s.Problems) > 0 {
		t.Fatalf("got problems %v, %v", c.Problems(), s.Problems)
	}
	if got, want := names(s), "ClusterCredentialProvider shared, CredentialProvider team/own, ClusterAccessPolicy rails, AccessPolicy team/uses"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got, want := s.Audiences, []string{"https://*.b.shared.test", "https://a.shared.test"}; !slices.Equal(got, want) {
		t.Errorf("got audiences %v, want %v", got, want)
	}
	spec := s.Bundle.Config.Spec
	if spec.TrustDomain != "example.org" || spec.Limits.MaxStreams != 7 || spec.Cluster.Owners != nil || spec.Workload.Name != "" || !slices.Equal(spec.Cluster.Nameservers, []string{"10.96.0.10"}) {
		t.Errorf("got config %+v", spec)
	}
	if g := s.Bundle.Grants["shared"]; g == nil || !slices.Equal(g.Names, []string{"team"}) || g.Selector != nil {
		t.Errorf("got grant %+v, want this namespace alone", g)
	}
	slices.Reverse(o.List)
	if _, again := forPod(t, o, agent()); !bytes.Equal(again.Documents, s.Documents) {
		t.Error("the order of the objects changes the documents")
	}
	if !slices.Equal(c.LabelKeys(), nil) {
		t.Errorf("got labels %v", c.LabelKeys())
	}
}

// TestBadObjectsAreAlone checks that a bad object takes down none but itself,
// and what its status says.
func TestBadObjectsAreAlone(t *testing.T) {
	for _, tt := range []struct {
		name, object, text string
		reason             api.Reason
		stays              bool
	}{
		{"unknown field", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {ruls: [], rules: []}}`, "spec.ruls: unknown field; did you mean rules?", "", false},
		{"condition", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {rules: [{name: r, hosts: [a.test], when: nope, action: allow}]}}`, "undeclared reference to 'nope'", "", false},
		{"no object", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: [1]}`, "spec: is a list; must be a mapping", "", false},
		{"missing provider", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {rules: [{name: r, hosts: [a.test], action: allow, credential: {provider: nobody}}]}}`,
			`spec.rules[0].credential.provider: no CredentialProvider is named "nobody"`, api.ReasonProviderNotFound, true},
		{"elsewhere", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {rules: [{name: r, hosts: [evil.test], action: allow, credential: {provider: own}}]}}`,
			`spec.rules[0].hosts[0]: is "evil.test", but provider "own" gives its credential only to api.own.test:443; change one of them`, api.ReasonDestinationNotAllowed, true},
		{"other port", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {rules: [{name: r, hosts: [api.own.test], ports: [8443], action: allow, credential: {provider: own}}]}}`,
			`spec.rules[0].ports[0]: is 8443`, api.ReasonDestinationNotAllowed, true},
		{"another namespace", `{kind: AccessPolicy, metadata: {name: bad, namespace: other}, spec: {rules: [{name: r, hosts: [a.shared.test], action: allow, credential: {provider: shared}}]}}`,
			`spec.rules[0].credential.provider: is ClusterCredentialProvider "shared", which namespace "other" may not use`, api.ReasonRefNotPermitted, true},
		{"a provider of another namespace", `{kind: AccessPolicy, metadata: {name: bad, namespace: other}, spec: {rules: [{name: r, hosts: [api.own.test], action: allow, credential: {provider: own}}]}}`,
			`no CredentialProvider is named "own"`, api.ReasonProviderNotFound, true},
		{"cluster policy and namespaced provider", `{kind: ClusterAccessPolicy, metadata: {name: bad}, spec: {rules: [{name: r, hosts: [api.own.test], action: allow, credential: {provider: own}}]}}`,
			`no CredentialProvider is named "own"`, api.ReasonProviderNotFound, true},
		{"foreign namespace", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {targetRefs: [{kind: Namespace, name: other}], rules: []}}`,
			`spec.targetRefs[0].name: is "other"; an AccessPolicy attaches in its own namespace only`, "", false},
		{"file of the sidecar", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test}], apiKey: {file: /var/run/secrets/attache.dev/token}}}`,
			"spec.apiKey.file: would be read by the sidecar", "", false},
		{"variable of the sidecar", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test}], apiKey: {env: HOME}}}`, "spec.apiKey.env: would be read by the sidecar", "", false},
		{"roots of the sidecar", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test, caFile: /etc/hostname}], jwt: {}}}`, "spec.destinations[0].caFile: names a file of the sidecar", "", false},
		{"token of the sidecar", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1, tokenFile: /var/run/x}}}`, "spec.aws.tokenFile: would be read by the sidecar", "", false},
		{"clear text", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test, scheme: http, cidrs: [10.0.0.0/8]}], unsafeCleartext: true, jwt: {}}}`, "spec.unsafeCleartext: is for a ClusterCredentialProvider", "", false},
		{"clear text anywhere", `{kind: ClusterCredentialProvider, metadata: {name: bad}, spec: {destinations: [{host: b.test, scheme: http}], unsafeCleartext: true, jwt: {}}}`, "spec.destinations[0].scheme: is http without cidrs", "", false},
		{"pinned to the pod", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test, addresses: ["127.0.0.1:15020"]}], jwt: {}}}`, "spec.destinations[0].addresses[0]: is \"127.0.0.1:15020\", an address of the pod itself", "", false},
		{"pinned to metadata", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test, addresses: ["169.254.169.254"]}], rules: []}}`, "spec.destinations[0].addresses[0]: is \"169.254.169.254\", an address of the pod itself", "", false},
		{"port of the sidecar", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test}], jwt: {}, baseURLs: [{env: B, host: b.test, listen: "127.0.0.1:15001"}]}}`, "spec.baseURLs[0].listen: is \"127.0.0.1:15001\"; ports 15000", "", false},
		{"name of the cluster's", `{kind: CredentialProvider, metadata: {name: shared, namespace: team}, spec: {destinations: [{host: b.test}], jwt: {}}}`, `metadata.name: is "shared", which ClusterCredentialProvider shared metadata.name has already`, api.ReasonConflicted, false},
		{"another place for a host", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: "**.shared.test", addresses: [203.0.113.9]}], rules: []}}`, "spec.destinations[0]: describes **.shared.test:443 otherwise than ClusterCredentialProvider shared spec.destinations[0] does: addresses differs", api.ReasonConflicted, false},
		{"younger rule", `{kind: AccessPolicy, metadata: {name: bad, namespace: team}, spec: {rules: [{name: r, hosts: [api.own.test], action: allow}]}}`, "with equal specificity but different outcomes", api.ReasonConflicted, false},
		{"other config", `{kind: AttacheConfig, metadata: {name: bad}, spec: {}}`, `metadata.name: is "bad"; the cluster's AttacheConfig is called default`, "", false},
		{"bad config", `{kind: AttacheConfig, metadata: {name: default}, spec: {limits: {maxStreams: -1}}}`, "spec.limits.maxStreams: is -1; must be at least 1", "", false},
		{"name of somebody else's client", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test}], oauth2: {issuer: "https://i.test", grant: clientCredentials, clientID: billing}}}`, "spec.oauth2.clientID: is a name of your choice, and an assertion would prove it", "", false},
		{"secret that is none", `{kind: CredentialProvider, metadata: {name: bad, namespace: team}, spec: {destinations: [{host: b.test}], oauth2: {issuer: "https://i.test", grant: clientCredentials, clientAuth: clientSecretBasic}}}`, "spec.oauth2.clientAuth: is clientSecretBasic, which needs clientSecretRef", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := objects(t, tt.object)[0]
			o := cluster(t, shared, own, uses, rails)
			bad.Created = time.Unix(1_900_000_000, 0)
			o.List = append(o.List, bad)
			c, s := forPod(t, o, agent())
			found := c.Problems()[bad.Ref()]
			if len(found) == 0 || !strings.Contains(found[0].Text, tt.text) || found[0].Reason != tt.reason || tt.reason.Unresolved() != tt.stays {
				t.Errorf("got %+v, want %s (%s)", found, tt.text, tt.reason)
			}
			if len(c.Problems()) != 1 {
				t.Errorf("others have problems too: %v", c.Problems())
			}
			for _, want := range []string{"ClusterCredentialProvider shared", "CredentialProvider team/own", "ClusterAccessPolicy rails", "AccessPolicy team/uses"} {
				if !strings.Contains(names(s), want) {
					t.Errorf("%s was taken down; there are %s", want, names(s))
				}
			}
			if there := slices.Contains(s.Objects, bad.Ref()); there && !tt.stays {
				t.Error("the bad object is in force")
			}
		})
	}
}

// TestConflictsInOnePod checks that providers which only together are wrong are
// both good where they do not meet.
func TestConflictsInOnePod(t *testing.T) {
	o := cluster(t,
		`{kind: CredentialProvider, metadata: {name: first, namespace: team}, spec: {destinations: [{host: a.test}], jwt: {}, placeholders: [{env: KEY}]}}`,
		`{kind: CredentialProvider, metadata: {name: second, namespace: team}, spec: {destinations: [{host: b.test}], jwt: {}, placeholders: [{env: KEY}]}}`,
		`{kind: AccessPolicy, metadata: {name: first, namespace: team}, spec: {workloads: [{matchLabels: {first: "1"}}], rules: [{name: r, hosts: [a.test], action: allow, credential: {provider: first}}]}}`,
		`{kind: AccessPolicy, metadata: {name: second, namespace: team}, spec: {workloads: [{matchLabels: {second: "1"}}], rules: [{name: r, hosts: [b.test], action: allow, credential: {provider: second}}]}}`)
	pod := agent()
	pod.Labels = map[string]string{"second": "1"}
	c, s := forPod(t, o, pod)
	if len(c.Problems())+len(s.Problems) > 0 || !strings.Contains(names(s), "CredentialProvider team/second") {
		t.Errorf("got %v, %v, %s", c.Problems(), s.Problems, names(s))
	}
	pod.Labels["first"] = "1"
	_, s = forPod(t, o, pod)
	found := s.Problems[api.Ref{Kind: "CredentialProvider", Namespace: "team", Name: "second"}]
	if len(found) != 1 || found[0].Reason != api.ReasonConflicted || strings.Contains(names(s), "CredentialProvider team/second") || !strings.Contains(names(s), "CredentialProvider team/first") {
		t.Errorf("got %v, %s", s.Problems, names(s))
	}
	if len(s.Bundle.Unresolved) != 1 {
		t.Errorf("the rule of the other policy is in force: %v", s.Bundle.Unresolved)
	}
	if keys := c.LabelKeys(); !slices.Equal(keys, []string{"first", "second"}) {
		t.Errorf("got labels %v", keys)
	}
}

// TestClientIDs checks which client ids the issuer may put into assertions.
func TestClientIDs(t *testing.T) {
	provider := func(name, fields string) string {
		return `{kind: ClusterCredentialProvider, metadata: {name: ` + name + `}, spec: {allowedNamespaces: {names: [team]}, destinations: [{host: ` + name + `.test}], oauth2: {issuer: "https://login.test", grant: clientCredentials` + fields + `}}}`
	}
	_, s := forPod(t, cluster(t, provider("a", ", clientID: second"), provider("b", ", clientID: first"), provider("c", ""), provider("d", ", clientID: svid, clientAuth: jwtSVID"),
		provider("e", ", clientID: secret, clientAuth: clientSecretPost, clientSecretRef: {name: n, key: k}"), provider("unused", ", clientID: unused"),
		`{kind: AccessPolicy, metadata: {name: p, namespace: team}, spec: {rules: [
			{name: a, hosts: [a.test], action: allow, credential: {provider: a}}, {name: b, hosts: [b.test], action: allow, credential: {provider: b}},
			{name: c, hosts: [c.test], action: allow, credential: {provider: c}}, {name: d, hosts: [d.test], action: allow, credential: {provider: d}},
			{name: e, hosts: [e.test], action: allow, credential: {provider: e}}]}}`), agent())
	if !slices.Equal(s.ClientIDs, []string{"first", "second"}) || !slices.Equal(s.Audiences, []string{"https://login.test"}) {
		t.Errorf("got %v, %v", s.ClientIDs, s.Audiences)
	}
}

// TestNext checks that a catalog made of another is the one that would have
// been made anew, whatever changed.
func TestNext(t *testing.T) {
	other := `{kind: AccessPolicy, metadata: {name: bad, namespace: other}, spec: {rules: [{name: r, hosts: [a.shared.test], action: allow, credential: {provider: shared}}]}}`
	base := []string{shared, own, uses, rails, other}
	c, err := api.NewCatalog(cluster(t, base...))
	if err != nil {
		t.Fatal(err)
	}
	judged := 0
	for _, change := range []struct {
		name string
		make func() api.Objects
	}{
		{"nothing", func() api.Objects { return cluster(t, base...) }},
		{"a policy", func() api.Objects {
			return cluster(t, shared, own, strings.ReplaceAll(uses, "a.shared.test", "evil.test"), rails, other)
		}},
		{"a provider is gone", func() api.Objects { return cluster(t, shared, uses, rails, other) }},
		{"a grant", func() api.Objects {
			return cluster(t, strings.ReplaceAll(shared, "{tier: gold}", "{tier: tin}"), own, uses, rails, other)
		}},
		{"labels of a namespace", func() api.Objects {
			o := cluster(t, base...)
			o.Namespaces["other"] = map[string]string{"tier": "gold"}
			return o
		}},
		{"a cluster provider is bad", func() api.Objects {
			return cluster(t, strings.ReplaceAll(shared, "**.shared.test", "*"), own, uses, rails, other)
		}},
		{"everything", func() api.Objects { return cluster(t) }},
	} {
		t.Run(change.name, func(t *testing.T) {
			o := change.make()
			fresh, want := forPod(t, o, agent())
			o.Check = func(b *api.Bundle) error { judged++; return check(b) }
			judged = 0
			next, err := c.Next(o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := next.ForPod(agent())
			if err != nil || !bytes.Equal(got.Documents, want.Documents) {
				t.Errorf("got %s\nwant %s (%v)", got.Documents, want.Documents, err)
			}
			if diff := cmp.Diff(fresh.Problems(), next.Problems()); diff != "" {
				t.Error(diff)
			}
			if change.name == "nothing" && judged > 0 {
				t.Errorf("%d namespaces were judged again", judged)
			}
		})
	}
}

func TestCheckThatBlamesNobody(t *testing.T) {
	o := cluster(t, own)
	broken := errors.New("broken")
	o.Check = func(*api.Bundle) error { return broken }
	if _, err := api.NewCatalog(o); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestAllowsAudience(t *testing.T) {
	list := []string{"https://*.b.test", "https://a.test", "sts.amazonaws.com", "https://**.c.test"}
	for audience, want := range map[string]bool{
		"https://a.test": true, "sts.amazonaws.com": true, "https://x.b.test": true, "https://x.y.c.test": true,
		"https://b.test": false, "https://x.y.b.test": false, "https://*.b.test": false, "http://x.b.test": false, "": false, "a.test": false,
		"https://x.b.test/": false, "https://x.b.test:1": false, "https://evil.test#.b.test": false, "https://X.b.test": false,
	} {
		if got := api.AllowsAudience(list, audience); got != want {
			t.Errorf("%q: got %v, want %v", audience, got, want)
		}
	}
}

func TestOwners(t *testing.T) {
	c := &api.Bundle{}
	b, err := api.ParseFor(api.PlaceReview, "x", docs(`kind: AttacheConfig
metadata: {name: default}
spec: {cluster: {owners: {team: [alice, bob], "*": [ops]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	c = b
	cfg := &c.Config.Spec.Cluster
	for _, tt := range []struct {
		namespace, annotation, pod, owner, source string
		bad                                       bool
	}{
		{"team", "", "", "alice", "config", false},
		{"team", "eve", "", "alice", "config", false},
		{"team", "", "bob", "bob", "config", false},
		{"team", "", "eve", "", "config", true},
		{"other", "carol, dave", "", "carol", "namespace", false},
		{"other", "carol, dave", "dave", "dave", "namespace", false},
		{"other", "carol, dave", "ops", "", "namespace", true},
		{"other", "", "", "ops", "config", false},
		{"other", "\x00,,", "", "ops", "config", false},
	} {
		owners, source := api.Owners(cfg, tt.namespace, map[string]string{api.OwnersAnnotation: tt.annotation})
		owner, err := api.ChooseOwner(owners, tt.pod)
		if owner != tt.owner || source != tt.source || (err != nil) != tt.bad {
			t.Errorf("%+v: got %q from %q, %v", tt, owner, source, err)
		}
	}
}

// FuzzObjects puts arbitrary specs of every kind beside good objects: they
// never panic, never take others down, and what is selected can be loaded.
func FuzzObjects(f *testing.F) {
	kinds := []string{"CredentialProvider", "ClusterCredentialProvider", "AccessPolicy", "ClusterAccessPolicy", "AttacheConfig", "Revocation", ""}
	f.Add(2, `{"rules":[{"name":"r","hosts":["a.test"],"action":"allow"}]}`)
	f.Add(1, `{"destinations":[{"host":"x.test"}],"jwt":{},"allowedNamespaces":{"names":["*"]}}`)
	f.Add(0, `{"destinations":null,"apiKey":{"secretRef":{"name":"s","key":"\u0000\ud800\u007f"}}}`)
	f.Add(3, `{"rules":[{"name":"r","hosts":["**.shared.test"],"action":"allow","credential":{"provider":"shared"}}]}`)
	f.Add(4, `{"cluster":{"nameservers":["::1"]},"trustDomain":"x"}`)
	f.Fuzz(func(t *testing.T, kind int, spec string) {
		o := cluster(t, shared, own, uses, rails)
		k := kinds[uint(kind)%uint(len(kinds))]
		bad := api.Object{Kind: k, Name: "default", Spec: json.RawMessage(spec), Created: time.Unix(1_900_000_000, 0)}
		if k == "CredentialProvider" || k == "AccessPolicy" {
			bad.Namespace = "team"
		}
		o.List = append(o.List, bad)
		c, s := forPod(t, o, agent())
		for ref := range c.Problems() {
			// A provider of the cluster comes before those of a namespace.
			if ref != bad.Ref() && k != "ClusterCredentialProvider" {
				t.Errorf("%s has problems: %v", ref, c.Problems()[ref])
			}
		}
		if !strings.Contains(names(s), "ClusterAccessPolicy rails") || !strings.Contains(names(s), "ClusterCredentialProvider shared") {
			t.Errorf("others were taken down: %s", names(s))
		}
	})
}

// TestDeputyInAPod checks, from objects to decisions, that a rule which sends a
// credential elsewhere than its provider allows denies what it matches.
func TestDeputyInAPod(t *testing.T) {
	deputy := `{kind: AccessPolicy, metadata: {name: deputy, namespace: team}, spec: {rules: [
		{name: host, hosts: [evil.test], action: allow, credential: {provider: own}},
		{name: port, hosts: [api.own.test], ports: [8443], action: allow, credential: {provider: own}},
		{name: clear, hosts: [api.own.test], ports: [80], action: allow, credential: {provider: own}},
		{name: good, hosts: [api.own.test], ports: [443], action: allow, credential: {provider: own}}]}}`
	c, s := forPod(t, cluster(t, shared, own, deputy), agent())
	if ps := c.Problems()[api.Ref{Kind: "AccessPolicy", Namespace: "team", Name: "deputy"}]; len(ps) != 3 {
		t.Errorf("got %v", ps)
	}
	set, err := compiler.Compile(s.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	w := &identity.Workload{ID: spiffeid.RequireFromString(agent().SPIFFEID), Namespace: "team", ServiceAccount: "agent"}
	for _, tt := range []struct {
		scheme, host string
		port         int
		want         compiler.Verdict
	}{
		{"https", "evil.test", 443, compiler.Deny},
		{"https", "api.own.test", 8443, compiler.Deny},
		{"http", "api.own.test", 80, compiler.Deny},
		{"http", "api.own.test", 443, compiler.Deny},
		{"https", "api.own.test", 443, compiler.Inject},
	} {
		d := set.Decide(&compiler.Request{Scheme: tt.scheme, Host: tt.host, Port: tt.port, Method: "GET", Path: "/", Protocol: compiler.HTTP, Workload: w})
		if d.Verdict != tt.want || d.Reason == "" {
			t.Errorf("%s://%s:%d: got %v (%s), want %v", tt.scheme, tt.host, tt.port, d.Verdict, d.Reason, tt.want)
		}
	}
}
