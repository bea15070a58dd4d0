package api

import (
	"maps"
	"slices"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// presetNames are the values of spec.preset.
var presetNames = map[string]bool{"anthropic": true, "openai": true}

const jwtTokenType = "urn:ietf:params:oauth:token-type:jwt" // RFC 8693 section 3

// preset returns what a preset fills in, and the extra fields of its token
// request that only the user can know.
func preset(name string) (spec v1alpha1.CredentialProviderSpec, extra []string) {
	switch name {
	case "anthropic":
		return anthropic(), []string{"federation_rule_id", "organization_id", "service_account_id"}
	case "openai":
		return openai(), []string{"identity_provider_id", "service_account_id"}
	}
	return v1alpha1.CredentialProviderSpec{}, nil
}

// anthropic is Anthropic's workload identity federation: an RFC 7523 grant
// with a JSON body. Its tokens work only with the beta header.
func anthropic() v1alpha1.CredentialProviderSpec {
	const host = "api.anthropic.com"
	return v1alpha1.CredentialProviderSpec{
		Destinations: []v1alpha1.Destination{{Host: host}},
		OAuth2: &v1alpha1.OAuth2{
			TokenEndpoint:     "https://" + host + "/v1/oauth/token",
			Grant:             GrantJWTBearer,
			ClientAuth:        ClientAuthNone,
			AssertionAudience: "https://" + host,
			Body:              BodyJSON,
			Headers:           map[string]string{"anthropic-beta": "oauth-2025-04-20,oidc-federation-2026-04-01"},
		},
		Inject: v1alpha1.Injection{
			As:      InjectBearer,
			Headers: map[string]string{"anthropic-beta": "oauth-2025-04-20"},
		},
		Placeholders: []v1alpha1.Placeholder{{Env: "ANTHROPIC_API_KEY", Prefix: "sk-"}},
		BaseURLs:     []v1alpha1.BaseURL{{Env: "ANTHROPIC_BASE_URL", Host: host}},
	}
}

// openai is OpenAI's workload identity federation: an RFC 8693 exchange with
// a JSON body whose subject is the workload itself.
func openai() v1alpha1.CredentialProviderSpec {
	const host = "api.openai.com"
	return v1alpha1.CredentialProviderSpec{
		Destinations: []v1alpha1.Destination{{Host: host}},
		OAuth2: &v1alpha1.OAuth2{
			TokenEndpoint:     "https://auth.openai.com/oauth/token",
			Grant:             GrantTokenExchange,
			ClientAuth:        ClientAuthNone,
			AssertionAudience: "https://api.openai.com/v1",
			Body:              BodyJSON,
			Subject:           PartyWorkload,
			SubjectTokenType:  jwtTokenType,
			Actor:             PartyNone,
		},
		Inject:       v1alpha1.Injection{As: InjectBearer},
		Placeholders: []v1alpha1.Placeholder{{Env: "OPENAI_API_KEY", Prefix: "sk-"}},
		BaseURLs:     []v1alpha1.BaseURL{{Env: "OPENAI_BASE_URL", Host: host, Path: "/v1"}},
	}
}

// expandPreset fills what the user left out of s. Fields that the user gave
// win; maps are joined key by key.
func expandPreset(s *v1alpha1.CredentialProviderSpec) {
	p, _ := preset(s.Preset)
	if p.OAuth2 == nil {
		return
	}
	if s.BaseURLs == nil {
		s.BaseURLs = p.BaseURLs
		// A moved destination (a test, a regional host) moves its base URL.
		if i := slices.IndexFunc(s.Destinations, exactHost); i >= 0 && !covered(s.Destinations, p.BaseURLs[0].Host, 0) {
			s.BaseURLs[0].Host, s.BaseURLs[0].Port = s.Destinations[i].Host, s.Destinations[i].Port
		}
	}
	if s.Destinations == nil {
		s.Destinations = p.Destinations
	}
	if s.Placeholders == nil {
		s.Placeholders = p.Placeholders
	}
	if s.Inject.As == "" {
		s.Inject.As = p.Inject.As
	}
	s.Inject.Headers = joinMaps(p.Inject.Headers, s.Inject.Headers)
	if s.OAuth2 == nil {
		s.OAuth2 = &v1alpha1.OAuth2{}
	}
	expandOAuth2(s.OAuth2, *p.OAuth2)
}

func expandOAuth2(o *v1alpha1.OAuth2, p v1alpha1.OAuth2) {
	if o.Issuer == "" { // an issuer of the user's own is discovered instead
		fill(&o.TokenEndpoint, p.TokenEndpoint)
	}
	fill(&o.Grant, p.Grant)
	fill(&o.ClientAuth, p.ClientAuth)
	fill(&o.AssertionAudience, p.AssertionAudience)
	fill(&o.Body, p.Body)
	fill(&o.Subject, p.Subject)
	fill(&o.SubjectTokenType, p.SubjectTokenType)
	fill(&o.Actor, p.Actor)
	o.Headers = joinMaps(p.Headers, o.Headers)
}

func joinMaps(base, over map[string]string) map[string]string {
	if base == nil {
		return over
	}
	m := maps.Clone(base)
	maps.Copy(m, over)
	return m
}

func exactHost(d v1alpha1.Destination) bool { return d.Host != "" && d.Host[0] != '*' }

// fill sets a field that is still zero.
func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
