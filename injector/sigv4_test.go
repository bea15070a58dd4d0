package injector_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
)

func awsProvider() *v1alpha1.CredentialProvider {
	p := provider(v1alpha1.Injection{})
	p.Spec.AWS = &v1alpha1.AWS{}
	p.Spec.Placeholders = []v1alpha1.Placeholder{{Env: "AWS_ACCESS_KEY_ID", Prefix: "AKIA"}, {Env: "AWS_SECRET_ACCESS_KEY"}}
	return p
}

func TestSigV4(t *testing.T) {
	in := newInjector(t, awsProvider(), nil)
	c := minting.Credential{Provider: "p", Kind: minting.KindAWS, AccessKeyID: "ASIA", Secret: secret.New("key"), SessionToken: secret.New("session")}
	if s := in.Secrets(c); len(s) != 2 || s[0].Reveal() != "key" || s[1].Reveal() != "session" {
		t.Errorf("%d secrets", len(s))
	}
	headers, params := in.Places()
	if !slices.Contains(headers, "X-Amz-Security-Token") || !slices.Contains(params, "X-Amz-Signature") {
		t.Errorf("places %v %v", headers, params)
	}
	if err := in.Apply(request(t, "https://h/"), c); !errors.Is(err, injector.ErrUnusable) {
		t.Errorf("Apply: %v", err)
	}
	if err := in.Ambient(request(t, "https://h/", "Origin", "https://evil"), policy.Decision{}, nil); !errors.Is(err, injector.ErrCrossSite) {
		t.Errorf("a cross-site request: %v", err)
	}
	fixed := awsProvider()
	fixed.Spec.Inject.Headers = map[string]string{"X-A": "b"}
	if _, err := injector.New(fixed, nil); err == nil {
		t.Error("inject.headers on signed requests")
	}
}

func TestOwnKey(t *testing.T) {
	specs := []placeholder.Spec{
		{Env: "AWS_ACCESS_KEY_ID", Prefix: "AKIA", Provider: "p"}, {Env: "AWS_SECRET_ACCESS_KEY", Provider: "p"}, {Env: "OTHER", Prefix: "AKIA", Provider: "q"},
	}
	mine, err := placeholder.New(specs)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := placeholder.New(specs)
	if err != nil {
		t.Fatal(err)
	}
	in := newInjector(t, awsProvider(), nil)
	for _, tt := range []struct {
		name, id string
		p        injector.Placeholders
		want     error
	}{
		{"own", mine.Value("AWS_ACCESS_KEY_ID"), mine, nil},
		{"real key", "AKIAIOSFODNN7EXAMPLE", mine, injector.ErrNoPlaceholder},
		{"secret key", mine.Value("AWS_SECRET_ACCESS_KEY"), mine, injector.ErrNoPlaceholder},
		{"another provider's", mine.Value("OTHER"), mine, injector.ErrNoPlaceholder},
		{"another run's", elsewhere.Value("AWS_ACCESS_KEY_ID"), mine, injector.ErrNoPlaceholder},
		{"no placeholders", mine.Value("AWS_ACCESS_KEY_ID"), nil, injector.ErrNoPlaceholder},
	} {
		if err := in.OwnKey(tt.id, tt.p); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	free := awsProvider()
	no := false
	free.Spec.Inject.RequirePlaceholder = &no
	if err := newInjector(t, free, nil).OwnKey("AKIAIOSFODNN7EXAMPLE", nil); err != nil {
		t.Errorf("not required: %v", err)
	}
}
