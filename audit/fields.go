package audit

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Trust of a field.
const (
	Verified = "verified" // Attaché saw or checked it itself
	Claimed  = "claimed"  // the agent, or the upstream, says so
	Derived  = "derived"  // computed from verified facts
)

// Field describes one field of [Record].
type Field struct {
	Path  string // as in JSON, e.g. request.host
	Type  string // string, integer, boolean, time, list, map, object, objects (a list of them)
	Trust string // Verified, Claimed or Derived
	Max   int    // bytes of a string, or of each element; 0: not a text
	Items int    // elements of a list or map
	// Required says that the field is always written if its object is.
	Required bool
}

// Fields returns every field of Record, in the order in which they are written.
func Fields() []Field { return fieldsOf(reflect.TypeFor[Record](), "") }

func fieldsOf(t reflect.Type, prefix string) []Field {
	var l []Field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		x := Field{Path: prefix + name, Required: opts == "", Trust: trustWord(f.Tag.Get("trust"))}
		x.Max, _ = strconv.Atoi(f.Tag.Get("max"))     // absent is 0
		x.Items, _ = strconv.Atoi(f.Tag.Get("items")) // absent is 0
		switch {
		case f.Type == reflect.TypeFor[time.Time]():
			x.Type = "time"
		case f.Type.Kind() == reflect.Pointer:
			x.Type = "object"
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			x.Type = "objects"
		case f.Type.Kind() == reflect.Slice:
			x.Type = "list"
		case f.Type.Kind() == reflect.Map:
			x.Type = "map"
		case f.Type.Kind() == reflect.String:
			x.Type = "string"
		case f.Type.Kind() == reflect.Bool:
			x.Type = "boolean"
		default:
			x.Type = "integer"
		}
		l = append(l, x)
		if x.Type == "object" || x.Type == "objects" {
			l = append(l, fieldsOf(f.Type.Elem(), x.Path+".")...)
		}
	}
	return l
}

func trustWord(tag string) string {
	switch tag {
	case "v":
		return Verified
	case "c":
		return Claimed
	case "d":
		return Derived
	default:
		return ""
	}
}

// FieldTrust maps each field's path (request.user_agent) to Verified, Claimed
// or Derived.
func FieldTrust() map[string]string {
	m := map[string]string{}
	for _, f := range Fields() {
		m[f.Path] = f.Trust
	}
	return m
}

// Schema returns the JSON Schema (draft 2020-12) of a line's JSON, indented. It
// is what audit/schema.json holds. Each field carries x-trust.
func Schema() []byte {
	root := object()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://attache.dev/schemas/audit-v1.json"
	root["title"] = SchemaVersion
	root["description"] = "One line of the audit spool, or one request joined from its begin and end. Fields may be added; readers ignore those they do not know."
	objects := map[string]map[string]any{"": root}
	for _, f := range Fields() {
		parent, name := "", f.Path
		if i := strings.LastIndexByte(f.Path, '.'); i >= 0 {
			parent, name = f.Path[:i], f.Path[i+1:]
		}
		o := objects[parent]
		s := f.schema()
		s["x-trust"] = f.Trust
		switch f.Type {
		case "object":
			objects[f.Path] = s
		case "objects":
			objects[f.Path] = s["items"].(map[string]any) //nolint:forcetypeassert // made by schema
		}
		o["properties"].(map[string]any)[name] = s //nolint:forcetypeassert // made by object
		if f.Required {
			o["required"] = append(o["required"].([]string), name) //nolint:forcetypeassert // made by object
		}
	}
	b, err := json.MarshalIndent(root, "", "  ")
	if err != nil { // maps of strings and numbers
		panic(fmt.Sprintf("audit: marshal schema: %v", err))
	}
	return append(b, '\n')
}

func object() map[string]any {
	return map[string]any{"type": "object", "properties": map[string]any{}, "required": []string{}}
}

func (f Field) schema() map[string]any {
	text := map[string]any{"type": "string", "maxLength": f.Max}
	switch f.Type {
	case "object":
		return object()
	case "objects":
		return map[string]any{"type": "array", "items": object(), "maxItems": f.Items}
	case "time":
		return map[string]any{"type": "string", "format": "date-time"}
	case "list":
		return map[string]any{"type": "array", "items": text, "maxItems": f.Items}
	case "map":
		return map[string]any{"type": "object", "additionalProperties": text, "maxProperties": f.Items}
	case "string":
		return text
	default:
		return map[string]any{"type": f.Type}
	}
}
