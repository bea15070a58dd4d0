package trail_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/trail"
)

// words are n words that stand nowhere else, the last of them w.
func words(n int, w string) string { return strings.Repeat("zq"+w+" ", n-1) + "zq" + w }

// block is a text of lines, of which the tenth is w.
func block(w string) string {
	return strings.Repeat("zqline\n", 9) + "zq" + w + "\n" + strings.Repeat("zqline\n", 9)
}

// TestNoSecretInADocument: neither in the text nor in the difference that the
// control plane records, in whatever form YAML has it, and that it changed is
// seen.
func TestNoSecretInADocument(t *testing.T) {
	for name, spec := range map[string]func(string) any{
		"folded":           func(w string) any { return map[string]any{"password": words(40, w)} },
		"folded, quoted":   func(w string) any { return map[string]any{"password": ": '\" " + words(40, w)} },
		"double-quoted":    func(w string) any { return map[string]any{"password": "\t\x01" + words(40, w)} },
		"header":           func(w string) any { return map[string]any{"headers": map[string]any{"Cookie": words(40, w)}} },
		"block":            func(w string) any { return map[string]any{"privateKey": block(w)} },
		"block, indented":  func(w string) any { return map[string]any{"privateKey": "\n  - " + block(w)} },
		"map":              func(w string) any { return map[string]any{"clientSecret": map[string]any{"value": "zq" + w}} },
		"list":             func(w string) any { return map[string]any{"passwords": []string{"zqa", "zq" + w, words(40, w)}} },
		"list of maps":     func(w string) any { return map[string]any{"secrets": []any{map[string]any{"a": "zq" + w}}} },
		"X-Auth":           func(w string) any { return map[string]any{"X-Auth": "zq" + w} },
		"X-Key":            func(w string) any { return map[string]any{"X-Key": "zq" + w} },
		"key with a space": func(w string) any { return map[string]any{"my db password": "zq" + w} },
		"quoted key":       func(w string) any { return map[string]any{"it's: a password": words(40, w)} },
		"long key":         func(w string) any { return map[string]any{strings.Repeat("long ", 40) + "password": words(40, w)} },
		"pair": func(w string) any {
			return map[string]any{"headers": []any{map[string]any{"name": "X-Api-Key", "value": words(40, w)}, map[string]any{"name": "a"}}}
		},
		"exact": func(w string) any {
			return map[string]any{"headers": []any{map[string]any{"name": "X-Api-Key", "exact": words(40, w)}}}
		},
		"header as a text": func(w string) any { return map[string]any{"args": []string{"Cookie: " + words(40, w)}} },
	} {
		t.Run(name, func(t *testing.T) {
			tr, dir := open(t)
			object := func(w string) json.RawMessage {
				b, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": "u"}, "spec": spec(w)})
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			if err := tr.Requested(t.Context(), trail.Request{
				ID: "r", Kind: "CredentialProvider", Namespace: "team", Name: "x", Operation: trail.OpUpdate, Before: object("six"), After: object("seven"),
			}); err != nil {
				t.Fatal(err)
			}
			c := one(t, tr, dir).Change
			if strings.Contains(c.Text, "zq") || strings.Contains(c.Diff, "zq") {
				t.Errorf("shown:\n%s\n%s", c.Text, c.Diff)
			}
			if !strings.Contains(c.Text, audit.Mask) || !strings.Contains(c.Diff, "\n-") || !strings.Contains(c.Diff, "\n+") {
				t.Errorf("the change is not seen:\n%s\n%s", c.Text, c.Diff)
			}
		})
	}
}

// TestWhatIsNoSecretStays, beside one and below its key.
func TestWhatIsNoSecretStays(t *testing.T) {
	tr, dir := open(t)
	spec := func(key, url string) json.RawMessage {
		return json.RawMessage(`{"spec":{"apiKey":{"secretRef":{"key":"` + key + `","name":"github-token"}},"inject":{"as":"header","name":"X-Api-Key","prefix":"Token "},"jwt":{"audience":"https://a.example"},` +
			`"note":"` + strings.Repeat("many words ", 20) + `","oauth2":{"clientSecretRef":{"name":"a","key":"b"},"tokenURL":"` + url + `"},"rules":[{"name":"token","paths":["/token"]}],"tokens":"mask"}}`)
	}
	before, after := spec("one", "https://a.example/token"), spec("two", "https://b.example/token")
	if err := tr.Requested(t.Context(), trail.Request{ID: "r", Kind: "CredentialProvider", Name: "x", Operation: trail.OpUpdate, Before: before, After: after}); err != nil {
		t.Fatal(err)
	}
	c := one(t, tr, dir).Change
	if strings.Contains(c.Text+c.Diff, audit.Mask) {
		t.Errorf("masked:\n%s\n%s", c.Text, c.Diff)
	}
	for _, want := range []string{"-      key: one\n+      key: two\n       name: github-token\n", "-    tokenURL: https://a.example/token\n+    tokenURL: https://b.example/token\n"} {
		if !strings.Contains(c.Diff, want) {
			t.Errorf("%s is not in\n%s", want, c.Diff)
		}
	}
}
