package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/attache-dev/attache/audit"
)

// fetched is what an SDK found by its own default chain.
type fetched struct {
	Source string
	ID     string
	Key    string
	Token  string
	Region string
}

// awsKeys is an agent on aws-sdk-go-v2.
func awsKeys(string, []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	c, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(fetched{c.Source, c.AccessKeyID, c.SecretAccessKey, c.SessionToken, cfg.Region})
}

const boto3Keys = `
import boto3, json
s = boto3.Session()
c = s.get_credentials()
f = c.get_frozen_credentials()
print(json.dumps(dict(Source=c.method, ID=f.access_key, Key=f.secret_key, Token=f.token or "", Region=s.region_name)))
`

const jsKeys = `
import { createRequire } from 'node:module';
const require = createRequire(process.argv[2]);
const { defaultProvider } = require('@aws-sdk/credential-provider-node');
const c = await defaultProvider({ clientConfig: { region: process.env.AWS_REGION } })();
console.log(JSON.stringify({ Source: '', ID: c.accessKeyId, Key: c.secretAccessKey, Token: c.sessionToken ?? '', Region: process.env.AWS_REGION }));
`

// boto3STS asks STS by itself for what would be a session of another role.
const boto3STS = `
import boto3, botocore.exceptions, json
sts = boto3.client("sts")
for name, call in [
    ("AssumeRole", lambda: sts.assume_role(RoleArn="arn:aws:iam::210987654321:role/other", RoleSessionName="me")),
    ("GetSessionToken", lambda: sts.get_session_token()),
]:
    c = call()["Credentials"]
    print(json.dumps(dict(Source=name, ID=c["AccessKeyId"], Key=c["SecretAccessKey"], Token=c["SessionToken"], Region="eu-west-1")))
try:
    sts.get_caller_identity()
except botocore.exceptions.ClientError as error:
    print("get-caller-identity:", error.response["ResponseMetadata"]["HTTPStatusCode"])
`

// The user's own keys, as they lie about on a laptop.
const (
	ownID  = "AKIAIOSFODNN7EXAMPLE"
	ownKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// awsWorld has a provider with these doors, and keys of the user's own in
// environment and home.
func awsWorld(t *testing.T, doors string) *world {
	t.Helper()
	w := newWorld(t)
	w.write("aws.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: aws}
spec:
  destinations: [{host: "**.amazonaws.com"}]
  aws: {roleARN: "arn:aws:iam::123456789012:role/reader", region: eu-west-1, doors: [`+doors+`]}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: s3}
spec:
  rules:
  - {name: s3, hosts: ["s3.eu-west-1.amazonaws.com"], action: allow, credential: {provider: aws}}
`)
	if err := os.Mkdir(filepath.Join(w.dir, "home", ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.file("home/.aws/credentials", "[default]\naws_access_key_id="+ownID+"\naws_secret_access_key="+ownKey+"\n[prod]\naws_access_key_id="+ownID+"\naws_secret_access_key="+ownKey+"\n")
	token := w.file("home/projected.token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyZWFsIn0.x")
	w.env = append(w.env, "AWS_ACCESS_KEY_ID="+ownID, "AWS_SECRET_ACCESS_KEY="+ownKey, "AWS_SESSION_TOKEN=real-session", "AWS_PROFILE=prod",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/real", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="+token, "AWS_WEB_IDENTITY_TOKEN_FILE="+token, "AWS_ROLE_ARN=arn:aws:iam::123456789012:role/real")
	return w
}

// stsCalls finds calls of STS: older SDKs go to the endpoint without a region.
const stsCalls = "host:sts*.amazonaws.com"

// awsSDK is one client and how it is started in a world.
type awsSDK struct {
	name  string
	start func(*testing.T, *world) []string
}

// needs skips, or fails where make test promised it, without a file.
func needs(t *testing.T, file string) string {
	t.Helper()
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
		t.Fatalf("%s is missing; test/deps.sh test installs it", file)
	}
	t.Skipf("%s is missing; test/deps.sh test installs it", file)
	return ""
}

func awsSDKs() []awsSDK {
	python := func(script string) func(*testing.T, *world) []string {
		return func(t *testing.T, w *world) []string {
			needs(t, "/usr/lib/python3/dist-packages/boto3")
			return []string{"/usr/bin/python3", w.file("work/keys.py", script)}
		}
	}
	return []awsSDK{
		{"aws-sdk-go-v2", func(t *testing.T, _ *world) []string {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			return []string{self, "agent", "aws-keys"}
		}},
		{"boto3", python(boto3Keys)},
		{"aws", func(t *testing.T, _ *world) []string {
			return []string{needs(t, "/usr/bin/aws"), "configure", "list"}
		}},
		{"aws-sdk-js", func(t *testing.T, w *world) []string {
			cache, err := filepath.Abs("../../.cache/npm")
			if err != nil {
				t.Fatal(err)
			}
			needs(t, filepath.Join(cache, "aws/node_modules/@aws-sdk/credential-provider-node"))
			bin := filepath.Dir(needs(t, filepath.Join(cache, "clients/node_modules/.bin/node"))) // new enough for proxy variables
			w.env = append(w.env, "PATH="+bin+":"+os.Getenv("PATH"))
			return []string{"node", w.file("work/keys.mjs", jsKeys), filepath.Join(cache, "aws/package.json")}
		}},
	}
}

// Real SDKs find placeholders by each door, and nothing else: not the user's
// own keys, not an instance's, not a session.
func TestAWSDoors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		door, query string
		source      map[string]string // by SDK
	}{
		{"env", "", map[string]string{"aws-sdk-go-v2": "EnvConfigCredentials", "boto3": "env", "aws": "env"}},
		{"container", "door:aws path:/v1/credentials", map[string]string{"aws-sdk-go-v2": "CredentialsEndpointProvider", "boto3": "container-role", "aws": "container-role"}},
		{"imds", "door:aws path:/latest/meta-data/iam/security-credentials/reader", map[string]string{"aws-sdk-go-v2": "EC2RoleProvider", "boto3": "iam-role", "aws": "iam-role"}},
		{"webIdentity", "host:sts*.amazonaws.com method:POST", map[string]string{"aws-sdk-go-v2": "WebIdentityCredentials", "boto3": "assume-role-with-web-identity", "aws": "assume-role-with-web-identity"}},
	}
	for _, tt := range tests {
		for _, sdk := range awsSDKs() {
			t.Run(tt.door+"/"+sdk.name, func(t *testing.T) {
				t.Parallel()
				w := awsWorld(t, tt.door)
				r := w.run(append([]string{"--"}, sdk.start(t, w)...)...).must(t)
				w.noneOfOurs(r)
				if !strings.Contains(r.stdout, tt.source[sdk.name]) {
					t.Errorf("keys come from elsewhere than %s: %s", tt.source[sdk.name], r.stdout)
				}
				if sdk.name != "aws" { // which prints the ends of its keys only
					arePlaceholders(t, r.stdout, tt.door != "env")
				}
				if tt.query == "" {
					return
				}
				recs := w.requests(strings.Fields(tt.query)...)
				if len(recs) == 0 {
					t.Fatal("no record of the door")
				}
				for _, rec := range recs {
					if rec.Decision.Verdict != "allow" || rec.Result.Outcome != audit.OutcomeOK || rec.Credential != nil || !strings.Contains(rec.Decision.Reason, "placeholder keys of provider aws") {
						t.Errorf("got %+v %+v %+v", rec.Decision, rec.Result, rec.Credential)
					}
				}
				if minted := w.events("credential.minted"); len(minted) > 0 {
					t.Errorf("minted for a placeholder: %+v", minted)
				}
			})
		}
	}
}

// noneOfOurs fails if the run told anything of the user's own keys, or kept
// silent about taking them away.
func (w *world) noneOfOurs(r result) {
	w.t.Helper()
	for _, s := range []string{ownID, ownKey, "real-session", "eyJzdWIi", ownID[len(ownID)-4:], ownKey[len(ownKey)-4:]} {
		if strings.Contains(r.all(), s) {
			w.t.Errorf("%q is in the output: %s", s, r.all())
		}
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"} {
		if !strings.Contains(r.stderr, name+" is kept from the agent") {
			w.t.Errorf("%s is not named: %s", name, r.stderr)
		}
	}
}

// arePlaceholders checks each line of keys: all values have this run's mark.
func arePlaceholders(t *testing.T, lines string, withToken bool) {
	t.Helper()
	const markDigits = 12
	n := 0
	for line := range strings.Lines(lines) {
		var f fetched
		if json.Unmarshal([]byte(line), &f) != nil {
			continue
		}
		n++
		mark, ok := strings.CutPrefix(f.ID, "AKIA")
		if !ok || len(mark) != 44 || len(f.Key) != 44 || f.Key[:markDigits] != mark[:markDigits] {
			t.Errorf("no placeholder keys: %s", line)
		}
		if withToken && (len(f.Token) != 44 || f.Token[:markDigits] != mark[:markDigits]) || !withToken && f.Token != "" {
			t.Errorf("token of %s", line)
		}
		if f.Region != "eu-west-1" {
			t.Errorf("region of %s", line)
		}
	}
	if n == 0 {
		t.Errorf("no keys in %s", lines)
	}
}

// A program that changes roles by itself gets placeholders; what hands out
// nothing is for the policy, which has no rule here.
func TestAWSDoorAnswersSTS(t *testing.T) {
	t.Parallel()
	w := awsWorld(t, "env, webIdentity")
	needs(t, "/usr/lib/python3/dist-packages/boto3")
	r := w.run("--", "/usr/bin/python3", w.file("work/sts.py", boto3STS)).must(t)
	w.noneOfOurs(r)
	arePlaceholders(t, r.stdout, true)
	if strings.Count(r.stdout, "AKIA") != 2 || !strings.Contains(r.stdout, "get-caller-identity: 403") {
		t.Errorf("got %s", r.stdout)
	}
	var reasons []string
	for _, rec := range w.requests(stsCalls) {
		op, _, _ := strings.Cut(rec.Decision.Reason, ": answered by")
		reasons = append(reasons, rec.Decision.Verdict+" "+op)
	}
	for _, want := range []string{"allow sts:AssumeRole", "allow sts:GetSessionToken"} {
		if !slices.Contains(reasons, want) {
			t.Errorf("no record says %q: %q", want, reasons)
		}
	}
	if w.one(stsCalls, "verdict:deny").Decision.Code != "denied" {
		t.Error("GetCallerIdentity was not denied by policy")
	}
}

// Without the webIdentity door, no call of STS is answered.
func TestSTSWithoutDoor(t *testing.T) {
	t.Parallel()
	w := awsWorld(t, "container")
	needs(t, "/usr/lib/python3/dist-packages/boto3")
	r := w.run("--", "/usr/bin/python3", w.file("work/sts.py", boto3STS))
	if r.code == 0 || strings.Contains(r.stdout, "AKIA") {
		t.Errorf("got %d %s", r.code, r.all())
	}
	for _, rec := range w.requests(stsCalls) {
		if rec.Decision.Verdict != "deny" {
			t.Errorf("got %+v", rec.Decision)
		}
	}
}

// The agent cannot read the user's own key files, by their usual name or by
// the variables that name others.
func TestOwnAWSFilesAreHidden(t *testing.T) {
	t.Parallel()
	w := awsWorld(t, "container")
	if err := os.Mkdir(filepath.Join(w.dir, "elsewhere"), 0o700); err != nil {
		t.Fatal(err)
	}
	other := w.file("elsewhere/credentials", "[default]\naws_secret_access_key="+ownKey+"\n")
	w.env = append(w.env, "AWS_SHARED_CREDENTIALS_FILE="+other)
	r := w.run("--", "sh", "-c", "cat ~/.aws/credentials "+other+" ~/projected.token; env | grep ^AWS_")
	w.noneOfOurs(r)
	for _, name := range []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN=", "AWS_PROFILE=", "AWS_WEB_IDENTITY_TOKEN_FILE=", "AWS_EC2_METADATA_SERVICE_ENDPOINT="} {
		if strings.Contains(r.stdout, name) {
			t.Errorf("%s is in the environment: %s", name, r.stdout)
		}
	}
	for _, name := range []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:", "AWS_CONTAINER_AUTHORIZATION_TOKEN=", "AWS_EC2_METADATA_DISABLED=true", "AWS_REGION=eu-west-1", "AWS_DEFAULT_REGION=eu-west-1"} {
		if !strings.Contains(r.stdout, name) {
			t.Errorf("%s is missing: %s", name, r.stdout)
		}
	}
}

// The port is on loopback, where every process of the machine reaches it: only
// the attested workload is answered, even with the right token.
func TestAWSDoorRefusesOtherProcesses(t *testing.T) {
	t.Parallel()
	w := awsWorld(t, "container, imds")
	p := w.startRun("--", "sh", "-c", `echo "url=$AWS_CONTAINER_CREDENTIALS_FULL_URI token=$AWS_CONTAINER_AUTHORIZATION_TOKEN"; exec sleep 60`)
	p.says("token=")
	var url, token string
	eventually(t, "the agent's first line", func() bool {
		n, _ := fmt.Sscanf(p.out.String(), "url=%s token=%s\n", &url, &token)
		return n == 2
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", token)
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden || res.Header.Get("Attache-Error") != "unattested" {
		t.Errorf("got %s %s", res.Status, res.Header.Get("Attache-Error"))
	}
	eventually(t, "its record", func() bool { return len(w.requests("door:aws", "code:unattested")) == 1 })
}
