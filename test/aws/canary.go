package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
)

// forms are the ways in which a planted text hides.
func forms(s string) map[string][]byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte("text around " + s + " and behind it")) // a buffer takes everything
	_ = w.Close()
	return map[string][]byte{"raw": []byte("x " + s + " x"), "base64": []byte(base64Of([]byte("x" + s + " "))), "gzip": b.Bytes()}
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
