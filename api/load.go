package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Bounds of what [Load] reads.
const (
	MaxFileBytes = 1 << 20
	MaxDocuments = 10_000
)

// ErrNoDocuments is matched when there is nothing to load: no such folder, an
// empty one, or files without a document.
var ErrNoDocuments = errors.New("no configuration documents")

// Load reads every *.yaml and *.yml file of a folder (not of folders in it),
// or the one file that dir names, and checks the documents against each other.
// Mistakes are answered all at once, as [Problems].
//
// Paths in documents (caFile, file) are relative to the document's folder.
func Load(dir string) (*Bundle, error) { return LoadFor(PlaceRun, dir) }

// LoadFor is [Load] for documents that are used elsewhere than in attache run.
func LoadFor(place Place, dir string) (*Bundle, error) {
	files, err := configFiles(dir)
	if err != nil {
		return nil, err
	}
	l := newLoader(place)
	for _, file := range files {
		data, err := readBounded(file)
		if err != nil {
			l.problems = append(l.problems, Problem{Position: Position{file, 1, 1}, Text: err.Error()})
			continue
		}
		l.add(file, filepath.Dir(file), data)
	}
	return l.finish(dir)
}

// Parse loads documents from memory. The name stands for the file in
// positions; paths in the documents are relative to the working folder.
func Parse(name string, data []byte) (*Bundle, error) { return ParseFor(PlaceRun, name, data) }

// ParseFor is [Parse] for documents that are used elsewhere than in attache
// run. The documents of a pod may have [MaxPodBytes].
func ParseFor(place Place, name string, data []byte) (*Bundle, error) {
	l := newLoader(place)
	if most := place.maxBytes(); len(data) > most {
		return nil, Problems{{Position: Position{name, 1, 1}, Text: tooBig(int64(len(data)), most)}}
	}
	l.add(name, "", data)
	return l.finish(name)
}

// configFiles lists the files to read in a stable order.
func configFiles(dir string) ([]string, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist; create it with a CredentialProvider and an AccessPolicy in it: %w (%w)", dir, ErrNoDocuments, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	case !info.IsDir():
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var files []string
	for _, e := range entries {
		name := e.Name()
		// Hidden files are editors' locks and kubelet's ..data.
		if strings.HasPrefix(name, ".") || filepath.Ext(name) != ".yaml" && filepath.Ext(name) != ".yml" {
			continue
		}
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			continue
		}
		files = append(files, path)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no *.yaml or *.yml file; write a CredentialProvider and an AccessPolicy into it: %w", dir, ErrNoDocuments)
	}
	return files, nil
}

// readBounded reads a regular file of at most MaxFileBytes.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, plainPathError(err)
	}
	if !info.Mode().IsRegular() { // a pipe would block, a device never end
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, plainPathError(err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, plainPathError(err)
	}
	if len(data) > MaxFileBytes {
		return nil, errors.New(tooBig(info.Size(), MaxFileBytes))
	}
	return data, nil
}

func tooBig(n int64, most int) string {
	return fmt.Sprintf("is %d bytes long; a file may have %d, split it", n, most)
}

// plainPathError drops the path, which the message's position already has.
func plainPathError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("cannot be read: %w", pe.Err)
	}
	return fmt.Errorf("cannot be read: %w", err)
}

// document is one decoded document; exactly one of provider, policy and config
// is set.
type document struct {
	ref      Ref
	dir      string // for relative paths
	provider *v1alpha1.CredentialProvider
	grant    *v1alpha1.NamespaceGrant // of a ClusterCredentialProvider
	policy   *v1alpha1.AccessPolicy
	config   *v1alpha1.AttacheConfig
}

type loader struct {
	place    Place
	problems Problems
	// unresolved are the mistakes in references that do not make a pod's
	// documents bad.
	unresolved Problems
	// withheld says why rules cannot use a provider that exists, by name.
	withheld map[string]Problem
	// reservations are the audiences of the cluster's providers, in a namespace.
	reservations []reservation
	positions    map[Ref]Position
	docs         []document
	seen         map[Ref]Position // where each kind/namespace/name was first met
	count        int
	files        map[string]bool // certificate files
	certs        map[string]certFile
}

func newLoader(place Place) *loader {
	return &loader{
		place:     place,
		positions: map[Ref]Position{},
		seen:      map[Ref]Position{},
		files:     map[string]bool{},
		certs:     map[string]certFile{},
	}
}

func (l *loader) add(file, dir string, data []byte) {
	d := &decoder{file: file, positions: l.positions, problems: &l.problems, maxNodes: l.place.maxNodes()}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			l.problems = append(l.problems, syntaxProblem(file, err))
			return // the parser does not recover
		}
		if len(n.Content) == 0 || n.Content[0].ShortTag() == "!!null" {
			continue // only comments
		}
		if l.count++; l.count > MaxDocuments {
			d.problem(n.Content[0], "", "is document number %d; at most %d are read", l.count, MaxDocuments)
			return
		}
		l.document(d, dir, n.Content[0])
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func syntaxProblem(file string, err error) Problem {
	p := Problem{Position: Position{file, 1, 1}, Text: "is not YAML: " + err.Error()}
	if m := yamlLine.FindStringSubmatch(strings.SplitN(err.Error(), "\n", 2)[0]); m != nil {
		p.Text = "is not YAML: " + m[2]
		if line, err := strconv.Atoi(m[1]); err == nil && line > 0 {
			p.Position.Line = line
		}
	}
	return p
}

// document decodes one document. The identity is read first, since positions
// are kept by it.
func (l *loader) document(d *decoder, dir string, n *yaml.Node) {
	d.ref, d.optional = Ref{}, nil
	if n.Kind != yaml.MappingNode {
		d.problem(n, "", "is %s; a document is a mapping with apiVersion, kind, metadata and spec", describe(n))
		return
	}
	kinds := []string{v1alpha1.KindAccessPolicy, v1alpha1.KindAttacheConfig, v1alpha1.KindClusterAccessPolicy, v1alpha1.KindClusterCredentialProvider, v1alpha1.KindCredentialProvider}
	d.ref = Ref{Kind: text(n, "kind"), Namespace: text(n, "metadata", "namespace"), Name: text(n, "metadata", "name")}
	switch kind := child(n, "kind"); {
	case kind == nil:
		d.problem(n, "kind", "is missing; must be one of %s", strings.Join(kinds, ", "))
		return
	case !slices.Contains(kinds, d.ref.Kind):
		d.problem(kind, "kind", "is %s; must be one of %s", orDescribe(d.ref.Kind, kind), strings.Join(kinds, ", "))
		return
	}
	if v := child(n, "apiVersion"); v != nil && text(n, "apiVersion") != v1alpha1.APIVersion {
		d.problem(v, "apiVersion", "is %s; must be %s", orDescribe(text(n, "apiVersion"), v), v1alpha1.APIVersion)
		return
	}
	if first, twice := l.seen[d.ref]; twice && d.ref.Name != "" {
		d.problem(deep(n, "metadata", "name"), "metadata.name", "%s %s was already given at %s; rename one of them", d.ref.Kind, quote(d.ref.Name), first)
		return
	}
	l.seen[d.ref] = d.at(n)
	d.record("", nil, n)
	if preset := text(n, "spec", "preset"); presetNames[preset] {
		d.optional = map[string]bool{"spec.destinations": true, "spec.oauth2.grant": true}
	}
	l.decode(d, dir, n)
}

func (l *loader) decode(d *decoder, dir string, n *yaml.Node) {
	doc := document{ref: d.ref, dir: dir}
	switch d.ref.Kind {
	case v1alpha1.KindCredentialProvider:
		doc.provider = &v1alpha1.CredentialProvider{}
		d.decode(n, reflect.ValueOf(doc.provider).Elem(), "", 0)
	case v1alpha1.KindClusterCredentialProvider:
		var p v1alpha1.ClusterCredentialProvider
		d.decode(n, reflect.ValueOf(&p).Elem(), "", 0)
		doc.provider = &v1alpha1.CredentialProvider{TypeMeta: p.TypeMeta, Metadata: p.Metadata, Spec: p.Spec.CredentialProviderSpec}
		doc.grant = p.Spec.AllowedNamespaces
	case v1alpha1.KindAccessPolicy, v1alpha1.KindClusterAccessPolicy: // alike but for the kind
		doc.policy = &v1alpha1.AccessPolicy{}
		d.decode(n, reflect.ValueOf(doc.policy).Elem(), "", 0)
	default:
		doc.config = &v1alpha1.AttacheConfig{}
		d.decode(n, reflect.ValueOf(doc.config).Elem(), "", 0)
	}
	l.docs = append(l.docs, doc)
}

// finish checks the documents and makes a bundle of them.
func (l *loader) finish(dir string) (*Bundle, error) {
	if len(l.docs) == 0 && len(l.problems) == 0 {
		return nil, fmt.Errorf("%s holds no document; write a CredentialProvider and an AccessPolicy into it: %w", dir, ErrNoDocuments)
	}
	l.check()
	if len(l.problems) > 0 {
		l.problems.sort()
		return nil, l.problems
	}
	return l.bundle(), nil
}

// bundle makes a bundle of documents that are good.
func (l *loader) bundle() *Bundle {
	b := &Bundle{Place: l.place, positions: l.positions, Config: defaultConfig(l.place), Grants: map[string]*v1alpha1.NamespaceGrant{}, Unresolved: l.unresolved}
	for _, d := range l.docs {
		switch {
		case d.provider != nil:
			b.Providers = append(b.Providers, *d.provider)
			if d.ref.Kind == v1alpha1.KindClusterCredentialProvider {
				b.Grants[d.ref.Name] = d.grant
			}
		case d.policy != nil:
			b.Policies = append(b.Policies, *d.policy)
		default:
			b.Config = *d.config
		}
	}
	for f := range l.files {
		b.files = append(b.files, f)
	}
	slices.Sort(b.files)
	l.digest(b)
	return b
}

// deep returns the node at a path of keys, or the nearest one above it.
func deep(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		next := child(n, key)
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			v := n.Content[i+1]
			if v.Kind == yaml.AliasNode {
				v = v.Alias
			}
			return v
		}
	}
	return nil
}

func text(n *yaml.Node, path ...string) string {
	for _, key := range path {
		if n = child(n, key); n == nil {
			return ""
		}
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return ""
	}
	return n.Value
}

func orDescribe(s string, n *yaml.Node) string {
	if s == "" {
		return describe(n)
	}
	return quote(s)
}
