package leak_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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

func deflate(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
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
		{"gzip inside other bytes", "junk\x1f" + pack(t, value) + "junk", "gzip:raw"},
		{"zlib, a git object", deflate(t, "blob 9\x00"+value), "zlib:raw"},
		{"base64 of gzip", "GZ=" + std([]byte(pack(t, value))), "base64:gzip:raw"},
		{"base64 of zlib", std([]byte(deflate(t, "x "+value+" y"))), "base64:zlib:raw"},
		{"base64 of base64", std([]byte(std([]byte("x" + value + " and more")))), "base64:base64"},
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
	packed := base64.StdEncoding.EncodeToString([]byte(pack(t, "nothing here")))
	places := []leak.Place{{Name: "a", Data: []byte("s3cr3t/+value?7a90 " + pack(t, "nothing"))}, {Name: "empty"},
		{Name: "b", Data: []byte(strings.Repeat("another text, "+packed+" ", 20))}}
	if got := leak.Search(places, map[string]string{"it": value}); len(got) > 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func TestFiles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "home")
	file := filepath.Join(dir, "a", "b", "file")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	search := func(most int64) []leak.Finding {
		t.Helper()
		places, err := leak.Files(root, dir, most)
		if err != nil {
			t.Fatal(err)
		}
		return leak.Search(places, map[string]string{"it": value})
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "innocent")
	if got := search(0); len(got) > 0 {
		t.Fatalf("got %v", got)
	}
	write(file, pack(t, value))
	if got := search(0); len(got) != 1 || got[0] != (leak.Finding{Secret: "it", Place: filepath.Join("home", "a", "b", "file"), Form: "gzip:raw"}) {
		t.Fatalf("got %v", got)
	}
	if got := search(8); len(got) > 0 {
		t.Errorf("got %v of a file over the bound", got)
	}
	write(filepath.Join(dir, "a", url.QueryEscape(value)), "")
	if got := search(8); len(got) != 1 || !strings.HasPrefix(got[0].Place, "name of ") {
		t.Errorf("got %v, want the file's name", got)
	}
	if _, err := leak.Files(root, filepath.Join(root, "missing"), 0); err == nil {
		t.Error("a missing folder is no error")
	}
}
