package all_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
)

func TestNew(t *testing.T) {
	deps := minting.Deps{Client: func([]string, []byte) *http.Client { return &http.Client{} }}
	o, k, j := &v1alpha1.OAuth2{Issuer: "https://as.example"}, &v1alpha1.APIKey{File: "/f"}, &v1alpha1.JWT{}
	a := &v1alpha1.AWS{RoleARN: "arn:aws:iam::123456789012:role/r", Region: "eu-west-1"}
	tests := []struct {
		spec v1alpha1.CredentialProviderSpec
		want string
	}{
		{v1alpha1.CredentialProviderSpec{OAuth2: o}, "*oauth2.Minter"},
		{v1alpha1.CredentialProviderSpec{APIKey: k}, "*apikey.Minter"},
		{v1alpha1.CredentialProviderSpec{JWT: j}, "*jwtsvid.Minter"},
		{v1alpha1.CredentialProviderSpec{AWS: a}, "*aws.Minter"},
		{v1alpha1.CredentialProviderSpec{}, ""},
		{v1alpha1.CredentialProviderSpec{AWS: a, JWT: j}, ""},
		{v1alpha1.CredentialProviderSpec{AWS: &v1alpha1.AWS{}}, ""},
		{v1alpha1.CredentialProviderSpec{OAuth2: o, JWT: j}, ""},
		{v1alpha1.CredentialProviderSpec{OAuth2: &v1alpha1.OAuth2{}}, ""},
		{v1alpha1.CredentialProviderSpec{APIKey: &v1alpha1.APIKey{}}, ""},
	}
	for _, tc := range tests {
		p := v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Name: "p"}, Spec: tc.spec}
		m, err := all.New(p, deps)
		if tc.want == "" {
			if err == nil || m != nil {
				t.Errorf("%+v gave %T, %v", tc.spec, m, err)
			}
			continue
		}
		if got := fmt.Sprintf("%T", m); err != nil || got != tc.want {
			t.Errorf("New = %s, %v; want %s", got, err, tc.want)
		}
		if _, err := all.Guarded(p, deps, new(minting.Guard)); err != nil {
			t.Errorf("Guarded: %v", err)
		}
	}
}
