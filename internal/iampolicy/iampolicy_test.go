package iampolicy_test

import (
	"slices"
	"testing"
	"time"

	"github.com/attache-dev/attache/internal/iampolicy"
)

func TestAllows(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		want         []string
	}{
		{"one", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/k","Condition":{"DateLessThan":{"aws:CurrentTime":"x"}}}]}`,
			[]string{"s3:GetObject arn:aws:s3:::b/k"}},
		{"lists, and a denial", `{"Statement":[{"Effect":"Allow","Action":["a:B","a:C"],"Resource":["r","s"]},{"Effect":"Deny","Action":"*","Resource":"*"},{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}]}`,
			[]string{"a:B,a:C r,s", "not iam:* *"}},
		{"all but", `{"Statement":[{"Effect":"Allow","Action":"a:B","NotResource":["r"]}]}`, []string{"a:B not r"}},
		{"none", `{"Statement":[]}`, nil},
		{"no policy", `words`, nil},
		{"odd", `{"Statement":[{"Effect":"Allow","Action":7}]}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := iampolicy.Allows(tt.policy); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEnd(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 999, time.FixedZone("", 3600))
	if got, want := iampolicy.End(`"`+iampolicy.OpenEnd+`" "`+iampolicy.OpenEnd+`"`, at), `"2026-03-01T11:00:00Z" "2026-03-01T11:00:00Z"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
