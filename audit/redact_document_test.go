package audit

import (
	"fmt"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// announcing are keys whose value is a secret.
var announcing = []string{
	"password", "clientSecret", "Cookie", "X-Auth", "X-Key", "X-Api-Key", `"apiKey"`, "'it''s: a password'", "my db password", "Authorization", "jwt", "db.password_2",
}

// forms are the forms in which YAML has a secret of several words, below a key.
var forms = []struct {
	name string
	of   func(key string, w []string) string
}{
	{"plain", func(k string, w []string) string { return k + ": " + strings.Join(w, " ") }},
	{"folded", func(k string, w []string) string { return k + ": " + strings.Join(w, "\n  ") }},
	{"single-quoted", func(k string, w []string) string { return k + ": '" + strings.Join(w, "\n\n   ") + "'" }},
	{"double-quoted", func(k string, w []string) string { return k + `: "` + strings.Join(w, "\\\n  \\ ") + `"` }},
	{"on the next line", func(k string, w []string) string { return k + ":\n  " + strings.Join(w, "\n  ") }},
	{"literal", func(k string, w []string) string { return k + ": |-\n  " + strings.Join(w, "\n\n    - x: ") }},
	{"indented literal", func(k string, w []string) string { return k + ": |2+\n    " + strings.Join(w, "\n  ") }},
	{"folded block", func(k string, w []string) string { return k + ": > # why\n  " + strings.Join(w, "\n  ") }},
	{"tagged", func(k string, w []string) string { return k + ": !!str |\n  " + strings.Join(w, "\n  ") }},
	{"anchored", func(k string, w []string) string { return k + ": &a " + strings.Join(w, "\n  ") }},
	{"flow mapping", func(k string, w []string) string { return k + ": {value: " + strings.Join(w, ", a: ") + "}" }},
	{"flow list", func(k string, w []string) string { return k + ": [" + strings.Join(w, ",\n  ") + "]" }},
	{"list", func(k string, w []string) string { return k + ":\n- " + strings.Join(w, "\n- ") }},
	{"indented list", func(k string, w []string) string { return k + ":\n  - " + strings.Join(w, "\n  - ") }},
	{"mapping", func(k string, w []string) string { return k + ":\n  a: " + strings.Join(w, "\n  b:\n    c: ") }},
	{"in a flow mapping", func(k string, w []string) string {
		return "auth: {user: x, " + k + ": \"" + strings.Join(w, " ") + "\"}"
	}},
	{"in an element of flow", func(k string, w []string) string {
		return "l:\n- {a: x,\n  " + k + ": '" + strings.Join(w, "\n  ") + "'}"
	}},
	{"in an element", func(k string, w []string) string { return "l:\n- a: x\n  " + k + ": " + strings.Join(w, "\n    ") }},
	{"asked", func(k string, w []string) string { return "? " + k + "\n: " + strings.Join(w, "\n  ") }},
	{"asked, folded", func(k string, w []string) string { return "? long\n  " + k + "\n: " + strings.Join(w, "\n  ") }},
	{"pair", func(k string, w []string) string {
		return "l:\n- name: " + k + "\n  value: " + strings.Join(w, "\n    ")
	}},
	{"pair, turned", func(k string, w []string) string {
		return "l:\n- value: |\n    " + strings.Join(w, "\n    ") + "\n  name: " + k
	}},
	{"exact", func(k string, w []string) string { return "l:\n  - exact: " + w[0] + "\n    name: " + k }},
	{"pair in flow", func(k string, w []string) string {
		return "l:\n- {name: " + k + ", value: " + strings.Join(w, " ") + "}"
	}},
}

// shown reports the first of the words that stands in a document that is
// recorded: in its text, in the lines that differences are made of, and in a
// difference made elsewhere.
func shown(x *Redactor, text, of string) string {
	diff := "@@ -1,0 +1,9 @@\n+" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n+") + "\n"
	for where, got := range map[string]string{"text": x.document(text), "lines": strings.Join(x.DocumentLines(text), "\n"), "diff": x.document(diff)} {
		if strings.Contains(got, of) {
			return where + ":\n" + got
		}
	}
	return ""
}

// TestSecretsOfDocuments in every form that YAML has for them, under every key;
// what stands after them stays.
func TestSecretsOfDocuments(t *testing.T) {
	var x Redactor
	w := []string{"zqone", "zqtwo", "zqthree"}
	for _, f := range forms {
		for _, key := range announcing {
			text := "a: before\nspec:\n  " + strings.ReplaceAll(f.of(key, w), "\n", "\n  ") + "\n  last: after\nb: after\n"
			if got := shown(&x, text, "zq"); got != "" {
				t.Errorf("%s: shown in %s", f.name, got)
			}
			if got := x.document(text); !strings.HasPrefix(got, "a: before\nspec:\n") || !strings.HasSuffix(got, "\n  last: after\nb: after\n") {
				t.Errorf("%s: too much is masked:\n%s", f.name, got)
			} else if again := x.document(got); again != got {
				t.Errorf("%s: again, it became\n%s", f.name, again)
			}
		}
	}
	for _, key := range []string{"passwords", "tokens", "apiKeys", "db_passwords_2", "X-Api-Keys", "cookies"} {
		for _, v := range []string{":\n- zq", ":\n  - zq", ": zq", ": 'zq zq'", ": keep zq", ": |\n  zq\n  zq", ": [a, zq]", ":\n  a: zq", ": &a zq"} {
			for _, before := range []string{"", "a:\n- ", "+"} {
				text := before + key + strings.ReplaceAll(v, "\n", "\n"+strings.Repeat(" ", len(before)%4)) + "\n"
				if got := shown(&x, text, "zq"); got != "" {
					t.Errorf("%s\nshown in %s", text, got)
				}
			}
		}
	}
	stay := "apiKey:\n  file: /a\n  secretRef:\n    key: token\n    name: a\n  vault:\n    path: kv/a\n    role: b\njwt:\n  audience: x\nb:\n  apiKey: {secretRef: {name: a, key: token}}\n  list: [a, {b: c}]\ntokens: keep\nb:\n  tokens: \"mask\" # why\nsecretName: a\ntokenURL: https://a.example/token\nrules:\n- name: password\n  paths:\n  - /a\n- value: a\n  name: page\n"
	if got := x.document(stay); got != stay {
		t.Errorf("got %s", got)
	}
}

// TestPatternsOfDocumentLines leave each line in its place, and what stands below
// a key below it.
func TestPatternsOfDocumentLines(t *testing.T) {
	x, err := NewRedactor(v1alpha1.AuditRedact{Patterns: []string{`(?s)begin.*?end`, `password: \|`}})
	if err != nil {
		t.Fatal(err)
	}
	text := "a: begin\n  b: end x\npassword: |\n  zq\nc: d\n"
	if got := strings.Join(x.DocumentLines(text), "\n"); got != "a: ***\n*** x\n***\n  ***\nc: d\n" {
		t.Errorf("got %s", got)
	}
	if got := x.document(text); got != "a: *** x\n***\n  ***\nc: d\n" {
		t.Errorf("got %s", got)
	}
}

// FuzzDocument: no panic, no line lost, and a secret behind its key is never
// written, in whatever form.
func FuzzDocument(f *testing.F) {
	f.Add("a: b\n", "hunter2", uint(0), uint(0))
	f.Add("password: |\n  x\n", "a b", uint(5), uint(3))
	f.Add("l:\n- name: x\n", "|", uint(20), uint(8))
	f.Add("\x00", "0", uint(0), uint(0))
	f.Fuzz(func(t *testing.T, s, more string, form, key uint) {
		var x Redactor
		if strings.ContainsAny(more, "\r\n") {
			return
		}
		const secret = "hunter2hunter2"
		in := s + "\npassword: x" + more + secret + "\n" + s
		out := x.document(in)
		if strings.Count(out, secret) > 2*strings.Count(s, secret) {
			t.Errorf("%q became %q", in, out)
		}
		if strings.Count(in, "\n") != strings.Count(out, "\n") {
			t.Errorf("%q lost lines: %q", in, out)
		}
		if n := len(x.DocumentLines(in)); n != strings.Count(in, "\n")+1 {
			t.Errorf("%q has %d lines", in, n)
		}
		if strings.Contains(s, "zq") || strings.Contains(more, "zq") {
			return
		}
		// A word of a scalar, as an emitter writes it without quotes.
		more = strings.Map(func(r rune) rune {
			if r <= ' ' || r > '~' || strings.ContainsRune(`:#{}[],&*!|>'"%@\?`+"`", r) {
				return -1
			}
			return r
		}, more)
		var w []string
		for i := range 3 + len(s)%5 {
			w = append(w, fmt.Sprintf("zq%d%s%s", i, more, strings.Repeat("x", i)))
		}
		doc := forms[form%uint(len(forms))].of(announcing[key%uint(len(announcing))], w)
		for _, text := range []string{doc, "spec:\n  " + strings.ReplaceAll(doc, "\n", "\n  ") + "\n", s + "\n" + doc, "- " + strings.ReplaceAll(doc, "\n", "\n  ") + "\n" + s} {
			if got := shown(&x, text, "zq"); got != "" {
				t.Errorf("%q is shown in %s", text, got)
			}
		}
	})
}
