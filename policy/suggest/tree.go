package suggest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/attache-dev/attache/policy/replay"
)

// Numbers of different segments in one place from which on they become a
// variable: those that look like ids, and others.
const (
	manyIDs   = 2
	manyNames = 12
	maxDepth  = 24
	maxTail   = len("/{rest...}")
)

// tree gathers paths by their segments.
type tree struct {
	literal bool // no variables
	root    node
}

type node struct {
	children map[string]*node // by segment, as a template has it
	uses     []*use           // whose path ends here
	tail     []*use           // whose path goes on in a way that no template names
}

// leaf is one template and what it is made of.
type leaf struct {
	template string
	uses     []*use
}

// methods of a leaf, sorted.
func (l *leaf) methods() []string {
	var list []string
	for _, u := range l.uses {
		list = append(list, u.record.Request.Method)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// add puts a path, which starts with a slash, into the tree.
func (t *tree) add(path string, u *use) {
	if path == "" {
		path = "/"
	}
	n, length := &t.root, 0
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, p := range parts {
		last := i == len(parts)-1
		length += 1 + len(escape(p))
		if dots := strings.ReplaceAll(strings.ToLower(p), "%2e", "."); p == "" && !last || dots == "." || dots == ".." || i >= maxDepth || length > maxPath-maxTail {
			n.tail = append(n.tail, u)
			return
		}
		p = escape(p)
		if n.children == nil {
			n.children = map[string]*node{}
		}
		if n.children[p] == nil {
			n.children[p] = &node{}
		}
		n = n.children[p]
	}
	n.uses = append(n.uses, u)
}

// escape writes as their codes the characters that mean something in a template,
// and those that documents do not have in paths; templates read codes as the
// characters themselves.
func escape(segment string) string {
	var b strings.Builder
	for i := range len(segment) {
		if c := segment[i]; c <= ' ' || c > '~' || strings.IndexByte(`*{}?#\"`, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// leaves are the templates, sorted.
func (t *tree) leaves() []leaf {
	if !t.literal {
		t.root.fold()
	}
	var out []leaf
	t.root.walk("", 0, func(l leaf) { out = append(out, l) })
	slices.SortFunc(out, func(a, b leaf) int { return strings.Compare(a.template, b.template) })
	return out
}

// variable stands for a segment that differs; no path has it, since braces are
// escaped.
const variable = "{}"

// fold merges children that differ in an id, or are too many.
func (n *node) fold() {
	var ids, names []string
	for s := range n.children {
		switch {
		case s == "":
		case replay.IsID(s):
			ids = append(ids, s)
		default:
			names = append(names, s)
		}
	}
	merge := func(list []string) {
		into := n.children[variable]
		if into == nil {
			into = &node{}
			n.children[variable] = into
		}
		slices.Sort(list)
		for _, s := range list {
			into.take(n.children[s])
			delete(n.children, s)
		}
	}
	if len(ids) >= manyIDs {
		merge(ids)
	}
	if len(names) > manyNames {
		merge(names)
	}
	for _, c := range n.children {
		c.fold()
	}
}

// take adds all of o to n.
func (n *node) take(o *node) {
	n.uses = append(n.uses, o.uses...)
	n.tail = append(n.tail, o.tail...)
	for s, c := range o.children {
		if n.children == nil {
			n.children = map[string]*node{}
		}
		if n.children[s] == nil {
			n.children[s] = &node{}
		}
		n.children[s].take(c)
	}
}

func (n *node) walk(prefix string, variables int, fn func(leaf)) {
	if len(n.uses) > 0 {
		fn(leaf{prefix, n.uses})
	}
	if len(n.tail) > 0 {
		fn(leaf{prefix + "/{rest...}", n.tail})
	}
	for _, s := range slices.Sorted(maps.Keys(n.children)) {
		text, count := s, variables
		if s == variable {
			if text = "{id}"; count > 0 {
				text = fmt.Sprintf("{id%d}", count+1)
			}
			count++
		}
		n.children[s].walk(prefix+"/"+text, count, fn)
	}
}
