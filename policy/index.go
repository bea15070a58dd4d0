package policy

import (
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// index finds the variants that may match a request by its host, path, method
// and SPIFFE ID, without looking at the others.
type index struct {
	exact  map[string]*bucket
	label  map[string]*bucket // by what follows the first label
	suffix map[string]*bucket // by what follows any label
	any    *bucket
}

// bucket holds the variants of one host pattern.
type bucket struct {
	paths   leaf // variants without a path
	root    node // variants with a path
	all     []*variant
	passing []*variant // passthrough rules among all
	audited []*variant // one for each audit-mode policy and list of ports
}

// node is a place in the tree of path templates.
type node struct {
	literal map[string]*node
	one     *node // {name}
	tail    *leaf // "**" below this place
	end     *leaf // the path ends here
}

// leaf holds the variants of one path pattern, by what they are sure to need.
type leaf struct {
	all    []*variant // most specific first
	other  []*variant // neither method nor SPIFFE ID given
	method map[string][]*variant
	id     map[string][]*variant
	both   map[[2]string][]*variant // method, SPIFFE ID
}

// newIndex builds the index of variants that are sorted by rank.
func newIndex(variants []*variant) index {
	x := index{exact: map[string]*bucket{}, label: map[string]*bucket{}, suffix: map[string]*bucket{}}
	for _, v := range variants {
		x.bucket(v.host).add(v)
	}
	return x
}

func (x *index) bucket(h hostPattern) *bucket {
	var m map[string]*bucket
	switch h.class {
	case hostExact:
		m = x.exact
	case hostLabel:
		m = x.label
	case hostSuffix:
		m = x.suffix
	default:
		if x.any == nil {
			x.any = &bucket{}
		}
		return x.any
	}
	if m[h.name] == nil {
		m[h.name] = &bucket{}
	}
	return m[h.name]
}

// find appends to list the buckets whose pattern matches host.
func (x *index) find(host string, list []*bucket) []*bucket {
	if b := x.exact[host]; b != nil {
		list = append(list, b)
	}
	if host == "" || isAddress(host) {
		return list // a rule must name an address
	}
	for first, rest := true, host; ; first = false {
		label, parent, ok := strings.Cut(rest, ".")
		if !ok || label == "" {
			break // a wildcard stands for whole labels, and no name has an empty one
		}
		if b := x.label[parent]; first && b != nil {
			list = append(list, b)
		}
		if b := x.suffix[parent]; b != nil {
			list = append(list, b)
		}
		rest = parent
	}
	if x.any != nil {
		list = append(list, x.any)
	}
	return list
}

func (b *bucket) add(v *variant) {
	b.all = append(b.all, v)
	if v.action == v1alpha1.ActionPassthrough {
		b.passing = append(b.passing, v)
	}
	if v.policy.audit && !v.policy.cluster && !slices.ContainsFunc(b.audited, func(o *variant) bool {
		return o.policy == v.policy && slices.Equal(o.ports, v.ports)
	}) {
		b.audited = append(b.audited, v)
	}
	if v.path == nil {
		b.paths.add(v)
		return
	}
	b.root.leaf(v.path.segments).add(v)
}

// leaf returns the place for a template, making the way to it.
func (n *node) leaf(segments []segment) *leaf {
	for _, s := range segments {
		switch s.kind {
		case segmentLiteral:
			if n.literal == nil {
				n.literal = map[string]*node{}
			}
			if n.literal[s.text] == nil {
				n.literal[s.text] = &node{}
			}
			n = n.literal[s.text]
		case segmentOne:
			if n.one == nil {
				n.one = &node{}
			}
			n = n.one
		case segmentTail:
			if n.tail == nil {
				n.tail = &leaf{}
			}
			return n.tail
		case segmentEnd:
		}
	}
	if n.end == nil {
		n.end = &leaf{}
	}
	return n.end
}

func (l *leaf) add(v *variant) {
	l.all = append(l.all, v)
	methods, ids := v.methods, v.policy.ids()
	switch {
	case len(methods) == 0 && len(ids) == 0:
		l.other = append(l.other, v)
	case len(ids) == 0:
		add(&l.method, methods, v)
	case len(methods) == 0:
		add(&l.id, ids, v)
	default:
		var keys [][2]string
		for _, m := range methods {
			for _, id := range ids {
				keys = append(keys, [2]string{m, id})
			}
		}
		add(&l.both, keys, v)
	}
}

func add[K comparable](m *map[K][]*variant, keys []K, v *variant) {
	if *m == nil {
		*m = map[K][]*variant{}
	}
	for _, k := range keys {
		(*m)[k] = append((*m)[k], v)
	}
}

// find appends to list the leaves that match a canonical path.
func (b *bucket) find(path string, list []*leaf) []*leaf {
	if len(b.paths.all) > 0 {
		list = append(list, &b.paths)
	}
	if strings.HasPrefix(path, "/") {
		list = b.root.find(path[1:], true, list)
	}
	return list
}

// find appends to list the leaves that match the rest of a path. more says
// that a segment follows, which may be empty.
func (n *node) find(rest string, more bool, list []*leaf) []*leaf {
	if n.tail != nil {
		list = append(list, n.tail)
	}
	if !more {
		if n.end != nil {
			list = append(list, n.end)
		}
		return list
	}
	if n.literal == nil && n.one == nil {
		return list
	}
	part, rest, more := strings.Cut(rest, "/")
	if next := n.literal[part]; next != nil {
		list = next.find(rest, more, list)
	}
	if n.one != nil && part != "" {
		list = n.one.find(rest, more, list)
	}
	return list
}
