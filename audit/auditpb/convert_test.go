package auditpb_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/auditpb"
	"github.com/attache-dev/attache/audit/internal/golden"
)

// there sends r through the wire and back.
func there(t *testing.T, r *audit.Record) audit.Record {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(auditpb.From(r))
	if err != nil {
		t.Fatal(err)
	}
	var m auditpb.Record
	if err := proto.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return auditpb.To(&m)
}

// TestNothingIsLost: a record that went through Protocol Buffers is the same
// JSON.
func TestNothingIsLost(t *testing.T) {
	for _, n := range golden.Records() {
		back := there(t, &n.Record)
		if want, got := n.Record.AppendJSON(nil), back.AppendJSON(nil); !bytes.Equal(want, got) {
			t.Errorf("%s: got  %s\nwant %s", n.Name, got, want)
		}
	}
}

// TestEveryField holds audit.proto to the fields of Record, both ways.
func TestEveryField(t *testing.T) {
	var same func(d protoreflect.MessageDescriptor, v reflect.Type, at string)
	same = func(d protoreflect.MessageDescriptor, v reflect.Type, at string) {
		if d.Fields().Len() != v.NumField() {
			t.Errorf("%s: %d fields in audit.proto, %d in Go", at, d.Fields().Len(), v.NumField())
		}
		for i := range v.NumField() {
			f := v.Field(i)
			name, _, _ := bytes.Cut([]byte(f.Tag.Get("json")), []byte(","))
			x := d.Fields().ByName(protoreflect.Name(name))
			if x == nil {
				t.Errorf("%s.%s is not in audit.proto", at, name)
				continue
			}
			typ := f.Type
			if typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct {
				typ = typ.Elem()
			}
			if typ.Kind() == reflect.Struct && typ != reflect.TypeFor[time.Time]() {
				same(x.Message(), typ, at+"."+string(name))
			}
		}
	}
	same((&auditpb.Record{}).ProtoReflect().Descriptor(), reflect.TypeFor[audit.Record](), "record")
}

// FuzzConvert takes any JSON that is a record there and back.
func FuzzConvert(f *testing.F) {
	for _, n := range golden.Records()[:20] {
		f.Add(n.Record.AppendJSON(nil))
	}
	f.Add([]byte(`{"time":"0000-01-01T00:00:00Z","sequence":18446744073709551615,"actors":[{}],"event":{"name":"","fields":{"":""}},"process":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r audit.Record
		if json.Unmarshal(b, &r) != nil {
			return
		}
		back := there(t, &r)
		if want, got := r.AppendJSON(nil), back.AppendJSON(nil); !bytes.Equal(want, got) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}
