package storeurl_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/internal/storeurl"
)

func TestFlag(t *testing.T) {
	const url = "postgres://u:p@db/records"
	for name, c := range map[string]struct{ text, want, err string }{
		"a URL":         {text: url + "\n", want: url},
		"room around":   {text: " \r\n" + url + " \r\n\r\n", want: url},
		"as long as":    {text: url + strings.Repeat("x", 8<<10-len(url)), want: url + strings.Repeat("x", 8<<10-len(url))},
		"longer":        {text: url + strings.Repeat("x", 8<<10-len(url)+1), err: "has more than the 8192 bytes"},
		"empty":         {err: "holds no URL of a store"},
		"blank":         {text: " \n\t\n", err: "holds no URL of a store"},
		"two lines":     {text: url + "\n" + url, err: "holds no URL of a store"},
		"a NUL":         {text: url + "\x00x", err: "holds no URL of a store"},
		"a binary file": {text: strings.Repeat("\x7fELF", 1<<20), err: "has more than the 8192 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "url")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			f := storeurl.Flag("before")
			err := f.Set("@" + file)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), url) || f != "before" {
					t.Fatalf("%q is %v and leaves %q; want an error that names the file, not what it holds: %s", c.text[:min(40, len(c.text))], err, f, c.err)
				}
				return
			}
			if err != nil || f.String() != c.want {
				t.Fatalf("got %q, %v; want %q", f, err, c.want)
			}
		})
	}
}

func TestNoFile(t *testing.T) {
	var f storeurl.Flag
	if err := f.Set("sqlite:/a b"); err != nil || f != "sqlite:/a b" {
		t.Errorf("a URL itself: %q, %v", f, err)
	}
	for _, bad := range []string{"@", "@" + t.TempDir(), "@" + filepath.Join(t.TempDir(), "none")} {
		if err := f.Set(bad); err == nil {
			t.Errorf("%s is taken for %q", bad, f)
		}
	}
}
