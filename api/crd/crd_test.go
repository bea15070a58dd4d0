package crd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	sigyaml "sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
)

// quoted is the value in a message.
var quoted = regexp.MustCompile(`Invalid value: "[^"]*": `)

const folder = "../../charts/attache/files/crds/"

// schema checks objects of one kind as an API server does.
type schema struct {
	crd        *apiextensions.CustomResourceDefinition
	structural *structural.Structural
	openAPI    validation.SchemaValidator
	cel        *cel.Validator
}

// schemas reads the CRDs, by kind.
func schemas(t testing.TB) map[string]*schema {
	t.Helper()
	files, _ := filepath.Glob(folder + "*.yaml")
	out := map[string]*schema{}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := sigyaml.UnmarshalStrict(data, &v1); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
		s := &schema{crd: &apiextensions.CustomResourceDefinition{}}
		if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, s.crd, nil); err != nil {
			t.Fatal(err)
		}
		s.crd.Status.StoredVersions = []string{"v1alpha1"}
		version, err := apiextensions.GetSchemaForVersion(s.crd, "v1alpha1")
		if err != nil {
			t.Fatal(err)
		}
		if s.structural, err = structural.NewStructural(version.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		if s.openAPI, _, err = validation.NewSchemaValidator(version.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		s.cel = cel.NewValidator(s.structural, true, celconfig.PerCallLimit)
		out[v1.Spec.Names.Kind] = s
	}
	if len(out) != 6 {
		t.Fatalf("got %d kinds, want 6", len(out))
	}
	return out
}

// problems are what an API server says of an object, and of the fields that it
// would drop without a word.
func (s *schema) problems(object, old map[string]any) []string {
	var errs field.ErrorList
	errs = append(errs, validation.ValidateCustomResource(nil, object, s.openAPI)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s.structural, object)...)
	var before any
	if old != nil {
		before = old
	}
	found, _ := s.cel.Validate(context.Background(), nil, s.structural, object, before, celconfig.RuntimeCELCostBudget)
	var list []string
	for _, err := range append(errs, found...) {
		list = append(list, err.Error())
	}
	pruned := runtime.DeepCopyJSON(object)
	for _, path := range pruning.PruneWithOptions(pruned, s.structural, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		list = append(list, path+": unknown field")
	}
	return list
}

// documents reads YAML as kubectl does.
func documents(t testing.TB, data []byte) []map[string]any {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var list []map[string]any
	for {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		text, err := yaml.Marshal(&n)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		j, err := sigyaml.YAMLToJSON(text)
		if err == nil {
			err = json.Unmarshal(j, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		if m != nil {
			list = append(list, integers(m).(map[string]any))
		}
	}
}

// integers turns whole numbers into int64, as the API server's decoder does.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = integers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = integers(v[i])
		}
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}

// TestCRDsAreValid checks the CRDs as an API server does when they are
// installed: structural schemas, and rules whose cost is bounded.
func TestCRDsAreValid(t *testing.T) {
	for kind, s := range schemas(t) {
		for _, err := range crdvalidation.ValidateCustomResourceDefinition(context.Background(), s.crd) {
			t.Errorf("%s: %v", kind, err)
		}
		if s.cel == nil {
			t.Errorf("%s has no rules", kind)
		}
	}
}

// TestGoodDocuments checks that the CRDs accept every document that the loader
// of files accepts.
func TestGoodDocuments(t *testing.T) {
	all := schemas(t)
	files, _ := filepath.Glob("../../examples/*/*.yaml")
	more, _ := filepath.Glob("testdata/good/*.yaml")
	if len(files) < 9 || len(more) < 1 {
		t.Fatalf("found %d examples and %d documents", len(files), len(more))
	}
	seen := map[string]bool{}
	for _, name := range append(files, more...) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(more, name) { // test/docs loads the examples
			if _, err := api.ParseFor(api.PlaceReview, name, data); err != nil {
				t.Errorf("the loader refuses what shall be good: %v", err)
			}
		}
		for _, doc := range documents(t, data) {
			kind := doc["kind"].(string)
			seen[kind] = true
			if kind == "AttacheConfig" {
				doc["metadata"].(map[string]any)["name"] = api.ConfigName // a cluster has one, a folder may call it as it likes
			}
			for _, p := range all[kind].problems(doc, nil) {
				t.Errorf("%s: %s: %s", name, kind, p)
			}
		}
	}
	for kind := range all {
		if !seen[kind] && kind != "Revocation" {
			t.Errorf("no %s among the documents", kind)
		}
	}
}

// TestBadDocuments checks that mistakes are refused when an object is applied,
// each with the name of its field.
func TestBadDocuments(t *testing.T) {
	all := schemas(t)
	const provider = `kind: CredentialProvider
metadata: {name: p, namespace: team}
spec: `
	const policy = `kind: AccessPolicy
metadata: {name: p, namespace: team}
spec: `
	const config = `kind: AttacheConfig
metadata: {name: default}
spec: `
	for _, tt := range []struct{ name, doc, want string }{
		{"no spec", "kind: AccessPolicy\nmetadata: {name: p}\n", "spec: Required value"},
		{"unknown field", policy + "{ruls: [], rules: []}", "spec.ruls: unknown field"},
		{"wrong type", policy + "{rules: [{name: r, hosts: a.test, action: allow}]}", "spec.rules[0].hosts: Invalid value"},
		{"no hosts", policy + "{rules: [{name: r, action: allow}]}", "spec.rules[0].hosts: Required value"},
		{"empty hosts", policy + "{rules: [{name: r, hosts: [], action: allow}]}", "spec.rules[0].hosts: Invalid value"},
		{"action", policy + "{rules: [{name: r, hosts: [a.test], action: permit}]}", "spec.rules[0].action: Unsupported value"},
		{"port", policy + "{rules: [{name: r, hosts: [a.test], ports: [70000], action: allow}]}", "spec.rules[0].ports[0]: Invalid value"},
		{"two rules of one name", policy + "{rules: [{name: r, hosts: [a.test], action: allow}, {name: r, hosts: [b.test], action: allow}]}", "spec.rules[1]: Duplicate value"},
		{"credential of a denial", policy + "{rules: [{name: r, hosts: [a.test], action: deny, credential: {provider: p}}]}", "spec.rules[0]: Invalid value: credential has no place"},
		{"passthrough with paths", policy + "{rules: [{name: r, hosts: [a.test], paths: [/x], action: passthrough}]}", "spec.rules[0]: Invalid value: action passthrough sees no request"},
		{"exact and prefix", policy + "{rules: [{name: r, hosts: [a.test], headers: [{name: x, exact: a, prefix: b}], action: allow}]}", "spec.rules[0].headers[0]: Invalid value: give one of exact"},
		{"empty selector", policy + "{workloads: [{}], rules: []}", "spec.workloads[0]: Invalid value: selects nothing in particular"},
		{"spiffe id", policy + "{workloads: [{spiffeID: agent}], rules: []}", "spec.workloads[0].spiffeID: Invalid value"},
		{"mode", policy + "{mode: warn, rules: []}", "spec.mode: Unsupported value"},
		{"target", policy + "{targetRefs: [{kind: Deployment, name: a}], rules: []}", "spec.targetRefs[0].kind: Unsupported value"},
		{"target's group", policy + "{targetRefs: [{group: apps, kind: Namespace, name: a}], rules: []}", "spec.targetRefs[0]: Invalid value: Namespace and ServiceAccount are of the core group"},
		{"stream's duration", policy + "{rules: [{name: r, hosts: [a.test], action: allow, maxStream: 5 minutes}]}", "spec.rules[0].maxStream: Invalid value"},
		{"cluster's service account", "kind: ClusterAccessPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: ServiceAccount, name: a}], rules: []}", "spec.targetRefs: a ClusterAccessPolicy attaches to namespaces"},

		{"two kinds", provider + "{destinations: [{host: a.test}], jwt: {}, apiKey: {secretRef: {name: a, key: b}}}", "spec: Invalid value: give exactly one of oauth2, apiKey, jwt, aws"},
		{"no kind", provider + "{destinations: [{host: a.test}]}", "spec: Invalid value: give exactly one of oauth2, apiKey, jwt, aws"},
		{"preset and key", provider + "{preset: openai, apiKey: {secretRef: {name: a, key: b}}}", "spec: Invalid value: give exactly one of oauth2, apiKey, jwt, aws, or a preset"},
		{"preset", provider + "{preset: openia}", "spec.preset: Unsupported value"},
		{"no destinations", provider + "{jwt: {}}", "destinations is missing"},
		{"clear text", provider + "{destinations: [{host: a.test, scheme: http}], jwt: {}}", "a destination with scheme http would get the credential in clear text"},
		{"two sources", provider + "{destinations: [{host: a.test}], apiKey: {env: A, secretRef: {name: a, key: b}}}", "spec.apiKey: Invalid value: give exactly one of secretRef"},
		{"no source", provider + "{destinations: [{host: a.test}], apiKey: {}}", "spec.apiKey: Invalid value: give exactly one of secretRef"},
		{"secret's name", provider + "{destinations: [{host: a.test}], apiKey: {secretRef: {name: ../x, key: b}}}", "spec.apiKey.secretRef.name: Invalid value"},
		{"secret of another namespace", provider + "{destinations: [{host: a.test}], apiKey: {secretRef: {name: x, key: b, namespace: kube-system}}}", "spec.apiKey.secretRef.namespace: unknown field"},
		{"no server", provider + "{destinations: [{host: a.test}], oauth2: {grant: clientCredentials}}", "oauth2 names no server"},
		{"no grant", provider + `{destinations: [{host: a.test}], oauth2: {issuer: "https://i.test"}}`, "oauth2.grant is missing"},
		{"no secret", provider + `{destinations: [{host: a.test}], oauth2: {issuer: "https://i.test", grant: clientCredentials, clientAuth: clientSecretBasic}}`, "spec.oauth2: Invalid value: clientSecretRef belongs to"},
		{"no certificate", provider + `{destinations: [{host: a.test}], oauth2: {issuer: "https://i.test", grant: clientCredentials, clientAuth: tlsClientAuth}}`, "spec.oauth2: Invalid value: clientCertificateRef belongs to"},
		{"no proof", provider + `{destinations: [{host: a.test}], oauth2: {issuer: "https://i.test", grant: clientCredentials, clientAuth: none}}`, "spec.oauth2: Invalid value: clientAuth none"},
		{"header without name", provider + "{destinations: [{host: a.test}], jwt: {}, inject: {as: header}}", "spec.inject: Invalid value: name is missing"},
		{"basic without user", provider + "{destinations: [{host: a.test}], jwt: {}, inject: {as: basic}}", "spec.inject: Invalid value: username and as: basic"},
		{"DPoP that is none", provider + "{destinations: [{host: a.test}], jwt: {}, inject: {as: dpop}}", "inject.as: dpop and oauth2.dpop: true belong together"},
		{"onlyCA", provider + "{destinations: [{host: a.test, onlyCA: true}], jwt: {}}", "spec.destinations[0]: Invalid value: onlyCA needs"},
		{"network", provider + "{destinations: [{host: a.test, cidrs: [10.0.0.0]}], jwt: {}}", "spec.destinations[0].cidrs[0]: Invalid value: must be a network"},
		{"no network", provider + "{destinations: [{host: a.test, cidrs: [nothing]}], jwt: {}}", "spec.destinations[0].cidrs[0]: Invalid value"},
		{"status that is none", provider + "{destinations: [{host: a.test}], jwt: {}, retryStatus: [200]}", "spec.retryStatus[0]: Invalid value"},
		{"grant to nobody", "kind: ClusterCredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.test}], jwt: {}, allowedNamespaces: {}}", "spec.allowedNamespaces: Invalid value: grants nothing"},
		{"empty label selector", "kind: ClusterCredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.test}], jwt: {}, allowedNamespaces: {selector: {}}}", "spec.allowedNamespaces.selector: Invalid value: selects nothing"},
		{"In without values", "kind: ClusterCredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.test}], jwt: {}, allowedNamespaces: {selector: {matchExpressions: [{key: a, operator: In}]}}}", "spec.allowedNamespaces.selector.matchExpressions[0]: Invalid value: values belong"},
		{"grant of a namespaced one", provider + "{destinations: [{host: a.test}], jwt: {}, allowedNamespaces: {names: [a]}}", "spec.allowedNamespaces: unknown field"},

		{"config's name", "kind: AttacheConfig\nmetadata: {name: other}\nspec: {}", "metadata.name: a cluster's AttacheConfig is called default"},
		{"modes", config + "{cluster: {injection: {mode: transparent, modes: [explicit]}}}", "spec.cluster.injection: Invalid value: modes lack mode"},
		{"quantity", config + "{cluster: {injection: {resources: {cpuRequest: much}}}}", "spec.cluster.injection.resources.cpuRequest: Invalid value: must be a quantity"},
		{"bypass", config + "{cluster: {injection: {bounds: {excludeCIDRs: [everything]}}}}", "spec.cluster.injection.bounds.excludeCIDRs[0]: Invalid value: must be a network"},
		{"template", config + "{cluster: {acceptedTemplates: [{hash: x, digest: y}]}}", "spec.cluster.acceptedTemplates[0].hash: Invalid value"},
		{"nobody's namespace", config + "{cluster: {owners: {team: []}}}", "spec.cluster.owners.team: Invalid value"},

		{"revocation of everything", "kind: Revocation\nmetadata: {name: r}\nspec: {reason: x}", "spec: Invalid value: would revoke everything"},
		{"revocation's time", "kind: Revocation\nmetadata: {name: r}\nspec: {owner: x, notBefore: yesterday}", "spec.notBefore: Invalid value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := documents(t, []byte("apiVersion: attache.dev/v1alpha1\n"+tt.doc))[0]
			got := all[doc["kind"].(string)].problems(doc, nil)
			if text := quoted.ReplaceAllString(strings.Join(got, "\n"), "Invalid value: "); !strings.Contains(text, tt.want) {
				t.Errorf("got %s\nwant %s", text, tt.want)
			}
		})
	}
}

// TestImmutable checks what cannot be changed once it is there.
func TestImmutable(t *testing.T) {
	all := schemas(t)
	for _, tt := range []struct{ name, kind, before, after, want string }{
		{"trust domain", "AttacheConfig", "{trustDomain: a.test}", "{trustDomain: b.test}", "spec.trustDomain"},
		{"trust domain removed", "AttacheConfig", "{trustDomain: a.test}", "{}", "trustDomain cannot be changed"},
		{"same trust domain", "AttacheConfig", "{trustDomain: a.test}", "{trustDomain: a.test, limits: {maxStreams: 9}}", ""},
		{"revocation", "Revocation", "{owner: a}", "{owner: b}", "spec"},
		{"same revocation", "Revocation", "{owner: a}", "{owner: a}", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			head := "apiVersion: attache.dev/v1alpha1\nkind: " + tt.kind + "\nmetadata: {name: default}\nspec: "
			before, after := documents(t, []byte(head+tt.before))[0], documents(t, []byte(head+tt.after))[0]
			got := strings.Join(all[tt.kind].problems(after, before), "\n")
			if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestScheme checks that clients know every kind and that resources survive
// them.
func TestScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := crd.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	for kind := range schemas(t) {
		for _, k := range []string{kind, kind + "List"} {
			if _, err := s.New(crd.GroupVersion().WithKind(k)); err != nil {
				t.Error(err)
			}
		}
	}
	var p crd.ClusterCredentialProvider
	const text = `{"destinations":[{"host":"a.test"}],"apiKey":{"secretRef":{"name":"s","key":"k"}},"inject":{},"ttl":"1m30s","allowedNamespaces":{"names":["team"]}}`
	if err := json.Unmarshal([]byte(`{"metadata":{"name":"p","generation":3},"spec":`+text+`}`), &p); err != nil {
		t.Fatal(err)
	}
	o, err := crd.Object("ClusterCredentialProvider", p.DeepCopy().ObjectMeta, p.DeepCopy().Spec)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if json.Unmarshal(o.Spec, &got) != nil || json.Unmarshal([]byte(text), &want) != nil || o.Generation != 3 || o.Name != "p" {
		t.Fatalf("got %+v", o)
	}
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if !bytes.Equal(g, w) {
		t.Errorf("got %s\nwant %s", g, w)
	}
	c, err := api.NewCatalog(api.Objects{List: []api.Object{o}})
	if err != nil || len(c.Problems()) > 0 {
		t.Errorf("got %v, %v", err, c.Problems())
	}
}

// TestFieldsAreCurrent checks that the CRDs have the fields of the Go types,
// which `make generate` writes.
func TestFieldsAreCurrent(t *testing.T) {
	all := schemas(t)
	s := runtime.NewScheme()
	if err := crd.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	n := 0
	var walk func(path string, typ reflect.Type, s *structural.Structural)
	walk = func(path string, typ reflect.Type, s *structural.Structural) {
		n++
		switch {
		case typ.Kind() == reflect.Pointer:
			walk(path, typ.Elem(), s)
		case s.XPreserveUnknownFields || s.Type == "string" || typ == reflect.TypeFor[metav1.ObjectMeta]():
		case typ.Kind() == reflect.Slice && s.Items != nil:
			walk(path+"[]", typ.Elem(), s.Items)
		case typ.Kind() == reflect.Map && s.AdditionalProperties != nil:
			walk(path+"{}", typ.Elem(), s.AdditionalProperties.Structural)
		case typ.Kind() == reflect.Struct:
			known := map[string]bool{}
			for _, f := range jsonFields(typ) {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				known[name] = true
				next, ok := s.Properties[name]
				if !ok {
					t.Errorf("%s.%s is not in the CRD; run make generate", path, name)
					continue
				}
				walk(path+"."+name, f.Type, &next)
			}
			for name := range s.Properties {
				if !known[name] {
					t.Errorf("%s.%s is in the CRD alone; run make generate", path, name)
				}
			}
		}
	}
	for kind, schema := range all {
		o, err := s.New(crd.GroupVersion().WithKind(kind))
		if err != nil {
			t.Fatal(err)
		}
		walk(kind, reflect.TypeOf(o).Elem(), schema.structural)
	}
	if n < 400 {
		t.Errorf("only %d fields were compared", n)
	}
}

// jsonFields are the fields of a struct and of those inlined in it.
func jsonFields(typ reflect.Type) []reflect.StructField {
	var list []reflect.StructField
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.Anonymous && name == "" {
			list = append(list, jsonFields(f.Type)...)
		} else {
			list = append(list, f)
		}
	}
	return list
}
