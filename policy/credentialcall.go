package policy

import (
	"net/http"
	"slices"
	"strings"
)

// credentialCall is one kind of call whose purpose is to hand out credentials.
// A rule must name such a call with credentialCall: true, or the agent could
// have made for itself what it must never hold. Every given field must match.
// The table errs on the side of refusing: an operator can allow a call by name,
// but nobody can take back a credential.
//
// What it cannot see: an action that stands only in a request body. Where a
// host does little else (AWS STS), every POST counts.
type credentialCall struct {
	what    string
	host    string   // exact, "*.x" or "**.x" with "*" for one label inside; empty: any
	methods []string // empty: any
	// last lists possible last segments; path a suffix of segments before
	// it, in which "*" is one segment. Compared without case.
	path   []string
	last   []string
	suffix string   // of the last segment, such as ":generateAccessToken"
	action []string // prefixes of the query parameter Action, or of X-Amz-Target after its dot
	prefix bool     // path stands at the start instead of before last
}

// credentialCallTable lists the calls, the well-known ones of identity
// providers first. docs/policy.md shows it.
func credentialCallTable() []credentialCall {
	post := []string{http.MethodPost, http.MethodPut}
	return []credentialCall{
		// OAuth 2.0 and OpenID Connect: RFC 6749 section 3.2 and its many paths.
		{what: "an OAuth token endpoint", methods: post, last: []string{"token", "access_token", "oauth-token", "mint-token", "token-exchange"}},
		{what: "an OAuth token endpoint", methods: post, path: []string{"oauth2"}, last: []string{"token", "tokens"}},
		{what: "dynamic client registration, RFC 7591", methods: post, path: []string{"oauth2"}, last: []string{"register"}},
		{what: "a registry token", methods: []string{http.MethodGet}, host: "auth.docker.io", last: []string{"token"}},
		{what: "a registry token", methods: []string{http.MethodGet}, host: "ghcr.io", last: []string{"token"}},
		{what: "Slack OAuth", host: "slack.com", path: []string{"api"}, last: []string{"oauth.access", "oauth.v2.access", "oauth.v2.exchange", "openid.connect.token"}},
		// AWS: the action stands in the body of a POST, which policy does not see.
		{what: "AWS STS", host: "sts.amazonaws.com", methods: post},
		{what: "AWS STS", host: "sts.*.amazonaws.com", methods: post},
		{what: "AWS STS", host: "sts.*.amazonaws.com.cn", methods: post},
		{what: "AWS credentials", host: "**.amazonaws.com", action: []string{"AssumeRole", "GetSessionToken", "GetFederationToken", "CreateAccessKey",
			"CreateLoginProfile", "CreateServiceSpecificCredential", "GetSecretValue", "BatchGetSecretValue", "GetCredentialsForIdentity",
			"GetOpenIdToken", "InitiateAuth", "GetAuthorizationToken"}},
		{what: "AWS credentials", host: "**.amazonaws.com.cn", action: []string{"AssumeRole", "GetSessionToken", "GetFederationToken", "CreateAccessKey",
			"GetSecretValue", "BatchGetSecretValue"}},
		{what: "AWS SSO credentials", host: "**.amazonaws.com", path: []string{"federation"}, last: []string{"credentials"}},
		// Google Cloud.
		{what: "a Google service account's token", host: "iamcredentials.googleapis.com", suffix: ":generateaccesstoken"},
		{what: "a Google service account's token", host: "iamcredentials.googleapis.com", suffix: ":generateidtoken"},
		{what: "a Google service account's signature", host: "iamcredentials.googleapis.com", suffix: ":signjwt"},
		{what: "a Google service account's signature", host: "iamcredentials.googleapis.com", suffix: ":signblob"},
		{what: "a Google service account's key", host: "iam.googleapis.com", methods: post, path: []string{"serviceaccounts", "*"}, last: []string{"keys"}},
		{what: "a Google secret", host: "secretmanager.googleapis.com", suffix: ":access"},
		// Microsoft.
		{what: "Azure account keys", host: "management.azure.com", methods: post, last: []string{"listkeys", "listaccountsas", "listservicesas",
			"listsecrets", "listcredentials", "listclusteradmincredential", "listclusterusercredential", "regeneratekey"}},
		{what: "an Azure secret", host: "*.vault.azure.net", path: []string{"secrets"}, prefix: true},
		{what: "an Entra client secret", host: "graph.microsoft.com", methods: post, last: []string{"addpassword", "addkey"}},
		// Vault and OpenBao.
		{what: "a Vault login", path: []string{"v1", "auth", "*", "login"}, prefix: true},
		{what: "a Vault token", methods: post, path: []string{"v1", "auth", "token", "create"}, prefix: true},
		{what: "a Vault dynamic secret", path: []string{"v1", "*", "creds"}, prefix: true},
		{what: "a Vault AppRole secret id", methods: post, path: []string{"role", "*"}, last: []string{"secret-id"}},
		// Code forges and package registries.
		{what: "an access token of a code forge", methods: post, last: []string{"access_tokens", "personal_access_tokens", "impersonation_tokens", "deploy_tokens"}},
		{what: "an SSH or GPG key of an account", methods: post, path: []string{"user"}, last: []string{"keys", "gpg_keys", "ssh_signing_keys"}},
		{what: "a deploy key", methods: post, path: []string{"repos", "*", "*"}, last: []string{"keys"}},
		{what: "a deploy key", methods: post, path: []string{"projects", "*"}, last: []string{"deploy_keys"}},
		{what: "a runner token", methods: post, path: []string{"runners"}, last: []string{"registration-token", "remove-token", "generate-jitconfig"}},
		{what: "a GitHub App manifest conversion", methods: post, path: []string{"app-manifests", "*"}, last: []string{"conversions"}},
		{what: "a GitHub Actions OIDC token", host: "**.actions.githubusercontent.com"},
		{what: "an npm token", methods: post, path: []string{"-", "npm", "v1"}, last: []string{"tokens"}},
		{what: "an npm login", methods: post, path: []string{"-", "user"}, prefix: true},
		// Model vendors.
		{what: "an API key", methods: post, last: []string{"api_keys", "admin_api_keys", "apikeys", "api-keys"}},
		{what: "an ephemeral API key", methods: post, path: []string{"realtime"}, last: []string{"client_secrets", "sessions"}},
	}
}

// credentialCallIndex finds calls by their last segment.
type credentialCallIndex struct {
	byLast map[string][]credentialCall
	rest   []credentialCall
}

func newCredentialCallIndex() credentialCallIndex {
	x := credentialCallIndex{byLast: map[string][]credentialCall{}}
	for _, c := range credentialCallTable() {
		for _, l := range c.last {
			x.byLast[l] = append(x.byLast[l], c)
		}
		if len(c.last) == 0 {
			x.rest = append(x.rest, c)
		}
	}
	return x
}

// match says what a call hands out, or "" if it is none of the table.
func (x *credentialCallIndex) match(r *Request, path string) string {
	// Origins ignore the slash at the end, case, or parameters after ";" often
	// enough, so none of them hides a call.
	path = strings.TrimRight(path, "/")
	if i := strings.IndexByte(path[strings.LastIndexByte(path, '/')+1:], ';'); i >= 0 {
		path = path[:strings.LastIndexByte(path, '/')+1+i]
	}
	head, last := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		head, last = path[:i], path[i+1:]
	}
	last = strings.ToLower(last) // does not allocate for lower case
	for i := range x.byLast[last] {
		if c := &x.byLast[last][i]; c.fits(r, last, head) {
			return c.what
		}
	}
	for i := range x.rest {
		if c := &x.rest[i]; c.fits(r, last, path) {
			return c.what
		}
	}
	return ""
}

// fits compares everything but the list of last segments.
func (c *credentialCall) fits(r *Request, last, path string) bool {
	return (len(c.methods) == 0 || slices.Contains(c.methods, r.Method)) &&
		strings.HasSuffix(last, c.suffix) &&
		hostFits(c.host, r.Host) &&
		(len(c.path) == 0 || c.pathFits(path)) &&
		(len(c.action) == 0 || c.actionFits(r))
}

func hostFits(pattern, host string) bool {
	if pattern == "" || pattern == host {
		return true
	}
	if rest, ok := strings.CutPrefix(pattern, "**"); ok {
		return strings.HasSuffix(host, rest) && len(host) > len(rest)
	}
	before, after, ok := strings.Cut(pattern, "*")
	return ok && len(host) > len(before)+len(after) && strings.HasPrefix(host, before) && strings.HasSuffix(host, after) &&
		!strings.Contains(host[len(before):len(host)-len(after)], ".")
}

// pathFits compares c.path with the start or the end of a path.
func (c *credentialCall) pathFits(path string) bool {
	rest := strings.TrimPrefix(path, "/")
	for i := range c.path {
		if rest == "" {
			return false
		}
		want, part := c.path[i], ""
		if c.prefix {
			part, rest, _ = strings.Cut(rest, "/")
		} else {
			want = c.path[len(c.path)-1-i]
			cut := strings.LastIndexByte(rest, '/')
			part, rest = rest[cut+1:], rest[:max(cut, 0)]
		}
		if want != "*" && !strings.EqualFold(part, want) {
			return false
		}
	}
	return true
}

func (c *credentialCall) actionFits(r *Request) bool {
	for _, v := range r.Query["Action"] {
		if c.hasAction(v) {
			return true
		}
	}
	for _, v := range r.Header["X-Amz-Target"] {
		if c.hasAction(v[strings.LastIndexByte(v, '.')+1:]) {
			return true
		}
	}
	return false
}

func (c *credentialCall) hasAction(v string) bool {
	return slices.ContainsFunc(c.action, func(a string) bool { return strings.HasPrefix(v, a) })
}
