package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/attache-dev/attache/internal/secret"
)

const text = "the-secret-itself"

// holder keeps a secret where fmt does not call its methods.
type holder struct {
	Name   string
	hidden secret.Value
}

func TestNoVerbPrintsASecret(t *testing.T) {
	v, _ := secret.NewRevocable(text)
	for name, value := range map[string]any{
		"value": v, "plain": secret.New(text), "pointer": &v, "struct": holder{"n", v}, "pointer to struct": &holder{"n", v},
		"slice": []secret.Value{v}, "map": map[string]secret.Value{"k": v}, "key": map[string]any{"k": holder{"n", v}},
		"error": fmt.Errorf("with %v: %w", v, errors.New("cause")),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%08v", "%!", "%c"} {
			if got := fmt.Sprintf(verb, value); strings.Contains(got, text) || strings.Contains(got, fmt.Sprintf("%x", text)) {
				t.Errorf("%s of %s: %s", verb, name, got)
			}
		}
		j, err := json.Marshal(value)
		if err != nil || bytes.Contains(j, []byte(text)) {
			t.Errorf("JSON of %s: %s %v", name, j, err)
		}
		var b bytes.Buffer
		slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "k", value)
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "k", value)
		if strings.Contains(b.String(), text) {
			t.Errorf("slog of %s: %s", name, b.String())
		}
	}
	if fmt.Sprint(v) != "[secret]" || v.Reveal() != text {
		t.Errorf("got %v", v)
	}
}

func TestValues(t *testing.T) {
	v, drop := secret.NewRevocable(text)
	twin := v
	if !v.Equal(secret.New(text)) || v.Equal(secret.New("other")) || v.IsZero() || v.Fingerprint() == "" || strings.Contains(text, v.Fingerprint()) {
		t.Error("a value is not what it holds")
	}
	drop()
	if twin.Reveal() != "" || !twin.IsZero() || twin.Fingerprint() != "" {
		t.Error("a dropped value still holds its text")
	}
	var zero secret.Value
	empty, none := secret.NewRevocable("")
	none()
	if !zero.IsZero() || !empty.IsZero() || !secret.New("").IsZero() {
		t.Error("nothing is not nothing")
	}
}
