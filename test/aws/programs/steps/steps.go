// Package steps runs the steps of a client of the AWS suite and prints one
// line of JSON for each.
package steps

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Stored says which object a step left, for the suite to look at itself.
type Stored struct {
	Key    string `json:"key,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// Of is what an object with this content will be.
func Of(key string, data []byte) Stored {
	h := sha256.Sum256(data)
	return Stored{key, hex.EncodeToString(h[:])}
}

// Do runs one step and prints what came of it.
func Do(name string, do func() (Stored, error)) {
	var line struct {
		Step string `json:"step"`
		Stored
		Error string `json:"error,omitempty"`
	}
	var err error
	line.Step = name
	if line.Stored, err = do(); err != nil {
		line.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(line)
}

// Try is Do for steps that leave nothing.
func Try(name string, do func() error) {
	Do(name, func() (Stored, error) { return Stored{}, do() })
}

// Sizes of objects that were asked for.
func Sizes() []int {
	var out []int
	for _, s := range strings.Fields(os.Getenv("SIZES")) {
		out = append(out, number(s))
	}
	return out
}

// Big is the size of the object that is sent in parts.
func Big() int { return number(os.Getenv("BIG")) }

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return n
}

// Random returns n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// Same compares what was read with what was written.
func Same(r io.Reader, want []byte) error {
	got, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %d other bytes, want %d", len(got), len(want))
	}
	return nil
}

// Fetch sends a request without any SDK, as one does with a presigned URL.
func Fetch(method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status + " " + string(b))
	}
	return b, err
}
