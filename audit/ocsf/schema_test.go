package ocsf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// schema is the framework's published definitions, resolved as its
// documentation says: extends, $include of profiles, the dictionary, siblings
// of enumerations, requirements and constraints.
type schema struct {
	dir        string
	dictionary map[string]attribute
	types      map[string]scalar
	categories map[string]int
	classes    map[int]*kind    // by class_uid
	objects    map[string]*kind // resolved when first used
	files      map[string]string
}

type definition struct {
	UID         int                        `json:"uid"`
	Caption     string                     `json:"caption"`
	Name        string                     `json:"name"`
	Extends     string                     `json:"extends"`
	Category    string                     `json:"category"`
	Attributes  map[string]json.RawMessage `json:"attributes"`
	Constraints map[string][]string        `json:"constraints"`
	Profiles    []string                   `json:"profiles"`
}

type attribute struct {
	Type        string            `json:"type"`
	IsArray     bool              `json:"is_array"`
	Requirement string            `json:"requirement"`
	Sibling     string            `json:"sibling"`
	Profile     *string           `json:"profile"`
	Enum        map[string]member `json:"enum"`
	Deprecated  json.RawMessage   `json:"@deprecated"`
}

type member struct {
	Caption    string          `json:"caption"`
	Deprecated json.RawMessage `json:"@deprecated"`
}

type scalar struct {
	Type   string `json:"type"`
	Regex  string `json:"regex"`
	MaxLen int    `json:"max_len"`
	Range  []int  `json:"range"`
	Values []any  `json:"values"`
	re     *regexp.Regexp
}

// kind is a class or an object with all that it inherits.
type kind struct {
	definition
	attributes map[string]attribute
	category   int
}

func loadSchema(t testing.TB) *schema {
	t.Helper()
	s := &schema{dir: "testdata/schema", types: map[string]scalar{}, categories: map[string]int{}, classes: map[int]*kind{}, objects: map[string]*kind{}, files: map[string]string{}}
	var d struct {
		Attributes map[string]attribute `json:"attributes"`
		Types      struct {
			Attributes map[string]scalar `json:"attributes"`
		} `json:"types"`
	}
	s.read(t, "dictionary.json", &d)
	s.dictionary = d.Attributes
	for name, x := range d.Types.Attributes {
		if x.Regex != "" {
			x.re = regexp.MustCompile(x.Regex)
		}
		s.types[name] = x
	}
	var c struct {
		Attributes map[string]struct {
			UID     int    `json:"uid"`
			Caption string `json:"caption"`
		} `json:"attributes"`
	}
	s.read(t, "categories.json", &c)
	for name, x := range c.Attributes {
		s.categories[name] = x.UID
	}
	var names []string
	err := filepath.WalkDir(filepath.Join(s.dir, "events"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name := strings.TrimSuffix(filepath.Base(p), ".json")
			s.files[name], _ = filepath.Rel(s.dir, p)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		k := s.resolve(t, s.files[name], func(parent string) string { return s.files[parent] })
		if k.UID == 0 && name != "base_event" {
			continue // abstract
		}
		k.category = s.categories[k.Category] // "other" of base_event is 0
		uid := k.category*1000 + k.UID
		s.classes[uid] = k
		// The framework's compiler derives these enumerations.
		for key, m := range map[string]map[string]member{
			"class_uid":    {strconv.Itoa(uid): {Caption: k.Caption}},
			"category_uid": {strconv.Itoa(k.category): {Caption: c.Attributes[k.Category].Caption}},
		} {
			a := k.attributes[key]
			a.Enum = m
			if name == "base_event" {
				a.Enum = map[string]member{"0": {Caption: map[string]string{"class_uid": "Base Event", "category_uid": "Uncategorized"}[key]}}
			}
			k.attributes[key] = a
		}
	}
	return s
}

func (s *schema) read(t testing.TB, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func (s *schema) object(t testing.TB, name string) *kind {
	t.Helper()
	if k := s.objects[name]; k != nil {
		return k
	}
	k := s.resolve(t, "objects/"+name+".json", func(parent string) string { return "objects/" + parent + ".json" })
	s.objects[name] = k
	return k
}

// resolve reads a definition with what it extends and includes.
func (s *schema) resolve(t testing.TB, file string, where func(parent string) string) *kind {
	t.Helper()
	k := &kind{attributes: map[string]attribute{}}
	s.read(t, file, &k.definition)
	own := k.Constraints
	if k.Extends != "" {
		p := s.resolve(t, where(k.Extends), where)
		maps.Copy(k.attributes, p.attributes)
		if own == nil {
			k.Constraints = p.Constraints
		}
		if k.Category == "" {
			k.Category = p.Category
		}
		k.Profiles = append(k.Profiles, p.Profiles...)
	}
	for name, raw := range k.definition.Attributes {
		if name != "$include" {
			continue
		}
		var files []string
		if err := json.Unmarshal(raw, &files); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			profile := &kind{}
			s.read(t, f, &profile.definition)
			for n, raw := range profile.definition.Attributes {
				if _, there := k.attributes[n]; !there { // what a class has by itself stays its own
					k.merge(t, n, raw, s.dictionary, &profile.Name)
				}
			}
		}
	}
	for name, raw := range k.definition.Attributes {
		if name != "$include" {
			k.merge(t, name, raw, s.dictionary, nil)
		}
	}
	return k
}

// merge puts an attribute over what is inherited, or else what the dictionary
// has.
func (k *kind) merge(t testing.TB, name string, raw json.RawMessage, dictionary map[string]attribute, profile *string) {
	t.Helper()
	a, inherited := k.attributes[name]
	if !inherited {
		var ok bool
		if a, ok = dictionary[name]; !ok {
			t.Fatalf("%s: the dictionary has no %s", k.Name, name)
		}
		a.Profile = profile
	}
	enum := maps.Clone(a.Enum)
	var own map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(raw, &a), json.Unmarshal(raw, &own)); err != nil {
		t.Fatal(err)
	}
	if _, says := own["profile"]; says && string(own["profile"]) == "null" {
		a.Profile = nil
	}
	if enum != nil || a.Enum != nil {
		all := map[string]member{}
		maps.Copy(all, enum)
		maps.Copy(all, a.Enum)
		a.Enum = all
	}
	k.attributes[name] = a
}

// check holds an event to the schema and returns everything that is wrong.
func (s *schema) check(t testing.TB, event map[string]any) []string {
	t.Helper()
	number := func(key string) int { n, _ := event[key].(float64); return int(n) }
	k := s.classes[number("class_uid")]
	if k == nil {
		return []string{fmt.Sprintf("no class %v", event["class_uid"])}
	}
	c := &checking{s: s, t: t, profiles: map[string]bool{}}
	meta, _ := event["metadata"].(map[string]any)
	profiles, _ := meta["profiles"].([]any)
	for _, p := range profiles {
		name, _ := p.(string)
		c.profiles[name] = true
		if !slices.Contains(k.Profiles, name) {
			c.fail("metadata.profiles", "class %s has no profile %s", k.Name, name)
		}
	}
	if meta["version"] != "1.8.0" {
		c.fail("metadata.version", "%v", meta["version"])
	}
	if number("category_uid") != k.category {
		c.fail("category_uid", "%v, want %d", event["category_uid"], k.category)
	}
	if n := number("type_uid"); n != number("class_uid")*100+number("activity_id") {
		c.fail("type_uid", "%d", n)
	}
	if event["class_name"] != k.Caption {
		c.fail("class_name", "%v, want %s", event["class_name"], k.Caption)
	}
	if want := fmt.Sprintf("%v: %v", event["class_name"], event["activity_name"]); event["type_name"] != want {
		c.fail("type_name", "%v, want %s", event["type_name"], want)
	}
	c.object("", k, event)
	return c.wrong
}

type checking struct {
	s        *schema
	t        testing.TB
	profiles map[string]bool
	wrong    []string
}

func (c *checking) fail(at, format string, args ...any) {
	c.wrong = append(c.wrong, at+": "+fmt.Sprintf(format, args...))
}

func (c *checking) object(at string, k *kind, o map[string]any) {
	applies := func(a attribute) bool { return a.Profile == nil || c.profiles[*a.Profile] }
	for name, v := range o {
		a, ok := k.attributes[name]
		switch {
		case !ok:
			c.fail(at+name, "%s has no such attribute", k.Name)
		case !applies(a):
			c.fail(at+name, "belongs to the profile %s, which the event does not name", *a.Profile)
		case a.Deprecated != nil:
			c.fail(at+name, "is deprecated")
		case a.IsArray:
			l, ok := v.([]any)
			if !ok || len(l) == 0 {
				c.fail(at+name, "%T, want a list that is not empty", v)
			}
			for i, x := range l {
				c.value(fmt.Sprintf("%s%s[%d]", at, name, i), a, x)
			}
		default:
			c.value(at+name, a, v)
			c.sibling(at, name, a, o)
		}
	}
	for name, a := range k.attributes {
		if _, ok := o[name]; !ok && a.Requirement == "required" && applies(a) {
			c.fail(at+name, "is required by %s", k.Name)
		}
	}
	for rule, names := range k.Constraints {
		n := 0
		for _, name := range names {
			if _, ok := o[name]; ok {
				n++
			}
		}
		if rule == "at_least_one" && n < 1 || rule == "just_one" && n != 1 {
			c.fail(at, "%s has %d of %v, want %s", k.Name, n, names, rule)
		}
	}
}

// sibling holds the caption of an identifier to the enumeration.
func (c *checking) sibling(at, name string, a attribute, o map[string]any) {
	n, ok := o[name].(float64)
	if !ok || a.Enum == nil || a.Sibling == "" {
		return
	}
	caption, there := o[a.Sibling]
	if n == 99 && !there {
		c.fail(at+name, "is Other, and %s does not say what", a.Sibling)
	}
	if want := a.Enum[strconv.Itoa(int(n))].Caption; there && n != 99 && caption != want {
		c.fail(at+a.Sibling, "%v, want %s", caption, want)
	}
}

func (c *checking) value(at string, a attribute, v any) {
	if strings.HasSuffix(a.Type, "_t") {
		c.scalar(at, a.Type, v)
	} else if o, ok := v.(map[string]any); !ok {
		c.fail(at, "%T, want an object", v)
	} else if a.Type != "object" { // which is unmapped: anything
		c.object(at+".", c.s.object(c.t, a.Type), o)
	}
	if len(a.Enum) > 0 {
		key := fmt.Sprint(v)
		if m, ok := a.Enum[key]; !ok {
			c.fail(at, "%s is none of the enumeration", key)
		} else if m.Deprecated != nil {
			c.fail(at, "%s is deprecated", key)
		}
	}
}

func (c *checking) scalar(at, name string, v any) {
	x, ok := c.s.types[name]
	if !ok {
		c.fail(at, "no type %s", name)
		return
	}
	base := name
	if x.Type != "" {
		base = x.Type
	}
	switch base {
	case "json_t":
	case "boolean_t":
		if _, ok := v.(bool); !ok {
			c.fail(at, "%T, want %s", v, name)
		}
	case "integer_t", "long_t":
		n, ok := v.(float64)
		if !ok || n != math.Trunc(n) {
			c.fail(at, "%v, want %s", v, name)
		}
		if base == "integer_t" && math.Abs(n) > math.MaxInt32 && !strings.HasSuffix(at, "sequence") {
			c.fail(at, "%v is beyond an integer_t", v)
		}
		if len(x.Range) == 2 && (n < float64(x.Range[0]) || n > float64(x.Range[1])) {
			c.fail(at, "%v is out of range", v)
		}
	case "float_t":
		if _, ok := v.(float64); !ok {
			c.fail(at, "%T, want %s", v, name)
		}
	default:
		s, ok := v.(string)
		switch {
		case !ok:
			c.fail(at, "%T, want %s", v, name)
		case s == "":
			c.fail(at, "is empty")
		case x.re != nil && !x.re.MatchString(s), x.MaxLen > 0 && len(s) > x.MaxLen:
			c.fail(at, "%q is no %s", s, name)
		}
	}
}
