package ui

import (
	"strings"
	"testing"
)

func TestScopeOf(t *testing.T) {
	grants := []Grant{
		{Role: Viewer, Namespaces: []string{"a", "b"}, Groups: []string{"readers"}},
		{Role: Auditor, Namespaces: []string{"b"}, Emails: []string{"ada@example.com"}},
		{Role: Revoker, Namespaces: []string{AllNamespaces}, Subjects: []string{"root-sub"}},
	}
	for _, tt := range []struct {
		name                string
		p                   Person
		view, audit, revoke string
	}{
		{"nobody", Person{Subject: "x"}, "no namespace", "no namespace", "no namespace"},
		{"group", Person{Subject: "x", Groups: []string{"other", "readers"}}, "a, b", "no namespace", "no namespace"},
		{"email", Person{Subject: "x", Email: "ada@example.com"}, "b", "b", "no namespace"},
		{"subject that looks like an email", Person{Subject: "ada@example.com"}, "no namespace", "no namespace", "no namespace"},
		{"email that looks like a subject", Person{Subject: "x", Email: "root-sub"}, "no namespace", "no namespace", "no namespace"},
		{"group that looks like a subject", Person{Subject: "x", Groups: []string{"root-sub"}}, "no namespace", "no namespace", "no namespace"},
		{"both", Person{Subject: "x", Email: "ada@example.com", Groups: []string{"readers"}}, "a, b", "b", "no namespace"},
		{"all", Person{Subject: "root-sub"}, "all namespaces", "no namespace", "all namespaces"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for role, want := range map[Role]string{Viewer: tt.view, Auditor: tt.audit, Revoker: tt.revoke} {
				if got := scopeOf(grants, &tt.p, role).String(); got != want {
					t.Errorf("%s: got %q, want %q", role, got, want)
				}
			}
		})
	}
}

func TestScopeHas(t *testing.T) {
	some, all, none := Scope{Namespaces: []string{"a"}}, Scope{All: true}, Scope{}
	for _, tt := range []struct {
		s    Scope
		ns   string
		want bool
	}{{some, "a", true}, {some, "b", false}, {some, "", false}, {all, "", true}, {all, "z", true}, {none, "", false}, {none, "a", false}} {
		if got := tt.s.Has(tt.ns); got != tt.want {
			t.Errorf("%v has %q: got %v", tt.s, tt.ns, got)
		}
	}
	// The store takes nil for all namespaces: a scope of none must not become it.
	if none.names() == nil || all.names() != nil || len(some.names()) != 1 {
		t.Errorf("got %v %v %v", none.names(), all.names(), some.names())
	}
}

func TestGrantsAreChecked(t *testing.T) {
	for _, tt := range []struct {
		g    Grant
		want string
	}{
		{Grant{Role: "admin", Namespaces: []string{"a"}, Groups: []string{"g"}}, `grants[0].role: is "admin"`},
		{Grant{Role: Viewer, Groups: []string{"g"}}, "grants[0].namespaces: is empty"},
		{Grant{Role: Viewer, Namespaces: []string{"a"}}, "names nobody"},
		{Grant{Role: Viewer, Namespaces: []string{""}, Groups: []string{"g"}}, "empty name"},
		{Grant{Role: Viewer, Namespaces: []string{"a"}, Groups: []string{""}}, "empty name"},
		{Grant{Role: Viewer, Namespaces: []string{"a"}, Groups: []string{"g"}}, ""},
	} {
		err := tt.g.validate("grants[0]")
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.g, err, tt.want)
		}
	}
}

func TestLocalPath(t *testing.T) {
	for to, want := range map[string]string{
		"/search?q=x": "/search?q=x", "/": "/", "": "/", "https://evil.example": "/", "//evil.example": "/", `/\evil.example`: "/",
		"/\tx": "/", "/login?go=1": "/", "javascript:alert(1)": "/", "/record/rec_1": "/record/rec_1",
	} {
		if got := localPath(to); got != want {
			t.Errorf("%q: got %q, want %q", to, got, want)
		}
	}
}

func FuzzLocalPath(f *testing.F) {
	f.Add("/search?q=x")
	f.Add("//evil")
	f.Fuzz(func(t *testing.T, to string) {
		got := localPath(to)
		if !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") || strings.ContainsAny(got, "\\\r\n") {
			t.Errorf("%q leads to %q", to, got)
		}
	})
}
