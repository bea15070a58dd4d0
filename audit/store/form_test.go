package store

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
)

func TestForm(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "",
		"/v1/orders/45446":            "/v1/orders/\x01",
		"/v1/orders/{id}":             "/v1/orders/{id}",
		"arn:aws:s3:::data-29/a.json": "arn:aws:s3:::data-\x01/a.json",
		"/o/3f2a9c1e-77aa-4b1d-9c3e-0123456789ab": "/o/\x02-\x02-\x02-\x02-\x02", // hex words of four are taken for ids
		"/2026/refunds":            "/\x01/refunds",
		"/refund77":                "/\x02",
		"/x\x01y":                  "\x02",
		"/é/7":                     "/é/\x01",
		strings.Repeat("/a", 1025): "\x02",
		strings.Repeat("a", 25):    "\x02",
	} {
		if got := form(text); got != want {
			t.Errorf("form of %q is %q, want %q", text, got, want)
		}
	}
}

func TestMatchForm(t *testing.T) {
	for _, x := range []struct {
		pattern, text string
		want          formMatch
	}{
		{"*refund*", "/v1/refunds/77", formYes},
		{"*refund*", "/v1/orders/77", formNo},
		{"*refund*", "/o/refund77x9", formMaybe}, // an id may hold it
		{"*refund-77*", "/v1/refunds/77", formNo},
		{"*/orders/77", "/v1/orders/45446", formMaybe},
		{"/v1/orders/*", "/v1/orders/45446", formYes},
		{"/v2/orders/*", "/v1/orders/45446", formNo},
		{"/v1/orders/4*6", "/v1/orders/45446", formMaybe},
		{"*7*", "/v1/orders/x", formNo},
		{"*1*", "/v1/orders/x", formYes},
		{"*", "", formYes},
		{"", "", formYes},
		{"", "7", formNo},
		{"*a", "/é/7", formNo},
	} {
		if got := matchForm(x.pattern, form(x.text)); got != x.want {
			t.Errorf("%q of the form of %q: %d, want %d", x.pattern, x.text, got, x.want)
		}
	}
	term := &audit.Term{Key: "path", Values: []string{"*zebra*"}}
	if got, err := formVerdicts(t.Context(), term, []string{anyForm}); err != nil || got[0] != formMaybe {
		t.Errorf("a list that says nothing: %d, %v", got[0], err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := formVerdicts(ctx, term, []string{anyForm}); err == nil {
		t.Error("a question that was cancelled goes on")
	}
	if got := matchForm(strings.Repeat("*7", 2000)+"x", strings.Repeat("a", 2000)); got != formMaybe {
		t.Errorf("more work than is worth it: %d", got)
	}
}

// What a form says is true of the text.
func TestFormsAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	count := map[formMatch]int{}
	for range 200_000 {
		text, pattern := randomOf(rnd, "aab17/-\x01é", 12), randomOf(rnd, "aab17/-**", 8)
		count[agree(t, pattern, text, rnd.IntN(2) == 0)]++
	}
	for v, n := range count {
		if n < 1000 {
			t.Errorf("verdict %d only %d times", v, n)
		}
	}
}

func randomOf(rnd *rand.Rand, letters string, n int) string {
	l := []rune(letters)
	var b strings.Builder
	for range rnd.IntN(n) {
		b.WriteRune(l[rnd.IntN(len(l))])
	}
	return b.String()
}

func agree(t *testing.T, pattern, text string, not bool) formMatch {
	t.Helper()
	term := audit.Term{Key: "path", Values: []string{pattern}, Not: not}
	is := term.MatchValues([]string{text})
	v := matchForms(&term, []string{form(text)})
	if v == formYes && !is || v == formNo && is {
		t.Errorf("%q and %q (not: %t): the form %q says %d, the text %t", pattern, text, not, form(text), v, is)
	}
	return v
}

func FuzzForm(f *testing.F) {
	f.Add("*refund*", "/v1/refunds/77")
	f.Add("/v1/*/4*6", "/v1/orders/45446")
	f.Add("*\x01*", "/x\x01y")
	f.Add("a\xffb*", "A\xffB7")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern)*len(text) > 1<<16 {
			return
		}
		agree(t, strings.ToLower(pattern), strings.ToLower(text), false)
	})
}
