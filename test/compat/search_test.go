package main

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const secretValue = "eyJhbGciOi-secret/value+with.odd~characters-0123456789"

func gzipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

func deflated(s string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

func TestFind(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	for name, text := range map[string]string{
		"raw":                     "a " + secretValue + " b",
		"hex":                     hex.EncodeToString([]byte("abc" + secretValue)),
		"base64":                  b64([]byte(secretValue)),
		"base64 after one byte":   b64([]byte("x" + secretValue + "yz")),
		"base64 after two bytes":  b64([]byte("xy" + secretValue + "z")),
		"base64url":               base64.URLEncoding.EncodeToString([]byte("x" + secretValue)),
		"gzip":                    gzipped("text " + secretValue),
		"gzip inside other bytes": "junk\x1f" + gzipped(secretValue) + "junk",
		"zlib, a git object":      deflated("blob 9\x00" + secretValue),
		"base64 of gzip":          "GZ=" + b64([]byte(gzipped(secretValue))),
		"gzip of base64":          gzipped(b64([]byte("x" + secretValue))),
	} {
		t.Run(name, func(t *testing.T) {
			if newNeedles(secretValue).find([]byte(text)) == "" {
				t.Errorf("not found in %q", text)
			}
		})
	}
}

func TestFindNothing(t *testing.T) {
	text := strings.Repeat("another text, "+base64.StdEncoding.EncodeToString([]byte(gzipped("nothing here")))+" ", 20)
	if at := newNeedles(secretValue).find([]byte(text)); at != "" {
		t.Errorf("found %s", at)
	}
}

func TestFindBelow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := newNeedles(secretValue)
	if err := os.WriteFile(filepath.Join(dir, "a", "b", "file"), []byte("innocent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if at, err := n.findBelow(dir); at != "" || err != nil {
		t.Fatalf("got %q, %v", at, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "b", "file"), []byte(gzipped(secretValue)), 0o600); err != nil {
		t.Fatal(err)
	}
	if at, err := n.findBelow(dir); !strings.Contains(at, "file: ") || err != nil {
		t.Fatalf("got %q, %v", at, err)
	}
}
