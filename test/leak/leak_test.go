package leak_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"testing"

	"github.com/attache-dev/attache/test/leak"
)

const value = "s3cr3t/+value?7a91"

func pack(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSearchFindsEachForm(t *testing.T) {
	std := base64.StdEncoding.EncodeToString
	for _, tt := range []struct{ name, text, form string }{
		{"raw", "x=" + value + ";", "raw"},
		{"hex", "0x" + hex.EncodeToString([]byte(value)), "hex"},
		{"percent", "a=" + url.QueryEscape(value) + "&b", "percent"},
		{"base64 at 0", std([]byte(value + " and more")), "base64"},
		{"base64 at 1", std([]byte("a" + value + " and more")), "base64"},
		{"base64 at 2", std([]byte("ab" + value)), "base64"},
		{"base64url", base64.RawURLEncoding.EncodeToString([]byte("abcd" + value + "!")), "base64"},
		{"gzip", "junk" + pack(t, "x "+value+" y"), "gzip:raw"},
		{"base64 in gzip", pack(t, std([]byte(value))), "gzip:base64"},
		{"gzip in base64", "v=" + std([]byte(pack(t, "some text around "+value+" to fill it"))), "base64:gzip:raw"},
		{"gzip twice", pack(t, pack(t, value)), "gzip:gzip:raw"},
		{"cut gzip", pack(t, value+" and a longer text that is lost")[:50], "gzip:raw"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := leak.Search([]leak.Place{{Name: "here", Data: []byte(tt.text)}}, map[string]string{"it": value})
			for _, f := range got {
				if f == (leak.Finding{Secret: "it", Place: "here", Form: tt.form}) {
					return
				}
			}
			t.Errorf("got %v, want form %s", got, tt.form)
		})
	}
}

func TestSearchFindsNothingElsewhere(t *testing.T) {
	places := []leak.Place{{Name: "a", Data: []byte("s3cr3t/+value?7a90 " + pack(t, "nothing"))}, {Name: "empty"}}
	if got := leak.Search(places, map[string]string{"it": value}); len(got) > 0 {
		t.Errorf("got %v, want nothing", got)
	}
}
