package inject

import (
	"slices"
	"strconv"
	"strings"
)

// Operation is an operation of a JSON patch, RFC 6902 section 4: add, remove
// or replace.
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"` // of add and replace
}

// diff returns the operations that turn a into b, in an order that does not
// depend on maps. Members of lists are matched by name, so that a patch holds
// nothing of the author's that stays as it is.
func diff(a, b object) []Operation {
	d := &differ{}
	d.objects("", a, b)
	return d.ops
}

type differ struct{ ops []Operation }

func (d *differ) add(path string, v any) {
	d.ops = append(d.ops, Operation{Op: "add", Path: path, Value: v})
}
func (d *differ) remove(path string) { d.ops = append(d.ops, Operation{Op: "remove", Path: path}) }

func (d *differ) values(path string, a, b any) {
	switch a := a.(type) {
	case object:
		if b, ok := b.(object); ok {
			d.objects(path, a, b)
			return
		}
	case []any:
		if b, ok := b.([]any); ok {
			d.lists(path, a, b)
			return
		}
	}
	if !equal(a, b) {
		d.ops = append(d.ops, Operation{Op: "replace", Path: path, Value: b})
	}
}

func (d *differ) objects(path string, a, b object) {
	for _, k := range sortedKeys(a) {
		if _, ok := b[k]; !ok {
			d.remove(path + "/" + escape(k))
		}
	}
	for _, k := range sortedKeys(b) {
		if old, ok := a[k]; ok {
			d.values(path+"/"+escape(k), old, b[k])
		} else {
			d.add(path+"/"+escape(k), b[k])
		}
	}
}

// lists removes members of a from the end, and adds those of b from the start.
// The author's are never reordered and so never moved, which would repeat them
// in the patch; ours are kept where they stand between them, else moved.
func (d *differ) lists(path string, a, b []any) {
	at := make(map[string]int, len(a))
	for i, k := range listKeys(a) {
		at[k] = i
	}
	keys := listKeys(b)
	limit := make([]int, len(b)) // index in a of the author's next
	for i, next := len(b)-1, len(a); i >= 0; i-- {
		limit[i] = next
		if old, ok := at[keys[i]]; ok && !ours(b[i]) {
			next = min(next, old)
		}
	}
	from := make([]int, len(b)) // index in a, -1 for new ones
	keep := make([]bool, len(a))
	last := -1
	for i, k := range keys {
		from[i] = -1
		if old, ok := at[k]; ok && last < old && old < limit[i] {
			from[i], last, keep[old] = old, old, true
		}
	}
	for i := len(a) - 1; i >= 0; i-- {
		if !keep[i] {
			d.remove(path + "/" + strconv.Itoa(i))
		}
	}
	for i, old := range from {
		if old < 0 {
			d.add(path+"/"+strconv.Itoa(i), b[i])
		} else {
			d.values(path+"/"+strconv.Itoa(i), a[old], b[i])
		}
	}
}

// ours reports whether a member of a list is one of our containers or volumes.
func ours(v any) bool {
	o, _ := v.(object)
	name, _ := o["name"].(string)
	return slices.Contains(ownContainers, name) || slices.Contains(ownVolumes, name)
}

// listKeys names the members of a list: by name (and path, of a mount), or by
// value where they are plain, counted where that is not unique.
func listKeys(l []any) []string {
	keys := make([]string, len(l))
	count := make(map[string]int, len(l))
	for i, v := range l {
		var k string
		switch v := v.(type) {
		case object:
			name, _ := v["name"].(string)
			mount, _ := v["mountPath"].(string)
			k = "o" + name + "\x00" + mount
		case string:
			k = "s" + v
		}
		n := count[k]
		count[k]++
		if n > 0 {
			k += "\x00" + strconv.Itoa(n)
		}
		keys[i] = k
	}
	return keys
}

func sortedKeys(o object) []string {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

var pointer = strings.NewReplacer("~", "~0", "/", "~1") // RFC 6901 section 3

func escape(key string) string { return pointer.Replace(key) }
