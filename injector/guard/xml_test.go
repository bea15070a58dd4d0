package guard_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector/guard"
)

// The answer's shape is that of the AWS STS API reference, AssumeRole.
const assumed = `<?xml version="1.0"?>
<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleResult>
    <Credentials>
      <AccessKeyId>ASIAEXAMPLE</AccessKeyId>
      <SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY</SecretAccessKey>
      <SessionToken>AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQW</SessionToken>
      <Expiration>2026-01-01T00:00:00Z</Expiration>
    </Credentials>
    <PackedPolicySize>6</PackedPolicySize>
  </AssumeRoleResult>
</AssumeRoleResponse>`

func TestSealXML(t *testing.T) {
	v := vault()
	o := guard.Options{Vault: v, Who: alice, Members: []string{"SecretAccessKey", "SessionToken"}}
	got, g := read(t, response(strings.NewReader(assumed), "Content-Type", "text/xml"), o)
	if strings.Contains(got, "wJalr") || strings.Contains(got, "AQoDY") || g.Sealed() != 2 {
		t.Fatalf("sealed %d: %s", g.Sealed(), got)
	}
	var a struct {
		Key    string `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
		Secret string `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	}
	if err := xml.Unmarshal([]byte(got), &a); err != nil || a.Key != "ASIAEXAMPLE" {
		t.Fatalf("%v, %+v", err, a)
	}
	r := get(t, "https://api.example.com/", "Authorization", "Bearer "+a.Secret)
	v.Unseal(r, alice)
	if h := r.Header.Get("Authorization"); h != "Bearer wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" {
		t.Errorf("the handle does not open again: %q", h)
	}
}

func TestSealXMLSpellings(t *testing.T) {
	for _, text := range []string{
		"<SecretString>hunter2hunter2</SecretString>",
		"<x:secretstring a='>'>hunter2hunter2</x:secretstring>",
		"<SecretString\n>hunter2hunter2</SecretString >",
		"<SecretString><![CDATA[hunter2hunter2]]></SecretString>",
		"<SecretString>hunter2<!-- -->hunter2</SecretString>",
		"<SecretString>hunter2<b/>hunter2</SecretString>",
		"<SecretString>hunter2hunter2",
		"<a><SecretString></SecretString><SecretString>hunter2hunter2</SecretString></a>",
	} {
		got, _ := read(t, response(strings.NewReader(text), "Content-Type", "application/xml"), guard.Options{Vault: vault(), Who: alice, Members: []string{"SecretString"}})
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s became %s", text, got)
		}
	}
	plain := "<Items><SecretStringCount>3</SecretStringCount><SecretString/></Items>"
	if got, g := read(t, response(strings.NewReader(plain), "Content-Type", "text/xml"), guard.Options{Vault: vault(), Who: alice, Members: []string{"SecretString"}}); got != plain || g.Sealed() != 0 {
		t.Errorf("%s became %s", plain, got)
	}
}

func TestSealMembers(t *testing.T) {
	const body = `{"Name":"db","SecretString":"{\"password\":\"hunter2 and more\"}","VersionId":"v"}`
	o := guard.Options{Vault: vault(), Who: alice, Members: []string{"SecretString"}}
	if got, g := read(t, response(strings.NewReader(body), "Content-Type", "application/x-amz-json-1.1"), o); strings.Contains(got, "hunter2") || g.Sealed() != 1 || !strings.Contains(got, `"VersionId":"v"`) {
		t.Errorf("sealed %d: %s", g.Sealed(), got)
	}
	o.Answers = v1alpha1.AnswersPass
	if got, _ := read(t, response(strings.NewReader(body), "Content-Type", "application/x-amz-json-1.1"), o); got != body {
		t.Errorf("a rule that passes answers got %s", got)
	}
}

// What cannot be read must not pass.
func TestSealMembersRefuses(t *testing.T) {
	for kind, body := range map[string]string{
		"application/cbor":           "\xa1lSecretString",
		"":                           "x",
		"application/x-amz-json-1.1": `{"a":"` + strings.Repeat("x", 2<<20) + `","SecretString":"hunter2hunter2"}`,
		"text/xml":                   "<a>" + strings.Repeat("x", 2<<20) + "</a>",
	} {
		resp := response(strings.NewReader(body))
		if kind != "" {
			resp.Header.Set("Content-Type", kind)
		}
		if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice, Members: []string{"SecretString"}}); !errors.Is(err, guard.ErrUndecodable) {
			t.Errorf("%s: %v, want ErrUndecodable", kind, err)
		}
	}
}

// xmlSecrets is the text that encoding/xml finds in SecretAccessKey elements
// of a well-formed document.
func xmlSecrets(text string) []string {
	var found []string
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			return nil
		}
		if e, ok := tok.(xml.StartElement); ok && strings.EqualFold(e.Name.Local, "SecretAccessKey") {
			var s string
			if err := d.DecodeElement(&s, &e); err != nil {
				return nil
			}
			if strings.TrimSpace(s) != "" {
				found = append(found, s)
			}
		}
	}
}

// FuzzSealXML: what encoding/xml reads as the element's text is not in the
// sealed answer.
func FuzzSealXML(f *testing.F) {
	f.Add(assumed)
	f.Add("<a><SecretAccessKey>0123456789abcdef</SecretAccessKey></a>")
	f.Add("<a><SecretAccessKey><![CDATA[0123456789abcdef]]></SecretAccessKey></a>")
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" || len(text) > 4096 {
			t.Skip()
		}
		want := xmlSecrets(text)
		resp := response(strings.NewReader(text), "Content-Type", "text/xml")
		resp.ContentLength = int64(len(text))
		g, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice, Members: []string{"SecretAccessKey"}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		got := string(b)
		if g.Sealed() == 0 && got != text {
			t.Fatalf("nothing sealed, yet %q became %q", text, got)
		}
		for _, s := range xmlSecrets(got) {
			if !handleRE.MatchString(s) {
				t.Fatalf("%q still holds %q (before: %q)", got, s, want)
			}
		}
	})
}
