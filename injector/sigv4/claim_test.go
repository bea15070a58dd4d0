package sigv4_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/injector/sigv4"
)

var (
	hexSig   = strings.Repeat("0a", 32)
	v4Auth   = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + hexSig
	v4aAuth  = "AWS4-ECDSA-P256-SHA256 Credential=AKIDEXAMPLE/20150830/s3/aws4_request, SignedHeaders=host;x-amz-date;x-amz-region-set, Signature=" + hexSig
	v4Query  = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=" + hexSig
	v4aQuery = "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fs3%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=3600&X-Amz-Region-Set=us-east-1%2Ceu-*&X-Amz-SignedHeaders=host&X-Amz-Signature=" + hexSig
)

func claimRequest(query string, header ...string) *http.Request {
	r := &http.Request{Method: http.MethodGet, Host: "h", URL: &url.URL{Path: "/b/k", RawQuery: query}, Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	return r
}

func TestParse(t *testing.T) {
	date := []string{"X-Amz-Date", "20150830T123600Z"}
	signed := func(more ...string) []string {
		return append(append([]string{"Authorization", v4Auth}, date...), more...)
	}
	for _, tt := range []struct {
		name, query string
		header      []string
		want        sigv4.Claim
		token       string
	}{
		{name: "header", header: signed("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "X-Amz-Security-Token", "tok"), token: "tok",
			want: sigv4.Claim{Place: sigv4.InHeader, Algorithm: sigv4.V4, Region: "us-east-1", SignedHeaders: []string{"host", "x-amz-date"}, Payload: sigv4.PayloadUnsigned}},
		{name: "no spaces, date in Date", header: []string{"Authorization", strings.ReplaceAll(v4Auth, ", ", ","), "Date", "Sun, 30 Aug 2015 12:36:00 GMT"},
			want: sigv4.Claim{Place: sigv4.InHeader, Algorithm: sigv4.V4, Region: "us-east-1", SignedHeaders: []string{"host", "x-amz-date"}}},
		{name: "express session", header: signed("X-Amz-S3session-Token", "s"), token: "s",
			want: sigv4.Claim{Place: sigv4.InHeader, Algorithm: sigv4.V4, Region: "us-east-1", SignedHeaders: []string{"host", "x-amz-date"}, S3Session: true}},
		{name: "v4a header", header: append([]string{"Authorization", v4aAuth, "X-Amz-Region-Set", "*"}, date...),
			want: sigv4.Claim{Place: sigv4.InHeader, Algorithm: sigv4.V4A, RegionSet: []string{"*"}, SignedHeaders: []string{"host", "x-amz-date", "x-amz-region-set"}}},
		{name: "query", query: "a=1&" + v4Query + "&X-Amz-Security-Token=t%2F", token: "t/",
			want: sigv4.Claim{Place: sigv4.InQuery, Algorithm: sigv4.V4, Region: "us-east-1", SignedHeaders: []string{"host"}, Expires: time.Hour}},
		{name: "query in lower case, escaped", query: strings.ReplaceAll(strings.ToLower(v4Query[:1])+v4Query[1:], "X-Amz-Signature", "x%2Damz-signature"),
			want: sigv4.Claim{Place: sigv4.InQuery, Algorithm: sigv4.V4, Region: "us-east-1", SignedHeaders: []string{"host"}, Expires: time.Hour}},
		{name: "v4a query", query: v4aQuery + "&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD",
			want: sigv4.Claim{Place: sigv4.InQuery, Algorithm: sigv4.V4A, RegionSet: []string{"us-east-1", "eu-*"}, SignedHeaders: []string{"host"}, Expires: time.Hour, Payload: sigv4.PayloadUnsigned}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := sigv4.Parse(claimRequest(tt.query, tt.header...))
			if err != nil {
				t.Fatal(err)
			}
			if got.SessionToken.Reveal() != tt.token {
				t.Errorf("token %q, want %q", got.SessionToken.Reveal(), tt.token)
			}
			tt.want.AccessKeyID, tt.want.Service, tt.want.Date, tt.want.SessionToken = "AKIDEXAMPLE", "s3", suiteTime, got.SessionToken
			tt.want.SessionToken, got.SessionToken = sigv4.Claim{}.SessionToken, sigv4.Claim{}.SessionToken
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(old, new string) []string {
		if !strings.Contains(v4Auth, old) {
			t.Fatalf("%q is not in the field: the case is broken", old)
		}
		return []string{"Authorization", strings.Replace(v4Auth, old, new, 1), "X-Amz-Date", "20150830T123600Z"}
	}
	good := with("AKID", "AKID")
	query := func(old, new string) string {
		if !strings.Contains(v4Query, old) {
			t.Fatalf("%q is not in the query: the case is broken", old)
		}
		return strings.Replace(v4Query, old, new, 1)
	}
	for _, tt := range []struct {
		name, query string
		header      []string
		want        error
	}{
		{"nothing", "a=b", nil, sigv4.ErrUnsigned},
		{"bearer", "", []string{"Authorization", "Bearer x"}, sigv4.ErrUnsigned},
		{"header and query", v4Query, good, sigv4.ErrSeveral},
		{"bearer and query", v4Query, []string{"Authorization", "Bearer x"}, sigv4.ErrSeveral},
		{"two fields", "", append(good, "Authorization", "Bearer x"), sigv4.ErrSeveral},
		{"two fields of two spellings", "", append(good, "authorization", v4Auth), sigv4.ErrSeveral},
		{"two dates", "", append(good, "x_amz_date", "20150830T123600Z"), sigv4.ErrSeveral},
		{"two tokens", "", append(good, "X-Amz-Security-Token", "a", "X-Amz-S3session-Token", "b"), sigv4.ErrSeveral},
		{"two payloads", "", append(good, "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), sigv4.ErrSeveral},
		{"two signatures in the query", v4Query + "&X-Amz-Signature=" + hexSig, nil, sigv4.ErrSeveral},
		{"two signatures in two cases", v4Query + "&x-amz-signature=" + hexSig, nil, sigv4.ErrSeveral},
		{"a date in both places", v4Query, []string{"X-Amz-Date", "20150830T123600Z"}, sigv4.ErrSeveral},
		{"a token in both places", v4Query + "&X-Amz-Security-Token=a", []string{"X-Amz-Security-Token", "a"}, sigv4.ErrSeveral},
		{"version 2 header", "", []string{"Authorization", "AWS AKID:c2ln"}, sigv4.ErrMalformed},
		{"version 2 query", "AWSAccessKeyId=a&Signature=b&Expires=1", nil, sigv4.ErrMalformed},
		{"other algorithm", "", with("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"), sigv4.ErrMalformed},
		{"too long", "", with(", Signed", ","+strings.Repeat(" ", 9000)+"Signed"), sigv4.ErrMalformed},
		{"no credential", "", with("Credential=", "Cred="), sigv4.ErrMalformed},
		{"a parameter twice", "", with("SignedHeaders=", "Credential=x, SignedHeaders="), sigv4.ErrMalformed},
		{"a good parameter twice", "", with("SignedHeaders=", "Credential=OTHER/20150830/us-east-1/s3/aws4_request, SignedHeaders="), sigv4.ErrMalformed},
		{"an unknown parameter", "", with("SignedHeaders=", "X=y, SignedHeaders="), sigv4.ErrMalformed},
		{"no signature", "", with(", Signature="+hexSig, ""), sigv4.ErrMalformed},
		{"short signature", "", with(hexSig, hexSig[1:]), sigv4.ErrMalformed},
		{"upper-case signature", "", with(hexSig, strings.ToUpper(hexSig)), sigv4.ErrMalformed},
		{"other terminator", "", with("aws4_request", "aws5_request"), sigv4.ErrMalformed},
		{"empty region", "", with("us-east-1", ""), sigv4.ErrMalformed},
		{"slash in the key id", "", with("AKID", "AK/ID"), sigv4.ErrMalformed},
		{"space in the key id", "", with("AKID", "AK ID"), sigv4.ErrMalformed},
		{"another day", "", with("20150830", "20150831"), sigv4.ErrMalformed},
		{"bad date", "", []string{"Authorization", v4Auth, "X-Amz-Date", "2015-08-30T12:36:00Z"}, sigv4.ErrMalformed},
		{"no date", "", []string{"Authorization", v4Auth}, sigv4.ErrMalformed},
		{"host not signed", "", with("host;", "hos;"), sigv4.ErrMalformed},
		{"unsorted", "", with("host;x-amz-date", "x-amz-date;host"), sigv4.ErrMalformed},
		{"twice signed", "", with("host;", "host;host;"), sigv4.ErrMalformed},
		{"upper case signed", "", with("host;", "Host;host;"), sigv4.ErrMalformed},
		{"region set with v4", "", append(good, "X-Amz-Region-Set", "*"), sigv4.ErrMalformed},
		{"no region set with v4a", "", []string{"Authorization", v4aAuth, "X-Amz-Date", "20150830T123600Z"}, sigv4.ErrMalformed},
		{"odd region set", "", []string{"Authorization", v4aAuth, "X-Amz-Date", "20150830T123600Z", "X-Amz-Region-Set", "a b"}, sigv4.ErrMalformed},
		{"odd payload", "", append(good, "X-Amz-Content-Sha256", "STREAMING-X"), sigv4.ErrMalformed},
		{"v4a chunks under v4", "", append(good, "X-Amz-Content-Sha256", string(sigv4.PayloadV4A)), sigv4.ErrMalformed},
		{"long token", "", append(good, "X-Amz-Security-Token", strings.Repeat("t", 20_000)), sigv4.ErrMalformed},
		{"expires missing", query("X-Amz-Expires=3600&", ""), nil, sigv4.ErrMalformed},
		{"expires zero", query("Expires=3600", "Expires=0"), nil, sigv4.ErrMalformed},
		{"expires negative", query("Expires=3600", "Expires=-1"), nil, sigv4.ErrMalformed},
		{"expires over a week", query("Expires=3600", "Expires=604801"), nil, sigv4.ErrMalformed},
		{"algorithm missing", query("X-Amz-Algorithm=AWS4-HMAC-SHA256&", ""), nil, sigv4.ErrMalformed},
		{"bad escape", query("X-Amz-Date=", "X-Amz-Date=%zz"), nil, sigv4.ErrMalformed},
		{"long query", v4Query + "&a=" + strings.Repeat("b", 70_000), nil, sigv4.ErrMalformed},
		{"event stream", "", append(good, "Content-Type", "application/vnd.amazon.eventstream; x=y"), sigv4.ErrEventStream},
		{"event stream payload", "", append(good, "X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-EVENTS"), sigv4.ErrEventStream},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := sigv4.Parse(claimRequest(tt.query, tt.header...)); !errors.Is(err, tt.want) {
				t.Errorf("got %+v, %v; want %v", c, err, tt.want)
			}
		})
	}
	for _, ok := range []*http.Request{claimRequest("", good...), claimRequest(v4Query)} {
		if _, err := sigv4.Parse(ok); err != nil {
			t.Errorf("what the cases vary is refused itself: %v", err)
		}
	}
}

func TestExpiredPresign(t *testing.T) {
	c, err := sigv4.Parse(claimRequest(v4Query))
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Time]error{
		suiteTime.Add(time.Hour): nil, suiteTime.Add(time.Hour + time.Second): sigv4.ErrExpired,
		suiteTime.Add(-15 * time.Minute): nil, suiteTime.Add(-16 * time.Minute): sigv4.ErrExpired,
	} {
		if got := c.Check(at); !errors.Is(got, want) {
			t.Errorf("at %s: got %v, want %v", at, got, want)
		}
	}
}

func TestStripKeepsTheOthersByteForByte(t *testing.T) {
	r := claimRequest("&b=%2f+&"+v4Query+"&X%2damz-security-token=x&;c&&x-amz-acl=private&d", "Authorization", v4Auth, "X-Amz-Date", "d", "x_amz_security_token", "t",
		"X-Amz-S3session-Token", "t", "X-Amz-Region-Set", "*", "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "X-Amz-Meta-A", "b", "Date", "d")
	sigv4.Strip(r)
	if got, want := r.URL.RawQuery, "&b=%2f+&;c&&x-amz-acl=private&d"; got != want {
		t.Errorf("query %q, want %q", got, want)
	}
	want := http.Header{"X-Amz-Content-Sha256": {"UNSIGNED-PAYLOAD"}, "X-Amz-Meta-A": {"b"}}
	if !reflect.DeepEqual(r.Header, want) {
		t.Errorf("header %v, want %v", r.Header, want)
	}
}

// FuzzParse wants no panic, and of what is accepted that nothing is left of it
// after Strip and that it can be signed anew.
func FuzzParse(f *testing.F) {
	f.Add("", v4Auth, "20150830T123600Z", "", "")
	f.Add("", v4aAuth, "20150830T123600Z", "*", "UNSIGNED-PAYLOAD")
	f.Add(v4Query, "", "", "", "")
	f.Add(v4aQuery+"&X-Amz-Security-Token=%20", "", "", "", string(sigv4.PayloadEmpty))
	signer := sigv4.NewSigner()
	f.Fuzz(func(t *testing.T, query, auth, date, regions, payload string) {
		r := claimRequest(query)
		for k, v := range map[string]string{"Authorization": auth, "X-Amz-Date": date, "X-Amz-Region-Set": regions, "X-Amz-Content-Sha256": payload} {
			if v != "" {
				r.Header.Set(k, v)
			}
		}
		c, err := sigv4.Parse(r)
		if err != nil {
			return
		}
		sigv4.Strip(r)
		if _, err := sigv4.Parse(r); !errors.Is(err, sigv4.ErrUnsigned) {
			t.Errorf("after Strip: %v, query %q", err, r.URL.RawQuery)
		}
		p := c.Params(suiteTime)
		p.TLS = true
		err = signer.Sign(context.Background(), r, suiteCredentials(suiteToken), p)
		if err != nil && !errors.Is(err, sigv4.ErrMalformed) {
			t.Errorf("%+v cannot be signed: %v", c, err)
		}
		if err == nil {
			if again, err := sigv4.Parse(r); err != nil || again.Service != c.Service || again.AccessKeyID != suiteKeyID {
				t.Errorf("what was signed reads %+v, %v", again, err)
			}
		}
	})
}
