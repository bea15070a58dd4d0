package trust

import (
	"regexp"
	"slices"
	"strings"
)

// suspicious says why a variable is a credential or a way to one; "" if it
// looks like neither. Names are compared without case.
func suspicious(name, value string, strip []string) string {
	upper := strings.ToUpper(name)
	switch {
	case slices.Contains(strip, name):
		return "holds a key that Attaché reads"
	case strings.HasPrefix(upper, "ATTACHE_"):
		return "configures Attaché"
	case harmless[upper]:
	case exact[upper]:
		return "is a known credential variable"
	case hasAnyPrefix(upper, prefixes):
		return "belongs to a family of credential variables"
	case value != "" && (words[upper] || hasAnySuffix(upper, suffixes)):
		return "is named like a credential"
	case plain[upper]: // a folder may be called anything
		return ""
	}
	for _, s := range shapes {
		if s.re.MatchString(value) {
			return "holds " + s.what
		}
	}
	return ""
}

func hasAnyPrefix(s string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return strings.HasPrefix(s, p) })
}

func hasAnySuffix(s string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return strings.HasSuffix(s, p) })
}

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// harmless are members of the families below that configure without granting
// anything. Their values are looked at all the same.
var harmless = set(
	"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_DEFAULT_OUTPUT", "AWS_PAGER", "AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS",
	"AWS_CA_BUNDLE", "AWS_EC2_METADATA_DISABLED", "AWS_EXECUTION_ENV", "AWS_SDK_LOAD_CONFIG",
	"AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_STS_REGIONAL_ENDPOINTS", "AWS_DEFAULTS_MODE", "AWS_SDK_UA_APP_ID",
	"AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_DISABLE_REQUEST_COMPRESSION", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
	"AWS_METADATA_SERVICE_TIMEOUT", "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
	// Where calls go is for policy to judge.
	"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_SNS",
	"AWS_ENDPOINT_URL_LAMBDA", "AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
	"AZURE_LOCATION", "AZURE_CORE_OUTPUT", "AZURE_CORE_NO_COLOR",
	"DOCKER_BUILDKIT", "DOCKER_CLI_HINTS", "DOCKER_DEFAULT_PLATFORM", "DOCKER_CONTENT_TRUST",
	"VAULT_FORMAT", "VAULT_SKIP_VERIFY",
)

// plain are variables of paths and names, without which nothing runs: their
// values are not looked at.
var plain = set(
	"PATH", "HOME", "PWD", "OLDPWD", "SHELL", "TERM", "LANG", "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "_",
	"MANPATH", "LD_LIBRARY_PATH", "PYTHONPATH", "GOPATH", "GOROOT", "NODE_PATH", "VIRTUAL_ENV", "JAVA_HOME",
)

// exact are variables that hold a credential, or name a file or socket that
// gives one.
var exact = set(
	"OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_FILE",
	"GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_GHA_CREDS_PATH",
	"CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", "CLOUDSDK_CONFIG", "BOTO_CONFIG",
	"GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN", "GH_CONFIG_DIR", "GITLAB_TOKEN", "CI_JOB_TOKEN",
	"NPM_TOKEN", "NODE_AUTH_TOKEN", "NPM_CONFIG_USERCONFIG", "TWINE_PASSWORD", "CARGO_REGISTRY_TOKEN", "PYPI_TOKEN",
	"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SENTRY_DSN",
	"DATABASE_URL", "PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE", "PGSSLKEY", "MYSQL_PWD", "REDIS_URL", "REDISCLI_AUTH", "MONGODB_URI", "AMQP_URL",
	"KUBECONFIG", "KUBE_TOKEN", "NETRC", "CURL_HOME",
	"SPIFFE_ENDPOINT_SOCKET", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_ASKPASS", "SUDO_ASKPASS", "GPG_AGENT_INFO", "GNUPGHOME",
	"GIT_ASKPASS", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_CREDENTIAL_HELPER", "VSCODE_GIT_IPC_HANDLE", "VSCODE_GIT_ASKPASS_MAIN",
	"DBUS_SESSION_BUS_ADDRESS", "GNOME_KEYRING_CONTROL", "KRB5CCNAME", "KRB5_CLIENT_KTNAME", "KRB5_KTNAME",
	"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "SYSTEM_ACCESSTOKEN",
	"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "ARM_CLIENT_SECRET", "OP_SESSION", "BW_SESSION",
)

var prefixes = []string{
	"AWS_", "AZURE_", "DOCKER_", "VAULT_", "BAO_", "ARM_", "OP_SERVICE_ACCOUNT", "OP_SESSION_", "BW_",
	"GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "DIGITALOCEAN_", "TF_TOKEN_", "TF_VAR_SECRET",
}

var words = set("TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "API_KEY", "APIKEY", "ACCESS_KEY", "CREDENTIALS", "AUTHORIZATION")

var suffixes = []string{
	"_TOKEN", "_TOKENS", "_SECRET", "_SECRETS", "_PASSWORD", "_PASSWD", "_PASSPHRASE", "_PASS", "_PWD_SECRET",
	"_API_KEY", "_APIKEY", "_SECRET_KEY", "_ACCESS_KEY", "_ACCESS_KEY_ID", "_PRIVATE_KEY", "_SIGNING_KEY", "_ENCRYPTION_KEY",
	"_CREDENTIAL", "_CREDENTIALS", "_AUTHTOKEN", "_AUTH", "_PAT", "_JWT", "_COOKIE", "_CONNECTION_STRING", "_CONNSTR",
	"_TOKEN_FILE", "_CREDENTIALS_FILE", "_PASSWORD_FILE", "_SECRET_FILE", "_KEY_FILE", "_WEBHOOK", "_WEBHOOK_URL",
}

type shape struct {
	what string
	re   *regexp.Regexp
}

// shapes recognise credentials by their value. GitHub's tokens have no fixed
// length (they may hold a JWT).
var shapes = []shape{
	{"an API key (sk-…)", regexp.MustCompile(`\b(sk|rk|pk)[-_](ant-|proj-|live_|test_|or-)?[A-Za-z0-9_-]{16,}`)},
	{"a GitHub token", regexp.MustCompile(`\bgh[opsur]_[A-Za-z0-9_.-]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}`)},
	{"a GitLab token", regexp.MustCompile(`\bgl(pat|ptt|rt|cbt|dt|oas)-[A-Za-z0-9_-]{16,}`)},
	{"an AWS key", regexp.MustCompile(`\b(AKIA|ASIA)[A-Z0-9]{16}\b`)},
	{"a Slack token", regexp.MustCompile(`\bx(ox[abeoprs]|app)-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/`)},
	{"a Google credential", regexp.MustCompile(`\bAIza[A-Za-z0-9_-]{35}|\bya29\.[A-Za-z0-9_-]{16,}`)},
	{"a Vault token", regexp.MustCompile(`\bhv[sbr]\.[A-Za-z0-9_-]{16,}`)},
	{"a package registry token", regexp.MustCompile(`\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{16,}|\bdckr_pat_[A-Za-z0-9_-]{16,}`)},
	{"an access token", regexp.MustCompile(`\bhf_[A-Za-z0-9]{24,}|\bdop_v1_[a-f0-9]{32,}|\bSG\.[A-Za-z0-9_-]{16,}\.`)},
	{"a JWT", regexp.MustCompile(`\bey[A-Za-z0-9_-]{10,}\.ey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*`)},
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|AGE-SECRET-KEY-1`)},
	{"a URL with a password", regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@?#]*:[^/\s@?#]+@`)},
	{"a connection string with a key", regexp.MustCompile(`(?i)\b(AccountKey|SharedAccessKey|SharedAccessSignature|password|pwd)=[^;\s]{4,}`)},
	{"an authorization header", regexp.MustCompile(`(?i)\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{16,}`)},
}

// superseded are variables of the parent that would compete with the ones
// that [Env] sets: another spelling of them, or another proxy.
func superseded(name string) bool {
	upper := strings.ToUpper(name)
	switch upper {
	case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "FTP_PROXY", "WS_PROXY", "WSS_PROXY", "GRPC_PROXY", "NO_GRPC_PROXY",
		"NPM_CONFIG_PROXY", "NPM_CONFIG_HTTPS_PROXY", "NPM_CONFIG_HTTP_PROXY", "NPM_CONFIG_NOPROXY", "NPM_CONFIG_CAFILE", "NPM_CONFIG_CA",
		"CARGO_HTTP_PROXY", "PIP_PROXY", "PIP_CERT", "GIT_PROXY_COMMAND", "GIT_SSL_CAPATH", "CGI_HTTP_PROXY":
		return true
	}
	return false
}
