package names

import (
	"encoding/json"
	"strings"
	"testing"
)

const likely = "0123456789abcdef"

// credentials are all names that [Member] knows.
var credentials = []string{
	"access_token", "refreshToken", "id-token", "client.secret", "API_KEY", "secretkey", "secretAccessKey",
	"SessionToken", "private_key", "authToken", "bearer_token", "user_token", "device_token",
	"registration_access_token", "service_token", "client_token", "accessKeySecret",
	"token", "secret", "jwt", "password", "passphrase", "sessionKey", "accessKey", "shared_secret",
}

// TestMayBeMember: the short way never says no where Member says yes, however
// the name is written.
func TestMayBeMember(t *testing.T) {
	for _, name := range credentials {
		for i := range len(name) + 1 {
			for _, s := range []string{name[:i] + "_" + name[i:], name[:i] + "-." + name[i:], strings.ToUpper(name[:i]) + name[i:]} {
				if !Member(s, likely) {
					t.Errorf("%q is no credential any more", s)
				}
				if !MayBeMember([]byte(s)) {
					t.Errorf("%q passes", s)
				}
			}
			if i < len(name) {
				const hex = "0123456789abcdef"
				escaped := name[:i] + `\u00` + string(hex[name[i]>>4]) + string(hex[name[i]&15]) + name[i+1:]
				var plain string
				if err := json.Unmarshal([]byte(`"`+escaped+`"`), &plain); err != nil || plain != name {
					t.Fatal(escaped, plain, err)
				}
				if !MayBeMember([]byte(escaped)) {
					t.Errorf("%q passes", escaped)
				}
			}
		}
	}
	for _, name := range []string{"", "n", "data", "id", "created_at", "object", "model", "usage"} {
		if MayBeMember([]byte(name)) {
			t.Errorf("%q takes the long way", name)
		}
	}
}

func FuzzMayBeMember(f *testing.F) {
	f.Add("access_token", likely)
	f.Fuzz(func(t *testing.T, name, value string) {
		if Member(name, value) && !MayBeMember([]byte(name)) {
			t.Errorf("%q passes", name)
		}
	})
}
