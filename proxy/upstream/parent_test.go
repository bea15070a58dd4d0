package upstream_test

import (
	"net/url"
	"testing"

	"github.com/attache-dev/attache/proxy/upstream"
)

// A parent proxy without a port has the one that net/http dials.
func TestParentAddress(t *testing.T) {
	for in, want := range map[string]string{
		"http://proxy.test":       "proxy.test:80",
		"https://proxy.test":      "proxy.test:443",
		"http://proxy.test:3128":  "proxy.test:3128",
		"https://[2001:db8::1]":   "[2001:db8::1]:443",
		"http://[2001:db8::1]:80": "[2001:db8::1]:80",
		"http://192.0.2.1":        "192.0.2.1:80",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := upstream.ParentAddress(u); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
