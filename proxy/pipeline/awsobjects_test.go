package pipeline_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// TestAWSObjects: what no rule lets the agent read or delete by a call of its
// own, it does not get by a copy or a batch deletion, whose paths do not name it.
func TestAWSObjects(t *testing.T) {
	const (
		media = "https://media.s3.eu-west-1.amazonaws.com/"
		point = "https://ap-111122223333.s3-accesspoint.eu-west-1.amazonaws.com/"
		batch = `<Delete><Object><Key>open</Key></Object><Object><Key>KEY</Key></Object></Delete>`
	)
	for _, tt := range []struct {
		name, method, url string
		source, key       string
		allowed           bool
	}{
		{"copy", "PUT", media + "k", "media/open/k", "", true},
		{"copy of what is denied", "PUT", media + "k", "media/secret/k", "", false},
		{"copy of what is denied, encoded", "PUT", media + "k", "/media/%73ecret%2Fk", "", false},
		{"copy of what is denied, dot segments", "PUT", media + "k", "media/open/../secret/k", "", false},
		{"part of what is denied", "PUT", media + "k?partNumber=1&uploadId=u", "media/secret/k", "", false},
		{"copy of what must not change", "PUT", media + "k", "media/kept/k", "", true},
		{"copy from another bucket", "PUT", media + "k", "prefix/k", "", true},
		{"copy from a denied bucket", "PUT", media + "k", "denied/k", "", false},
		{"copy from a denied bucket through an access point", "PUT", point + "k", "denied/k", "", false},
		{"copy through an access point", "PUT", point + "k", "media/k", "", true},
		{"copy by path", "PUT", "https://s3.eu-west-1.amazonaws.com/media/k", "media/open", "", true},
		{"copy by path of what is denied there", "PUT", "https://s3.eu-west-1.amazonaws.com/media/k", "vault/k", "", false},
		{"batch", "POST", media + "?delete", "", "k", true},
		{"batch with what is denied", "POST", media + "?delete", "", "secret/k", false},
		{"batch with what must not change", "POST", media + "?delete", "", "kept/k", false},
		{"batch through an access point", "POST", point + "?delete", "", "k", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWSRig(t, nil)
			r := a.signed(tt.method, tt.url, "s3", "eu-west-1", strings.ReplaceAll(batch, "KEY", tt.key))
			if tt.source != "" {
				r = a.signed(tt.method, tt.url, "s3", "eu-west-1", "", "X-Amz-Copy-Source", tt.source)
			}
			got := a.send(r)
			if !tt.allowed {
				a.refusedS3(got, http.StatusForbidden, pipeline.CodeDenied, "AccessDenied", audit.OutcomeDenied)
			} else if n, _ := a.verified(); n != 1 || got.StatusCode != http.StatusOK {
				t.Errorf("%d calls arrived; %d %s", n, got.StatusCode, got.body)
			}
		})
	}
}
