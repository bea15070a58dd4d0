package minting

import (
	"reflect"
	"testing"
	"time"
)

// bump changes one field of r to another value.
func bump(t *testing.T, f reflect.Value) {
	t.Helper()
	switch f.Kind() {
	case reflect.String:
		f.SetString(f.String() + "x")
	case reflect.Bool:
		f.SetBool(!f.Bool())
	case reflect.Int64:
		f.SetInt(f.Int() + 1)
	case reflect.Slice:
		f.Set(reflect.Append(f, reflect.ValueOf("x")))
	default:
		t.Fatalf("no way to change a %s; teach this test", f.Kind())
	}
}

// Invariant 8: change any one field, get another key.
func TestKeyDependsOnEveryField(t *testing.T) {
	full := Request{Scope: []string{"a"}, Resources: []string{"a"}, TTL: time.Minute}
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.String {
			v.Field(i).SetString("same") // also: no two fields can swap unseen
		}
	}
	for _, base := range []Request{{}, full} {
		seen := map[string]string{base.Key(): "nothing"}
		for i := range reflect.TypeFor[Request]().NumField() {
			r := base
			f := reflect.ValueOf(&r).Elem().Field(i)
			bump(t, f)
			name := reflect.TypeFor[Request]().Field(i).Name
			if other, ok := seen[r.Key()]; ok {
				t.Errorf("changing %s and changing %s give one key", name, other)
			}
			seen[r.Key()] = name
		}
	}
}

// TestMemoForgetsNoField: the remembered key is never another request's, also
// when the caller changes its own lists afterwards.
func TestMemoForgetsNoField(t *testing.T) {
	base := Request{Provider: "p", Scope: []string{"a", "b"}, TTL: time.Minute}
	var m keyMemo
	for i := range reflect.TypeFor[Request]().NumField() {
		r := base
		bump(t, reflect.ValueOf(&r).Elem().Field(i))
		for _, q := range []Request{base, r, r, base} {
			if got, want := m.of(&q), q.Key(); got != want {
				t.Errorf("%s: got %s, want %s", reflect.TypeFor[Request]().Field(i).Name, got, want)
			}
		}
	}
	own := Request{Provider: "p", Scope: []string{"read"}}
	before := m.of(&own)
	own.Scope[0] = "admin"
	if got := m.of(&own); got == before || got != own.Key() {
		t.Error("a scope that was changed in place keeps the old key")
	}
}

func TestKeyDoesNotConcatenate(t *testing.T) {
	pairs := [][2]Request{
		{{Provider: "ab", Generation: "c"}, {Provider: "a", Generation: "bc"}},
		{{Scope: []string{"a b"}}, {Scope: []string{"a", "b"}}},
		{{Scope: []string{"ab", ""}}, {Scope: []string{"a", "b"}}},
		{{Scope: []string{""}}, {}},
		{{Resources: []string{"a"}}, {Scope: []string{"a"}}},
		{{Scope: []string{"a"}, Resources: []string{"b"}}, {Scope: []string{"a", "b"}}},
		{{Audience: "x"}, {Role: "x"}},
		{{AuthorizationDetails: "x"}, {SessionPolicy: "x"}},
		{{Role: "a", SessionPolicy: "bc"}, {Role: "ab", SessionPolicy: "c"}},
	}
	for _, p := range pairs {
		if p[0].Key() == p[1].Key() {
			t.Errorf("%+v and %+v have one key", p[0], p[1])
		}
	}
}

func TestKeyTakesSetsAsSets(t *testing.T) {
	in := []string{"b", "a", "b"}
	a, b := Request{Scope: in}, Request{Scope: []string{"a", "b"}}
	if a.Key() != b.Key() {
		t.Error("order or repetition of a scope makes another key")
	}
	if in[0] != "b" {
		t.Error("Key sorted its caller's slice")
	}
	list := struct{ L []string }{[]string{"b", "a"}}
	tsil := struct{ L []string }{[]string{"a", "b"}}
	plan := planOf(reflect.TypeOf(list))
	if string(appendCanonical(nil, plan, reflect.ValueOf(list))) == string(appendCanonical(nil, plan, reflect.ValueOf(tsil))) {
		t.Error("a list without key:\"set\" lost its order")
	}
}

func TestKeyRefusesFieldsItCannotHash(t *testing.T) {
	for _, v := range []any{
		struct{ P *string }{}, struct{ F func() }{}, struct{ M map[string]string }{}, struct{ I any }{},
		struct{ S []int }{}, struct{ T struct{ A int } }{}, struct{ F float64 }{},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%T was accepted", v)
				}
			}()
			planOf(reflect.TypeOf(v))
		}()
	}
}

func FuzzKey(f *testing.F) {
	f.Add("p", "g", "s", "t")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		x := Request{Provider: a, Generation: b, Scope: []string{c, d}}
		y := Request{Provider: a + b, Scope: []string{c + d}}
		if x.Key() == y.Key() && (b != "") {
			t.Fatalf("%+v and %+v have one key", x, y)
		}
		if x.Key() != (Request{Provider: a, Generation: b, Scope: []string{d, c}}).Key() {
			t.Fatal("a scope's order counts")
		}
	})
}

func BenchmarkKey(b *testing.B) {
	r := Request{
		Provider: "github", Generation: "0123456789abcdef0123456789abcdef", WorkloadID: "spiffe://example.org/agent/a",
		PostureDigest: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", RunID: "0123456789abcdef0123456789abcdef",
		Destination: "https://api.example.com:443", Scope: []string{"repo:write", "repo:read"}, TTL: time.Minute,
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = r.Key()
	}
}
