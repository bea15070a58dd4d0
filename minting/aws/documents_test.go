package aws_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
)

// TestDocuments: what the loader of documents lets pass makes a minter, so that
// a mistake is always told with its place in a file.
func TestDocuments(t *testing.T) {
	const role, second = "arn:aws:iam::123456789012:role/r", "arn:aws:iam::210987654321:role/s"
	endpoint := []string{"", "endpoint: https://sts.example.com:9000/x", "endpoint: https://127.0.0.1:9000"}
	identity := []string{"", "audience: a", "tokenFile: t", "rolesAnywhere: {trustAnchorARN: 'arn:%[1]s:rolesanywhere:eu-west-1:123456789012:trust-anchor/01234567-89ab-cdef-0123-456789abcdef', profileARN: 'arn:%[1]s:rolesanywhere:eu-west-1:123456789012:profile/01234567-89ab-cdef-0123-456789abcdef'}"}
	chain := []string{"", "chain: {roleARN: '%[3]s', duration: 1h, externalID: ab, tags: {a: '${human.email}', b: ''}, transitiveTags: [a], sourceIdentity: '${human.email}'}"}
	revocation := []string{"", "revocation: {kind: iamDeny, roleARN: '%[2]s'}", "revocation: {kind: iamDeny, roleARN: '%[2]s', endpoint: 'https://iam.example.com'}", "revocation: {kind: minio}"}
	variant := []string{"", "fips: true", "dualStack: true", "duration: 12h", "callsPerSecond: 1000", "timeout: 1m"}
	deps := minting.Deps{Client: func([]string, []byte) *http.Client { return &http.Client{} }}
	accepted, refused := 0, 0
	for _, partition := range []string{"aws", "aws-cn", "aws-us-gov", "aws-iso", "aws-xx", "minio"} {
		first := strings.Replace(role, ":aws:", ":"+partition+":", 1)
		last := strings.Replace(second, ":aws:", ":"+partition+":", 1)
		if partition == "minio" {
			first, last = "arn:minio:iam:::role/r", "arn:minio:iam:::role/s"
		}
		for _, fields := range combinations(endpoint, identity, chain, revocation, variant) {
			text := fmt.Sprintf("apiVersion: attache.dev/v1alpha1\nkind: CredentialProvider\nmetadata: {name: a}\nspec:\n  destinations: [{host: '**.amazonaws.com'}]\n  aws:\n    roleARN: %[2]s\n    region: eu-west-1\n"+fields+"%.[4]s", partition, first, last, "")
			b, err := api.Parse("a.yaml", []byte(text))
			if err != nil {
				refused++
				continue
			}
			accepted++
			if _, err := provider.New("a", *b.Providers[0].Spec.AWS, deps); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
	}
	if accepted < 100 || refused < 100 {
		t.Errorf("%d accepted, %d refused: the cases are lopsided", accepted, refused)
	}
}

// combinations joins one line of each list, in every way.
func combinations(lists ...[]string) []string {
	out := []string{""}
	for _, list := range lists {
		var next []string
		for _, o := range out {
			for _, l := range list {
				if l != "" {
					l = "    " + l + "\n"
				}
				next = append(next, o+l)
			}
		}
		out = next
	}
	return out
}
