package placeholder_test

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"github.com/attache-dev/attache/internal/placeholder"
)

func newSet(t testing.TB) *placeholder.Set {
	t.Helper()
	s, err := placeholder.New([]placeholder.Spec{
		{Env: "OPENAI_API_KEY", Prefix: "sk-", Provider: "openai"},
		{Env: "ANTHROPIC_API_KEY", Prefix: "sk-ant-", Provider: "anthropic"},
		{Env: "PLAIN", Provider: "plain"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContains(t *testing.T) {
	s, other := newSet(t), newSet(t)
	v := s.Value("OPENAI_API_KEY")
	b64 := base64.StdEncoding.EncodeToString
	tests := []struct {
		name, text, env, provider string
	}{
		{"alone", v, "OPENAI_API_KEY", "openai"},
		{"bearer", "Bearer " + v, "OPENAI_API_KEY", "openai"},
		{"other prefix", "Bearer " + s.Value("ANTHROPIC_API_KEY"), "ANTHROPIC_API_KEY", "anthropic"},
		{"no prefix", "x" + s.Value("PLAIN") + "y", "PLAIN", "plain"},
		{"basic password", "Basic " + b64([]byte("user:"+v)), "OPENAI_API_KEY", "openai"},
		{"basic user", "basic  " + b64([]byte(v+":")), "OPENAI_API_KEY", "openai"},
		{"basic without padding", "Basic " + strings.TrimRight(b64([]byte("u:"+v)), "="), "OPENAI_API_KEY", "openai"},
		{"basic in the URL alphabet", "Basic " + base64.URLEncoding.EncodeToString([]byte("ü?>:"+v)), "OPENAI_API_KEY", "openai"},
		{"percent-encoded", "key=" + strings.ReplaceAll(url.QueryEscape(v), "-", "%2D"), "OPENAI_API_KEY", "openai"},
		{"after a fragment of one", v[:20] + v, "OPENAI_API_KEY", "openai"},
		{"another run's", "Bearer " + other.Value("OPENAI_API_KEY"), "", ""},
		{"cut short", v[:len(v)-1], "", ""},
		{"wrong prefix", "xx-" + v[3:], "", ""},
		{"empty", "", "", ""},
		{"not Base64", "Basic !!!!" + strings.Repeat("x", 80), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env, provider, ok := s.Find(tt.text)
			if env != tt.env || provider != tt.provider || ok != (tt.env != "") {
				t.Errorf("Find: got %q, %q, %v, want %q, %q", env, provider, ok, tt.env, tt.provider)
			}
		})
	}
}

func TestLookupIsExact(t *testing.T) {
	s := newSet(t)
	v := s.Value("OPENAI_API_KEY")
	if env, provider, ok := s.Lookup(v); !ok || env != "OPENAI_API_KEY" || provider != "openai" {
		t.Errorf("got %q, %q, %v, want the variable", env, provider, ok)
	}
	if _, _, ok := s.Lookup("Bearer " + v); ok {
		t.Error("Lookup matched a longer text")
	}
}

func TestValuesAreRandomAndLookRight(t *testing.T) {
	a, b := newSet(t), newSet(t)
	if len(a.Env()) != 3 || !strings.HasPrefix(a.Env()[0], "OPENAI_API_KEY=sk-") {
		t.Errorf("got environment %q", a.Env())
	}
	values := map[string]bool{}
	for _, s := range []*placeholder.Set{a, b} {
		for _, name := range s.Names() {
			v := s.Value(name)
			if len(v) < 2*16 || values[v] {
				t.Errorf("%s: %q is short or repeats", name, v)
			}
			values[v] = true
		}
	}
}

func TestBadSpecs(t *testing.T) {
	for name, specs := range map[string][]placeholder.Spec{
		"twice":   {{Env: "A"}, {Env: "A"}},
		"no name": {{Prefix: "sk-"}},
	} {
		if _, err := placeholder.New(specs); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestNilSetHoldsNothing(t *testing.T) {
	var s *placeholder.Set
	if _, ok := s.Contains("Bearer sk-0123456789012345678901234567890123456789"); ok || s.Env() != nil || s.Provider("A") != "" {
		t.Error("a nil set found something")
	}
}

func FuzzContains(f *testing.F) {
	s := newSet(f)
	v := s.Value("OPENAI_API_KEY")
	f.Add("Bearer ", "")
	f.Add("Basic ", "%zz")
	f.Add("%41", "=")
	f.Fuzz(func(t *testing.T, before, after string) {
		if name, ok := s.Contains(before + v + after); !ok || name != "OPENAI_API_KEY" {
			t.Errorf("not found between %q and %q", before, after)
		}
		if name, ok := s.Contains(before + after); ok {
			t.Errorf("found %s where none is", name)
		}
	})
}

func BenchmarkContainsMiss(b *testing.B) {
	s := newSet(b)
	text := "Bearer " + strings.Repeat("0123456789abcdef", 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Contains(text); ok {
			b.Fatal("found")
		}
	}
}

// What admission put into a pod is found again, also where its marks are
// common words.
func TestRestore(t *testing.T) {
	const random = "mfrggzdfmztwq2lknnwg23tpobyxe43u"
	known := []placeholder.Known{
		{Spec: placeholder.Spec{Env: "OPENAI_API_KEY", Prefix: "sk-", Provider: "openai"}, Value: "sk-attache" + random},
		{Spec: placeholder.Spec{Env: "PLAIN", Provider: "plain"}, Value: "attache" + strings.Repeat("a", 26)},
	}
	s, err := placeholder.Restore(known, []placeholder.Spec{{Env: "HIDDEN", Provider: "aws"}, {Env: "PLAIN", Provider: "other"}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"Bearer sk-attache" + random:                                                "OPENAI_API_KEY",
		"attache" + strings.Repeat("a", 26):                                         "PLAIN",
		"a client of attache.dev, attache/rec_1234567890123456789012345678":         "",
		"Bearer sk-attache" + strings.Repeat("z", 32):                               "",
		"Basic " + base64.StdEncoding.EncodeToString([]byte("u:sk-attache"+random)): "OPENAI_API_KEY",
	} {
		if got, _ := s.Contains(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	if v := s.Value("HIDDEN"); len(v) < 39 || s.Provider("HIDDEN") != "aws" || s.Provider("PLAIN") != "plain" {
		t.Errorf("drawn: %q; providers %q, %q", v, s.Provider("HIDDEN"), s.Provider("PLAIN"))
	}
	for _, bad := range []placeholder.Known{
		{Spec: placeholder.Spec{Env: "A"}, Value: "attacheshort"},
		{Spec: placeholder.Spec{Env: "A", Prefix: "sk-"}, Value: "attache" + random},
		{Spec: placeholder.Spec{Env: "A"}, Value: random + "attache"},
		{Spec: placeholder.Spec{Env: "A"}, Value: "attache" + random + "$"},
		{Spec: placeholder.Spec{}, Value: "attache" + random},
	} {
		if _, err := placeholder.Restore([]placeholder.Known{bad}, nil); err == nil || strings.Contains(err.Error(), random) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
	if _, err := placeholder.Restore(append(known, known[0]), nil); err == nil {
		t.Error("declared twice")
	}
}
