// Package awsdoor answers programs that insist on fetching AWS credentials:
// the container credentials endpoint, the instance metadata service (IMDSv2)
// and the calls of STS by which an SDK turns a web identity token into a
// session. Every answer holds this run's placeholders and nothing else: they
// tell Attaché which provider a signed call asks for and are worth nothing at
// AWS.
//
// The doors are as strict as the services they stand for, so that a program
// which works here works there: a container's authorization token is required,
// IMDSv1 is refused, STS wants the run's own web identity token. Who is asking
// was attested before a request gets here, and the pipeline writes a record of
// each answer.
package awsdoor

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/internal/awsrole"
)

// ContainerPath is where the container credentials endpoint answers.
const ContainerPath = "/v1/credentials"

// validity is how long placeholders are said to be valid. They are as long as
// the run; SDKs ask again in time.
const validity = 6 * time.Hour

// Calls that one run may make to its doors: an SDK that keeps what it fetched
// makes a handful an hour, one that loops must not fill the records.
const (
	callsPerSecond = 50
	callsAtOnce    = 200
)

// Keys are the placeholders of one run. They are worth nothing and therefore
// plain text.
type Keys struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	// Authorization opens the container endpoint
	// (AWS_CONTAINER_AUTHORIZATION_TOKEN).
	Authorization string
	// WebIdentity is the content of AWS_WEB_IDENTITY_TOKEN_FILE.
	WebIdentity string
}

// Config of a [Door]. Now is required, and Keys are whole.
type Config struct {
	Provider string // CredentialProvider that the keys stand for
	Keys     Keys
	// RoleARN is what AWS_ROLE_ARN says. Which role signs is for policy to say.
	RoleARN string
	Region  string
	// Container, IMDS and WebIdentity say which doors are open.
	Container, IMDS, WebIdentity bool
	// STS are authorities (host:port) that speak STS beside AWS's own.
	STS []string
	Now func() time.Time
}

// Door answers with placeholders. It is safe for concurrent use.
type Door struct {
	c      Config
	role   awsrole.ARN
	tokens tokens
	rate   *rate.Limiter
}

// New returns the doors that c opens.
func New(c Config) (*Door, error) {
	k := c.Keys
	if k.AccessKeyID == "" || k.SecretAccessKey == "" || k.SessionToken == "" || c.Now == nil {
		return nil, errors.New("aws doors: keys and clock are required")
	}
	if c.Container && k.Authorization == "" || c.WebIdentity && k.WebIdentity == "" {
		return nil, errors.New("aws doors: an open door needs its token")
	}
	role, err := awsrole.Parse(c.RoleARN)
	if err != nil {
		return nil, fmt.Errorf("aws doors: %w", err)
	}
	return &Door{c: c, role: role, tokens: newTokens(), rate: rate.NewLimiter(callsPerSecond, callsAtOnce)}, nil
}

// Provider is whose placeholders the answers hold.
func (d *Door) Provider() string { return d.c.Provider }

// RoleARN is what AWS_ROLE_ARN is to say.
func (d *Door) RoleARN() string { return d.c.RoleARN }

// WebIdentity is what the web identity token's file is to hold.
func (d *Door) WebIdentity() string { return d.c.Keys.WebIdentity }

// Answer is what a door says.
type Answer struct {
	Status int
	Header http.Header // may be nil
	Type   string      // Content-Type
	Body   []byte
	// Operation is what was asked for, as records name it; it never holds text
	// of the request.
	Operation string
	// Reason says why nothing was given; empty: keys or facts were.
	Reason string
	// Ambient says that the caller did not show this run's token.
	Ambient bool
}

// Local answers a request at the run's own port, or at the metadata service's
// address: the container credentials endpoint and IMDSv2.
func (d *Door) Local(r *http.Request) Answer {
	switch {
	case d.c.Container && (r.URL.Path == ContainerPath || !d.c.IMDS):
		return d.container(r)
	case d.c.IMDS:
		return d.imds(r)
	}
	return plain("closed", http.StatusNotFound, "this door is not open")
}

// plain is a refusal as the metadata service writes it.
func plain(op string, status int, reason string) Answer {
	return Answer{Status: status, Type: "text/plain", Body: []byte(strconv.Itoa(status) + " - " + http.StatusText(status) + ": " + reason + "\n"), Operation: op, Reason: reason}
}

// expiration is when the placeholders are said to end.
func (d *Door) expiration(valid time.Duration) string {
	return d.c.Now().Add(valid).UTC().Truncate(time.Second).Format(time.RFC3339)
}

// roleName is the role as the metadata service lists it.
func (d *Door) roleName() string { return d.role.Name }

// one returns the only value of a header; ok is false if there are several.
func one(h http.Header, name string) (value string, ok bool) {
	vs := h.Values(name)
	if len(vs) > 1 {
		return "", false
	}
	return strings.Join(vs, ""), true
}
