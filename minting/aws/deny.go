package aws

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

const (
	// denyPolicy is the inline policy of a role that ends single sessions.
	denyPolicy  = "AttacheRevoke"
	denySession = "attache-revoke"
	denyTries   = 3
)

// iamEndpoints of the partitions: IAM is global in each. The region is the one
// that signatures name (AWS general reference, IAM endpoints).
var iamEndpoints = map[string]struct{ url, fips, region string }{
	"aws":        {"https://iam.amazonaws.com", "https://iam-fips.amazonaws.com", "us-east-1"},
	"aws-us-gov": {"https://iam.us-gov.amazonaws.com", "https://iam.us-gov.amazonaws.com", "us-gov-west-1"},
	"aws-cn":     {"https://iam.cn-north-1.amazonaws.com.cn", "", "cn-north-1"},
}

// denier ends sessions by a Deny in a policy of their role.
type denier struct {
	m        *Minter
	endpoint string
	region   string

	mu      sync.Mutex           // guards pending
	pending map[string][]*denial // by role: not yet in its policy
	// turn has one token: who holds it reads and writes policies. IAM has no
	// conditional write, so that two at a time would undo each other.
	turn chan struct{}
}

// denial is one session to end.
type denial struct {
	userID string
	until  time.Time // the session ends by itself
	done   bool      // guarded by denier.turn
}

func newDenier(m *Minter) (*denier, error) {
	d := &denier{m: m, endpoint: m.spec.Revocation.Endpoint, region: m.spec.Region, pending: map[string][]*denial{}, turn: make(chan struct{}, 1)}
	role := m.spec.RoleARN
	if m.spec.Chain != nil {
		role = m.spec.Chain.RoleARN
	}
	partition := strings.SplitN(role, ":", 3)[1]
	known, ok := iamEndpoints[partition]
	if ok {
		d.region = known.region
	}
	if d.endpoint != "" {
		d.endpoint = strings.TrimRight(d.endpoint, "/")
		return d, nil
	}
	if d.endpoint = known.url; m.spec.FIPS {
		d.endpoint = known.fips
	}
	if d.endpoint == "" {
		return nil, fmt.Errorf("endpoint: is missing; IAM's is not known for partition %s", partition)
	}
	return d, nil
}

// deny ends s. Sessions whose revocations wait for their turn together are put
// into the policy together.
func (m *Minter) deny(ctx context.Context, p plan, s session, e minting.Evidence) error {
	role := p.first
	if p.last != "" {
		role = p.last
	}
	if err := m.denier.deny(ctx, role, &denial{userID: s.userID, until: s.expires}, e); err != nil {
		return fmt.Errorf("provider %s: revoke: %w", m.name, err)
	}
	return nil
}

func (d *denier) deny(ctx context.Context, role string, one *denial, e minting.Evidence) error {
	one = d.enlist(role, one)
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", minting.ErrUnavailable, ctx.Err()) // the next turn takes it along
	}
	if one.done {
		return nil
	}
	d.mu.Lock()
	all := d.pending[role]
	delete(d.pending, role)
	d.mu.Unlock()
	err := d.write(ctx, role, all, e)
	if err != nil {
		d.mu.Lock()
		d.pending[role] = append(all, d.pending[role]...)
		d.mu.Unlock()
		return err
	}
	for _, one := range all {
		one.done = true
	}
	return nil
}

// enlist adds one to those that wait, and returns the one that waits already
// where a revocation is repeated.
func (d *denier) enlist(role string, one *denial) *denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending[role] {
		if p.userID == one.userID {
			return p
		}
	}
	d.pending[role] = append(d.pending[role], one)
	return one
}

// write brings the policy up to date and sees that it stays: another Attaché
// may have written at the same time.
func (d *denier) write(ctx context.Context, role string, all []*denial, e minting.Evidence) error {
	arn, err := awsrole.Parse(role)
	if err != nil {
		return fmt.Errorf("%w: %w", minting.ErrDenied, err)
	}
	s, err := d.session(ctx, role, arn.Account, e)
	if err != nil {
		return err
	}
	for range denyTries {
		old, err := d.get(ctx, s, arn.Name)
		if err != nil {
			return err
		}
		doc, err := mergeDenials(old, all, d.m.deps.Now())
		if err != nil {
			return err
		}
		switch {
		case doc == old:
			return nil // as it should be, seen after the write
		case doc == "":
			err = d.ask(ctx, s, "DeleteRolePolicy", url.Values{"RoleName": {arn.Name}}, nil)
		default:
			err = d.ask(ctx, s, "PutRolePolicy", url.Values{"RoleName": {arn.Name}, "PolicyDocument": {doc}}, nil)
		}
		if err != nil {
			return err
		}
	}
	// IAM is eventually consistent: that a read does not show what was written
	// says little. Nobody else may have removed it in three tries running.
	return fmt.Errorf("%w: policy %s of role %s does not show the revocation yet", minting.ErrUnavailable, denyPolicy, role)
}

// session of the role that may write the policy, cut to that.
func (d *denier) session(ctx context.Context, role, account string, e minting.Evidence) (session, error) {
	by, err := awsrole.Expand(d.m.spec.Revocation.RoleARN, e.Workload, e.Task)
	if err != nil {
		return session{}, fmt.Errorf("%w: revocation.roleARN: %w", minting.ErrDenied, err)
	}
	if a, err := awsrole.Parse(by); err != nil || a.Account != account {
		return session{}, fmt.Errorf("%w: revocation.roleARN %s is of another account than %s", minting.ErrDenied, by, role)
	}
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:GetRolePolicy","iam:PutRolePolicy","iam:DeleteRolePolicy"],"Resource":"` + role + `"}]}`
	return d.m.webIdentity(ctx, by, denySession, policy, minDuration, e)
}

// get returns the policy's text, empty if there is none.
func (d *denier) get(ctx context.Context, s session, roleName string) (string, error) {
	var w struct {
		Document string `xml:"GetRolePolicyResult>PolicyDocument"`
	}
	err := d.ask(ctx, s, "GetRolePolicy", url.Values{"RoleName": {roleName}}, &w)
	if err != nil || w.Document == "" {
		return "", err
	}
	// RFC 3986 encoding (IAM API reference, GetRolePolicy): a + is a plus.
	doc, err := url.PathUnescape(w.Document)
	if err != nil {
		return "", fmt.Errorf("%w: IAM: the policy is not URL-encoded", minting.ErrUnavailable)
	}
	return doc, nil
}

// ask calls an action of IAM on the policy. That a policy does not exist is no
// error.
func (d *denier) ask(ctx context.Context, s session, action string, form url.Values, answer any) error {
	form.Set("Action", action)
	form.Set("Version", "2010-05-08")
	form.Set("PolicyName", denyPolicy)
	a, err := d.m.post(ctx, d.endpoint+"/", "iam", d.region, form, s)
	if err != nil {
		return fmt.Errorf("IAM: %w", err)
	}
	if a.Status == http.StatusOK {
		if answer != nil && xml.Unmarshal(a.Body, answer) != nil {
			return fmt.Errorf("%w: IAM: %s answered nonsense", minting.ErrUnavailable, action)
		}
		return nil
	}
	code, message := errorOf(a.Body)
	if a.Status == http.StatusNotFound && code == "NoSuchEntity" && action != "PutRolePolicy" {
		return nil
	}
	return d.refusal(action, a, code, message, s)
}

func (d *denier) refusal(action string, a issuer.Answer, code, message string, s session) error {
	if code == "LimitExceeded" { // final here, though it sounds like throttling
		return fmt.Errorf("%w: IAM: the policies of the role are full: %s", minting.ErrDenied, issuer.Safe(message))
	}
	return d.m.worded("IAM "+action, a, code, message, s.secret.Reveal(), s.token.Reveal())
}

// maxDocument is what all inline policies of a role may take together (IAM
// quotas); ours alone must stay below.
const maxDocument = 10240

// denyBucket is the grain of ends: sessions of one bucket share a statement.
const denyBucket = 5 * time.Minute

const sidTime = "200601021504"

// denyStatement is one statement of the policy: Deny everything to these
// sessions. aws:TokenIssueTime is compared with their own end and not with the
// time of the revocation, so that no difference of clocks leaves one out; a
// session name is never used again.
type denyStatement struct {
	Sid       string
	Effect    string
	Action    string
	Resource  string
	Condition struct {
		DateLessThan struct {
			IssueTime string `json:"aws:TokenIssueTime"`
		}
		StringEquals struct {
			UserID []string `json:"aws:userid"`
		}
	}
}

// mergeDenials adds sessions to a policy and drops those that have ended.
// Statements of others stay as they are. The result is empty when no statement
// is left, and old itself when nothing changed.
func mergeDenials(old string, add []*denial, now time.Time) (string, error) {
	foreign, ours, err := parseDenials(old)
	if err != nil {
		return "", err
	}
	changed := false
	for sid := range ours {
		if until, _ := bucketEnd(sid); !until.After(now) {
			delete(ours, sid)
			changed = true
		}
	}
	for _, d := range add {
		if d.until.After(now) && addDenial(ours, d) {
			changed = true
		}
	}
	switch {
	case !changed:
		return old, nil
	case len(foreign)+len(ours) == 0:
		return "", nil
	}
	return renderDenials(foreign, ours)
}

// parseDenials separates our statements, by Sid, from those of others.
func parseDenials(doc string) (foreign []json.RawMessage, ours map[string]*denyStatement, err error) {
	ours = map[string]*denyStatement{}
	if doc == "" {
		return nil, ours, nil
	}
	edited := func() ([]json.RawMessage, map[string]*denyStatement, error) {
		return nil, nil, fmt.Errorf("%w: policy %s was edited and is not understood; remove it", minting.ErrDenied, denyPolicy)
	}
	var w struct {
		Version   string
		Statement []json.RawMessage
	}
	if json.Unmarshal([]byte(doc), &w) != nil || w.Version != "2012-10-17" {
		return edited()
	}
	for _, raw := range w.Statement {
		var s denyStatement
		var sid struct{ Sid string }
		if json.Unmarshal(raw, &sid) != nil {
			return edited()
		}
		if _, ok := bucketEnd(sid.Sid); !ok {
			foreign = append(foreign, raw)
			continue
		}
		if json.Unmarshal(raw, &s) != nil || ours[s.Sid] != nil || s.Effect != "Deny" || s.Action != "*" || s.Resource != "*" || len(s.Condition.StringEquals.UserID) == 0 {
			return edited()
		}
		ours[s.Sid] = &s
	}
	return foreign, ours, nil
}

// bucketEnd is the time in a Sid of ours.
func bucketEnd(sid string) (time.Time, bool) {
	text, ok := strings.CutPrefix(sid, denyPolicy)
	t, err := time.Parse(sidTime, text)
	return t, ok && err == nil
}

// addDenial reports whether it changed anything.
func addDenial(ours map[string]*denyStatement, d *denial) bool {
	end := d.until.UTC().Truncate(denyBucket).Add(denyBucket)
	sid := denyPolicy + end.Format(sidTime)
	s := ours[sid]
	if s == nil {
		s = &denyStatement{Sid: sid, Effect: "Deny", Action: "*", Resource: "*"}
		s.Condition.DateLessThan.IssueTime = iamTime(end)
		ours[sid] = s
	}
	ids := &s.Condition.StringEquals.UserID
	for _, id := range *ids {
		if id == d.userID {
			return false
		}
	}
	*ids = append(*ids, d.userID)
	return true
}

// renderDenials writes the policy, ours in the order of their ends.
func renderDenials(foreign []json.RawMessage, ours map[string]*denyStatement) (string, error) {
	w := struct {
		Version   string
		Statement []any
	}{Version: "2012-10-17"}
	for _, f := range foreign {
		w.Statement = append(w.Statement, f)
	}
	n := 0
	for _, sid := range slices.Sorted(maps.Keys(ours)) {
		w.Statement = append(w.Statement, ours[sid])
		n += len(ours[sid].Condition.StringEquals.UserID)
	}
	b, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("%w: %w", minting.ErrDenied, err)
	}
	if len(b) > maxDocument {
		return "", fmt.Errorf("%w: policy %s would hold %d sessions in %d characters, IAM takes %d; they end by themselves", minting.ErrDenied, denyPolicy, n, len(b), maxDocument)
	}
	return string(b), nil
}
