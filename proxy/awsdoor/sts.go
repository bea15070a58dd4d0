package awsdoor

import (
	"crypto/subtle"
	"encoding/xml"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/policy/awsscope"
	"github.com/attache-dev/attache/proxy/destination"
)

// STSBody bounds the body of a call to STS: a web identity token has at most
// 20000 characters, the policies beside it 2048 each.
const STSBody = 64 << 10

// stsVersion and its namespace: AWS STS API Reference.
const (
	stsVersion   = "2011-06-15"
	stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"
)

// Asks reports whether r may be a call of STS that [Door.STS] answers: a form
// posted to an endpoint of STS. Its body is then to be read.
func (d *Door) Asks(dest destination.Destination, r *http.Request) bool {
	if !d.c.WebIdentity || r.Method != http.MethodPost || r.URL.Path != "/" || r.URL.RawQuery != "" {
		return false
	}
	if !isSTS(dest) && !slices.Contains(d.c.STS, dest.HostPort()) {
		return false
	}
	ct, ok := one(r.Header, "Content-Type")
	kind, _, err := mime.ParseMediaType(ct)
	return ok && err == nil && kind == "application/x-www-form-urlencoded"
}

// isSTS knows AWS's own endpoints, in every partition.
func isSTS(dest destination.Destination) bool {
	t, err := awsscope.Match(dest.HostPort(), nil)
	return err == nil && dest.Scheme == "https" && t.Endpoint == "sts"
}

// signed reports whether a signature names this run's access key. What it
// signs is not verified: the placeholders say who may ask, and are no secret
// that could prove more.
func (d *Door) signed(h http.Header) bool {
	auth, ok := one(h, "Authorization")
	return ok && strings.HasPrefix(auth, "AWS4-") && strings.Contains(auth, " Credential="+d.c.Keys.AccessKeyID+"/")
}

// STS answers a call that hands out credentials; record becomes its request
// id. ok is false for every other call, which goes the way of all requests.
func (d *Door) STS(body []byte, h http.Header, record string) (a Answer, ok bool) {
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form["Action"]) != 1 {
		return Answer{}, false // STS itself refuses it
	}
	c := call{d: d, form: form, record: record, action: form.Get("Action")}
	var answer func() Answer
	switch c.action {
	case "AssumeRoleWithWebIdentity":
		answer = c.webIdentity
	case "AssumeRole":
		answer = c.assumeRole
	case "GetSessionToken":
		answer = c.sessionToken
	default:
		return Answer{}, false
	}
	if !d.rate.Allow() {
		return c.fail(http.StatusBadRequest, "Throttling", "Rate exceeded"), true
	}
	for name, values := range form { // two readers could take different ones
		if len(values) != 1 {
			return c.fail(http.StatusBadRequest, "MalformedInput", "a parameter stands twice: "+strconv.Quote(cut(name))), true
		}
	}
	if v := form.Get("Version"); v != stsVersion {
		return c.fail(http.StatusBadRequest, "InvalidAction", "Version must be "+stsVersion), true
	}
	if c.action != "AssumeRoleWithWebIdentity" && !d.signed(h) {
		a := c.fail(http.StatusForbidden, "InvalidClientTokenId", "the call must be signed with the placeholder keys of this run")
		a.Ambient = true
		return a, true
	}
	return answer(), true
}

// call is one call of STS.
type call struct {
	d      *Door
	form   url.Values
	action string // one of those that are answered
	record string
}

var sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

// webIdentity answers the SDK's own web identity provider, which was told role
// and token by our environment.
func (c *call) webIdentity() Answer {
	if f := c.checkSession(); f != nil {
		return *f
	}
	token := c.form.Get("WebIdentityToken")
	if subtle.ConstantTimeCompare([]byte(token), []byte(c.d.c.Keys.WebIdentity)) != 1 {
		a := c.fail(http.StatusBadRequest, "InvalidIdentityToken", "the token is not the content of this run's AWS_WEB_IDENTITY_TOKEN_FILE")
		a.Ambient = true
		return a
	}
	if c.form.Get("RoleArn") != c.d.c.RoleARN { // as if its trust policy did not name the token
		return c.fail(http.StatusForbidden, "AccessDenied", "the token stands for "+c.d.c.RoleARN+" (AWS_ROLE_ARN); other roles are for the policy to choose")
	}
	return c.succeed(c.d.role)
}

// assumeRole answers a program that changes roles by itself. It gets the same
// placeholders: which role signs a call, policy says.
func (c *call) assumeRole() Answer {
	if f := c.checkSession(); f != nil {
		return *f
	}
	role, err := awsrole.Parse(c.form.Get("RoleArn"))
	if err != nil {
		return c.fail(http.StatusBadRequest, "ValidationError", "RoleArn is no ARN of a role")
	}
	return c.succeed(role)
}

func (c *call) sessionToken() Answer {
	if _, f := c.duration(36 * 3600); f != nil {
		return *f
	}
	return c.succeed(awsrole.ARN{})
}

func (c *call) checkSession() *Answer {
	if !sessionName.MatchString(c.form.Get("RoleSessionName")) {
		a := c.fail(http.StatusBadRequest, "ValidationError", "RoleSessionName must be 2 to 64 letters, digits and _+=,.@-")
		return &a
	}
	_, f := c.duration(12 * 3600)
	return f
}

// duration is how long the session is said to last; limit is in seconds.
func (c *call) duration(limit int) (time.Duration, *Answer) {
	text, given := c.form["DurationSeconds"]
	if !given {
		return time.Hour, nil
	}
	n, err := strconv.Atoi(text[0])
	if err != nil || n < 900 || n > limit {
		a := c.fail(http.StatusBadRequest, "ValidationError", "DurationSeconds must be 900 to "+strconv.Itoa(limit))
		return 0, &a
	}
	return time.Duration(n) * time.Second, nil
}

// The shapes of STS's answers. Elements that a call lacks are left out.
type stsAnswer struct {
	XMLName xml.Name
	Result  stsResult
	Record  string `xml:"ResponseMetadata>RequestId"`
}

type stsResult struct {
	XMLName     xml.Name
	Credentials stsKeys
	User        *stsUser `xml:"AssumedRoleUser"`
	Subject     string   `xml:"SubjectFromWebIdentityToken,omitempty"`
	Provider    string   `xml:",omitempty"`
}

type stsKeys struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string
}

type stsUser struct {
	Arn           string //nolint:revive // the wire's name
	AssumedRoleID string `xml:"AssumedRoleId"`
}

type stsError struct {
	XMLName xml.Name `xml:"ErrorResponse"`
	Space   string   `xml:"xmlns,attr"`
	Type    string   `xml:"Error>Type"`
	Code    string   `xml:"Error>Code"`
	Message string   `xml:"Error>Message"`
	Record  string   `xml:"RequestId"`
}

// succeed answers with the placeholders. A zero role is a session of no role.
func (c *call) succeed(role awsrole.ARN) Answer {
	valid, _ := c.duration(36 * 3600) // was checked
	k := c.d.c.Keys
	res := stsResult{XMLName: xml.Name{Local: c.action + "Result"}, Credentials: stsKeys{
		AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken, Expiration: c.d.expiration(valid)}}
	if role.Name != "" {
		name := c.form.Get("RoleSessionName")
		res.User = &stsUser{
			Arn:           "arn:" + role.Partition + ":sts::" + role.Account + ":assumed-role/" + role.Name + "/" + name,
			AssumedRoleID: "AROA" + strings.Repeat("X", 17) + ":" + name,
		}
	}
	if c.action == "AssumeRoleWithWebIdentity" {
		res.Subject, res.Provider = "attache", "attache"
	}
	return c.xml(http.StatusOK, stsAnswer{XMLName: xml.Name{Space: stsNamespace, Local: c.action + "Response"}, Result: res, Record: c.record}, "")
}

func (c *call) fail(status int, code, reason string) Answer {
	return c.xml(status, stsError{Space: stsNamespace, Type: "Sender", Code: code, Message: "Attaché: " + reason, Record: c.record}, reason)
}

func (c *call) xml(status int, v any, reason string) Answer {
	b, err := xml.Marshal(v)
	if err != nil {
		panic("awsdoor: " + err.Error()) // text only
	}
	return Answer{Status: status, Type: "text/xml", Body: append(b, '\n'), Operation: "sts:" + c.action, Reason: reason,
		Header: http.Header{"X-Amzn-Requestid": {c.record}}}
}

// cut bounds a name that an answer repeats.
func cut(s string) string { return s[:min(len(s), 64)] }
