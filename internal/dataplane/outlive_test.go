package dataplane

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/attache-dev/attache/minting"
)

func TestOutliving(t *testing.T) {
	o := newOutliving(func() []minting.LiveCredential {
		return []minting.LiveCredential{
			{Provider: "a"}, {Provider: "a", Result: minting.Failed}, {Provider: "a", Result: minting.Failed}, {Provider: "b", Result: minting.Unsupported},
		}
	})
	const want = `
# HELP attache_credentials_live Credentials that issuers may still accept.
# TYPE attache_credentials_live gauge
attache_credentials_live 4
# HELP attache_credentials_unrevoked Credentials that outlive their task or time, since the issuer did not end them, by result: unsupported or failed.
# TYPE attache_credentials_unrevoked gauge
attache_credentials_unrevoked{provider="a",result="failed"} 2
attache_credentials_unrevoked{provider="b",result="unsupported"} 1
`
	if err := testutil.CollectAndCompare(o, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
