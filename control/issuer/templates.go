package issuer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Templates says whether a pod's sidecar is one of ours.
type Templates interface {
	// Check returns the hash of the template that the sidecar of pod (JSON
	// with UseNumber) was made from, or refuses: the shape or the image is not
	// in the accepted set, or is retired.
	Check(ctx context.Context, pod map[string]any, image Image) (template string, err error)
	// Accepted says whether what Check has answered would be answered still.
	Accepted(ctx context.Context, template string, image Image) error
}

// Image is the program in a sidecar.
type Image struct {
	Ref    string // as the pod names it
	Digest string // sha256:…
	// Runs is the digest that the kubelet reports of what runs, if it is of the
	// image's manifest; "" if it is unknown, or that of the configuration.
	Runs string
}

// TemplatesName is the ConfigMap with the accepted set.
const TemplatesName = "attache-templates"

// Accepted is one member of the set: a shape of the sidecar with the image
// that ran in it.
type Accepted struct {
	Template string    `json:"template"`
	Digest   string    `json:"digest"` // of the image; empty if it had a tag only: then the reference must be the same
	Image    string    `json:"image"`
	Since    time.Time `json:"since"`
	// Retired is set by the operator, when no pod is to have it any more.
	Retired bool `json:"retired,omitempty"`
}

// Set is the accepted set: what admission makes now and made before, until
// the operator retires it. It lies in a ConfigMap of the control plane's
// namespace. It is safe for concurrent use.
type Set struct {
	c         client.Client
	namespace string
	of        func(pod map[string]any) (string, error)
	log       *slog.Logger
	now       func() time.Time
	more      func() *v1alpha1.ClusterConfig

	mu     sync.Mutex // guards what was read
	at     time.Time
	last   map[string]Accepted
	ensure map[string]bool // in the set, as this process wrote or read
}

var _ Templates = (*Set)(nil)

// Config makes the set hold what the AttacheConfig accepts, too
// (spec.cluster.acceptedTemplates). Call it before the set is used.
func (s *Set) Config(c func() *v1alpha1.ClusterConfig) { s.more = c }

// setAge is how long a read set is used.
const setAge = 5 * time.Second

// NewSet returns the set in namespace. of hashes the sidecar in a pod as it
// stands, and refuses one that admission never makes. c's reads must reach the
// API server.
func NewSet(c client.Client, namespace string, of func(pod map[string]any) (string, error), log *slog.Logger) (*Set, error) {
	if c == nil || of == nil || namespace == "" {
		return nil, errors.New("issuer: the set of templates needs a client, a namespace and a hash")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Set{c: c, namespace: namespace, of: of, log: log, now: time.Now, ensure: map[string]bool{}}, nil
}

// Check implements [Templates].
func (s *Set) Check(ctx context.Context, pod map[string]any, image Image) (string, error) {
	hash, err := s.of(pod)
	if err != nil {
		return "", deny(reasonSidecar, "the sidecar is not what admission makes: %v", err)
	}
	return hash, s.Accepted(ctx, hash, image)
}

// Accepted implements [Templates].
func (s *Set) Accepted(ctx context.Context, template string, image Image) error {
	var no error
	for _, age := range []time.Duration{setAge, 0} { // a refusal is not because what was read is old
		set, err := s.read(ctx, age)
		if err != nil {
			return broken("read the accepted templates", err)
		}
		if no = verdict(set, template, image); no == nil {
			return nil
		}
	}
	return no
}

func verdict(set map[string]Accepted, hash string, image Image) error {
	shape, retired := false, false
	if image.Runs != "" && image.Runs != image.Digest {
		// Somebody changed the pod's image, and the kubelet has not followed
		// yet; or a runtime reports a platform's digest, which then is accepted
		// beside the other.
		if err := verdict(set, hash, Image{Ref: image.Ref, Digest: image.Runs}); err != nil {
			return err
		}
	}
	for _, a := range set {
		if a.Template != hash {
			continue
		}
		shape = true
		if !a.matches(image) {
			continue
		}
		if !a.Retired {
			return nil
		}
		retired = true
	}
	switch {
	case retired:
		return deny(reasonTemplate, "template %.12s of the sidecar is retired; make the pod anew", hash)
	case shape:
		return deny(reasonDigest, "the sidecar's image %.19s… is not accepted with template %.12s", image.Digest, hash)
	}
	return deny(reasonTemplate, "template %.12s of the sidecar is not accepted; make the pod anew", hash)
}

// List returns the set, the newest first, retired members too.
func (s *Set) List(ctx context.Context) ([]Accepted, error) {
	m, err := s.read(ctx, setAge)
	if err != nil {
		return nil, err
	}
	out := make([]Accepted, 0, len(m))
	for _, a := range m {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Accepted) int { return cmp.Or(b.Since.Compare(a.Since), cmp.Compare(a.Name(), b.Name())) })
	return out, nil
}

// matches compares by digest, where there is one.
func (a Accepted) matches(i Image) bool {
	if a.Digest != "" {
		return a.Digest == i.Digest
	}
	return a.Image == i.Ref
}

// Name identifies a member of the set: ConfigMaps take letters, digits, dots
// and dashes.
func (a Accepted) Name() string {
	if d := imageDigest(a.Digest); d != "" {
		return a.Template + "." + d[len("sha256:"):len("sha256:")+16]
	}
	sum := sha256.Sum256([]byte(a.Image))
	return a.Template + ".tag-" + hex.EncodeToString(sum[:8])
}

// Accept adds a template with its image to the set, unless it is there. A
// retired one stays retired. It costs nothing from the second time on.
func (s *Set) Accept(ctx context.Context, template, image string) error {
	a := Accepted{Template: template, Digest: imageDigest(image), Image: image, Since: s.now().UTC().Truncate(time.Second)}
	s.mu.Lock()
	done := s.ensure[a.Name()]
	s.mu.Unlock()
	if done {
		return nil
	}
	const tries = 5
	var err error
	for range tries {
		if err = s.add(ctx, a); !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	if err == nil {
		err = s.guard(ctx, image)
	}
	if err != nil {
		return fmt.Errorf("accept template %s: %w", template, err)
	}
	s.mu.Lock()
	s.ensure[a.Name()], s.last = true, nil
	s.mu.Unlock()
	return nil
}

func (s *Set) add(ctx context.Context, a Accepted) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	cm := &corev1.ConfigMap{}
	err = s.c.Get(ctx, s.name(), cm)
	if apierrors.IsNotFound(err) {
		cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: TemplatesName, Namespace: s.namespace}, Data: map[string]string{a.Name(): string(b)}}
		return s.c.Create(ctx, cm)
	}
	if err != nil {
		return err
	}
	if _, ok := cm.Data[a.Name()]; ok {
		return nil
	}
	if cm.Data == nil {
		cm.Data = map[string]string{}
	}
	cm.Data[a.Name()] = string(b)
	s.log.InfoContext(ctx, "template accepted", "template", a.Template, "image", a.Image)
	return s.c.Update(ctx, cm)
}

// guardName is the ConfigMap with the parameters of the cluster's guards, and
// guardImages its member with images that the sidecar may have, one a line:
// during an upgrade those of the template before, too.
const (
	guardName   = "attache-guard"
	guardImages = "images.accepted"
)

// guard lets the cluster's guards accept image, if they are there.
func (s *Set) guard(ctx context.Context, image string) error {
	const tries = 5
	var err error
	for range tries {
		cm := &corev1.ConfigMap{}
		err = s.c.Get(ctx, types.NamespacedName{Namespace: s.namespace, Name: guardName}, cm)
		if apierrors.IsNotFound(err) || err == nil && slices.Contains(strings.Split(cm.Data[guardImages], "\n"), image) {
			return nil
		}
		if err != nil {
			return err
		}
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		cm.Data[guardImages] = strings.TrimPrefix(cm.Data[guardImages]+"\n"+image, "\n")
		if err = s.c.Update(ctx, cm); !apierrors.IsConflict(err) {
			return err
		}
	}
	return err
}

// Retire makes pods of one member, by its name, lose their identity: at the
// next mint or renewal. It reports whether it was accepted until now. The
// guards accept an image as long as any template has it.
func (s *Set) Retire(ctx context.Context, name string) (bool, error) {
	const tries = 5
	var err error
	for range tries {
		var done bool
		if done, err = s.retire(ctx, name); !apierrors.IsConflict(err) {
			return done, err
		}
	}
	return false, err
}

func (s *Set) retire(ctx context.Context, name string) (bool, error) {
	cm := &corev1.ConfigMap{}
	if err := s.c.Get(ctx, s.name(), cm); err != nil {
		return false, err
	}
	found := false
	gone, live := map[string]bool{}, map[string]bool{}
	for k, text := range cm.Data {
		var a Accepted
		if json.Unmarshal([]byte(text), &a) != nil {
			continue
		}
		if k == name && !a.Retired {
			a.Retired, found = true, true
			b, err := json.Marshal(a)
			if err != nil {
				return false, err
			}
			cm.Data[k] = string(b)
		}
		if a.Retired {
			gone[a.Image] = true
		} else {
			live[a.Image] = true
		}
	}
	if !found {
		return false, nil
	}
	if err := s.c.Update(ctx, cm); err != nil {
		return false, err
	}
	return true, s.unguard(ctx, func(image string) bool { return gone[image] && !live[image] })
}

// unguard takes images from the guards' list.
func (s *Set) unguard(ctx context.Context, gone func(image string) bool) error {
	cm := &corev1.ConfigMap{}
	err := s.c.Get(ctx, types.NamespacedName{Namespace: s.namespace, Name: guardName}, cm)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	list := strings.Split(cm.Data[guardImages], "\n")
	left := slices.DeleteFunc(slices.Clone(list), gone)
	if len(left) == len(list) {
		return nil
	}
	cm.Data[guardImages] = strings.Join(left, "\n")
	return s.c.Update(ctx, cm)
}

func (s *Set) name() types.NamespacedName {
	return types.NamespacedName{Namespace: s.namespace, Name: TemplatesName}
}

// read returns the set as it was at most age ago.
func (s *Set) read(ctx context.Context, age time.Duration) (map[string]Accepted, error) {
	s.mu.Lock()
	if s.last != nil && s.now().Sub(s.at) < age {
		defer s.mu.Unlock()
		return s.last, nil
	}
	s.mu.Unlock()
	cm := &corev1.ConfigMap{}
	if err := s.c.Get(ctx, s.name(), cm); err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	out := map[string]Accepted{}
	for k, text := range cm.Data {
		var a Accepted
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.Template == "" {
			s.log.ErrorContext(ctx, "member of "+TemplatesName+" not read, and so not accepted", "key", k)
			continue
		}
		out[k] = a
	}
	if s.more != nil {
		for _, t := range s.more().AcceptedTemplates {
			a := Accepted{Template: t.Hash, Digest: t.Digest}
			if _, ok := out[a.Name()]; !ok {
				out[a.Name()] = a
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.at = out, s.now()
	return out, nil
}
