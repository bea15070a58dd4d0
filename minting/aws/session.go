package aws

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// maxSkew is how far an issuer's clock may be from ours.
const maxSkew = 5 * time.Minute

// maxToken bounds a token file. STS takes 20,000 characters.
const maxToken = 20000

// session is a session as the issuer gave it, and believed.
type session struct {
	keyID         string
	secret, token secret.Value
	expires       time.Time
	arn           string // assumed-role ARN, or the role's
	userID        string // ROLEID:SESSIONNAME, empty where the issuer has none
}

func (s session) credentials(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: s.keyID, SecretAccessKey: s.secret.Reveal(), SessionToken: s.token.Reveal()}, nil
}

// assume walks the hops of p.
func (m *Minter) assume(ctx context.Context, p plan, e minting.Evidence) (session, error) {
	var s session
	var err error
	switch {
	case m.spec.RolesAnywhere != nil:
		s, err = m.createSession(ctx, p.first, e)
	case p.last == "":
		return m.webIdentity(ctx, p.first, p.handle, p.policy, p.duration, e)
	default:
		s, err = m.webIdentity(ctx, p.first, p.handle, "", minDuration, e)
	}
	if err != nil {
		return session{}, err
	}
	return m.assumeRole(ctx, s, p)
}

// webIdentity is AssumeRoleWithWebIdentity. The call is not signed: the token
// is the proof.
func (m *Minter) webIdentity(ctx context.Context, role, handle, policy string, d time.Duration, e minting.Evidence) (session, error) {
	token, err := m.proof(ctx, e)
	if err != nil {
		return session{}, err
	}
	if err := m.wait(ctx, m.pace); err != nil {
		return session{}, err
	}
	in := &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &role, RoleSessionName: &handle, WebIdentityToken: aws.String(token), DurationSeconds: seconds(d),
	}
	if policy != "" {
		in.Policy = &policy
	}
	var opts []func(*sts.Options)
	if r := m.spec.Revocation; r != nil && r.Kind == RevokeMinIO {
		opts = append(opts, withRevokeType(handle))
	}
	out, err := m.sts(nil).AssumeRoleWithWebIdentity(ctx, in, opts...)
	if err != nil {
		return session{}, m.refusal(ctx, "AssumeRoleWithWebIdentity of "+role, err, token)
	}
	return m.believe(role, handle, d, out.Credentials, out.AssumedRoleUser)
}

// proof is the web identity token: the workload's JWT-SVID, or the file's.
func (m *Minter) proof(ctx context.Context, e minting.Evidence) (string, error) {
	if m.spec.TokenFile != "" {
		return readToken(m.spec.TokenFile)
	}
	t, err := e.Source.JWT(ctx, identity.JWTRequest{Workload: e.Workload, Audience: m.spec.Audience})
	if err != nil {
		return "", fmt.Errorf("%w: sign a JWT-SVID for %s: %w", kind(ctx, err), m.spec.Audience, err)
	}
	return t.Token.Reveal(), nil
}

func readToken(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("%w: tokenFile: %w", minting.ErrUnavailable, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("%w: tokenFile: %w", minting.ErrUnavailable, err)
	}
	t := strings.TrimSpace(string(b))
	if len(b) > maxToken || strings.Count(t, ".") != 2 || minting.CheckSecret(t) != nil {
		return "", fmt.Errorf("%w: tokenFile: %s holds no JWT", minting.ErrUnavailable, name)
	}
	return t, nil
}

// assumeRole is the second hop, signed by the session of the first.
func (m *Minter) assumeRole(ctx context.Context, first session, p plan) (session, error) {
	if err := m.wait(ctx, m.pace); err != nil {
		return session{}, err
	}
	in := &sts.AssumeRoleInput{
		RoleArn: &p.last, RoleSessionName: &p.handle, Policy: &p.policy, DurationSeconds: seconds(p.duration),
		Tags: p.second.tags, TransitiveTagKeys: p.second.transitive,
	}
	if p.second.externalID != "" {
		in.ExternalId = &p.second.externalID
	}
	if p.second.sourceIdentity != "" {
		in.SourceIdentity = &p.second.sourceIdentity
	}
	out, err := m.sts(aws.CredentialsProviderFunc(first.credentials)).AssumeRole(ctx, in)
	if err != nil {
		return session{}, m.refusal(ctx, "AssumeRole of "+p.last, err, first.secret.Reveal(), first.token.Reveal())
	}
	return m.believe(p.last, p.handle, p.duration, out.Credentials, out.AssumedRoleUser)
}

func seconds(d time.Duration) *int32 { return aws.Int32(int32(d / time.Second)) }

// keyID is the pattern of accessKeyIdType.
var keyID = regexp.MustCompile(`^\w{16,128}$`)

// believe checks an answer before anything is done with it.
func (m *Minter) believe(role, handle string, d time.Duration, c *types.Credentials, u *types.AssumedRoleUser) (session, error) {
	if c == nil {
		return session{}, fmt.Errorf("%w: STS answered without credentials", minting.ErrUnavailable)
	}
	s, err := m.keys(aws.ToString(c.AccessKeyId), aws.ToString(c.SecretAccessKey), aws.ToString(c.SessionToken), aws.ToTime(c.Expiration), d)
	if err != nil {
		return session{}, err
	}
	s.arn = role
	if u == nil || aws.ToString(u.Arn) == "" { // MinIO
		return s, nil
	}
	want, err := awsrole.Parse(role)
	if err != nil {
		return session{}, fmt.Errorf("%w: %w", minting.ErrDenied, err)
	}
	// An assumed role's ARN has the role's name without its path.
	if got := *u.Arn; got != "arn:"+want.Partition+":sts::"+want.Account+":assumed-role/"+want.Name+"/"+handle {
		return session{}, fmt.Errorf("%w: STS answered with a session of another role than %s", minting.ErrUnavailable, role)
	}
	s.arn = *u.Arn
	if id, ok := strings.CutSuffix(aws.ToString(u.AssumedRoleId), ":"+handle); ok && keyID.MatchString(id) {
		s.userID = *u.AssumedRoleId
	}
	return s, nil
}

// keys checks the parts that every issuer of sessions answers with.
func (m *Minter) keys(id, key, token string, expires time.Time, d time.Duration) (session, error) {
	bad := func(format string, a ...any) (session, error) {
		return session{}, fmt.Errorf("%w: STS answered "+format, append([]any{minting.ErrUnavailable}, a...)...)
	}
	if !keyID.MatchString(id) {
		return bad("with an access key id that is none")
	}
	for _, v := range []string{key, token} {
		if err := minting.CheckSecret(v); err != nil {
			return bad("with keys that cannot be used: %w", err)
		}
	}
	switch now := m.deps.Now(); {
	case expires.IsZero():
		return bad("with a session that has no end")
	case !expires.After(now):
		return bad("with a session that ended at %s; check the clock", iamTime(expires))
	case expires.After(now.Add(d + maxSkew)):
		return bad("with a session until %s, longer than the %s asked for; check the clock", iamTime(expires), d)
	}
	return session{keyID: id, secret: secret.New(key), token: secret.New(token), expires: expires}, nil
}
