// Package auditpb is the audit record in Protocol Buffers, generated from
// audit.proto by `make generate`, with conversions that lose nothing.
package auditpb

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attache-dev/attache/audit"
)

// From converts r. As in JSON, bytes that are no UTF-8 become U+FFFD, and a year
// that RFC 3339 cannot write becomes the zero time.
func From(r *audit.Record) *Record {
	out := &Record{}
	fill(out.ProtoReflect(), reflect.ValueOf(r).Elem())
	return out
}

// To converts m.
func To(m *Record) audit.Record {
	var r audit.Record
	take(reflect.ValueOf(&r).Elem(), m.ProtoReflect())
	return r
}

// field is the field of m that has the JSON name of the struct's field. A test
// sees that there is one of each.
func field(m protoreflect.Message, f reflect.StructField) protoreflect.FieldDescriptor {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	d := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if d == nil {
		panic(fmt.Sprintf("auditpb: %s has no field %s", m.Descriptor().Name(), name))
	}
	return d
}

func fill(m protoreflect.Message, v reflect.Value) {
	for i := range v.NumField() {
		f, d := v.Field(i), field(m, v.Type().Field(i))
		switch x := f.Interface().(type) {
		case time.Time:
			if x = x.UTC(); !x.IsZero() && x.Year() >= 0 && x.Year() <= 9999 {
				m.Set(d, protoreflect.ValueOfMessage(timestamppb.New(x).ProtoReflect()))
			}
		case []string:
			for _, s := range x {
				m.Mutable(d).List().Append(text(s))
			}
		case map[string]string:
			for k, s := range x {
				m.Mutable(d).Map().Set(text(k).MapKey(), text(s))
			}
		case []audit.Actor:
			for j := range x {
				e := m.Mutable(d).List().NewElement()
				fill(e.Message(), reflect.ValueOf(x[j]))
				m.Mutable(d).List().Append(e)
			}
		default:
			scalar(m, d, f)
		}
	}
}

func scalar(m protoreflect.Message, d protoreflect.FieldDescriptor, f reflect.Value) {
	switch f.Kind() {
	case reflect.Pointer:
		if !f.IsNil() {
			fill(m.Mutable(d).Message(), f.Elem())
		}
	case reflect.String:
		m.Set(d, text(f.String()))
	case reflect.Bool:
		m.Set(d, protoreflect.ValueOfBool(f.Bool()))
	case reflect.Uint32:
		m.Set(d, protoreflect.ValueOfUint32(uint32(f.Uint()))) //nolint:gosec // of that kind
	case reflect.Uint64:
		m.Set(d, protoreflect.ValueOfUint64(f.Uint()))
	default:
		m.Set(d, protoreflect.ValueOfInt64(f.Int()))
	}
}

func text(s string) protoreflect.Value {
	return protoreflect.ValueOfString(strings.ToValidUTF8(s, "\ufffd"))
}

func take(v reflect.Value, m protoreflect.Message) {
	for i := range v.NumField() {
		f, d := v.Field(i), field(m, v.Type().Field(i))
		if !m.Has(d) {
			continue
		}
		x := m.Get(d)
		switch f.Interface().(type) {
		case time.Time:
			t := x.Message().Interface().(*timestamppb.Timestamp) //nolint:forcetypeassert // the schema's type
			f.Set(reflect.ValueOf(t.AsTime()))
		case []string:
			l := make([]string, x.List().Len())
			for j := range l {
				l[j] = x.List().Get(j).String()
			}
			f.Set(reflect.ValueOf(l))
		case map[string]string:
			out := map[string]string{}
			x.Map().Range(func(k protoreflect.MapKey, s protoreflect.Value) bool {
				out[k.String()] = s.String()
				return true
			})
			f.Set(reflect.ValueOf(out))
		case []audit.Actor:
			l := make([]audit.Actor, x.List().Len())
			for j := range l {
				take(reflect.ValueOf(&l[j]).Elem(), x.List().Get(j).Message())
			}
			f.Set(reflect.ValueOf(l))
		default:
			set(f, x)
		}
	}
}

func set(f reflect.Value, x protoreflect.Value) {
	switch f.Kind() {
	case reflect.Pointer:
		f.Set(reflect.New(f.Type().Elem()))
		take(f.Elem(), x.Message())
	case reflect.String:
		f.SetString(x.String())
	case reflect.Bool:
		f.SetBool(x.Bool())
	case reflect.Uint32, reflect.Uint64:
		f.SetUint(x.Uint())
	default:
		f.SetInt(x.Int())
	}
}
