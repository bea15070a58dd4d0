package aws_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
)

// fakeIAM follows the IAM API reference (version 2010-05-08) for the inline
// policies of one role: GetRolePolicy, PutRolePolicy, DeleteRolePolicy. It
// verifies the signature of a session of fakeSTS, and refuses everything else.
type fakeIAM struct {
	sts  *fakeSTS
	role string // its name

	mu      sync.Mutex // guards what follows
	doc     string     // of policy AttacheRevoke, empty: none
	actions []string
	lose    int    // so many writes are lost to another writer
	refuse  string // code of the answer to every call
}

func (f *fakeIAM) policy() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doc
}

func (f *fakeIAM) set(doc string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doc, f.actions = doc, nil
}

func (f *fakeIAM) did() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.actions, " ")
}

func (f *fakeIAM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<17))
	q, err := url.ParseQuery(string(body))
	f.sts.mu.Lock()
	ok := f.sts.signed(r, body, "iam", "us-east-1")
	f.sts.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	action := q.Get("Action")
	f.actions = append(f.actions, strings.TrimSuffix(action, "RolePolicy"))
	switch {
	case !ok:
		fail(w, http.StatusForbidden, "SignatureDoesNotMatch", "no")
	case err != nil || r.Method != http.MethodPost || r.URL.Path != "/" || q.Get("Version") != "2010-05-08" || q.Get("PolicyName") != "AttacheRevoke":
		fail(w, http.StatusBadRequest, "ValidationError", "what is that")
	case f.refuse != "":
		fail(w, http.StatusForbidden, f.refuse, "no")
	case q.Get("RoleName") != f.role:
		fail(w, http.StatusNotFound, "NoSuchEntity", "no such role")
	case action == "GetRolePolicy" && len(q) == 4:
		f.get(w)
	case action == "PutRolePolicy" && len(q) == 5:
		f.put(w, q.Get("PolicyDocument"))
	case action == "DeleteRolePolicy" && len(q) == 4:
		if f.doc == "" {
			fail(w, http.StatusNotFound, "NoSuchEntity", "no such policy")
			return
		}
		f.doc = ""
		_, _ = io.WriteString(w, `<DeleteRolePolicyResponse/>`)
	default:
		fail(w, http.StatusBadRequest, "InvalidAction", "what is that")
	}
}

func (f *fakeIAM) get(w http.ResponseWriter) {
	if f.doc == "" {
		fail(w, http.StatusNotFound, "NoSuchEntity", "no such policy")
		return
	}
	var a struct {
		XMLName xml.Name `xml:"https://iam.amazonaws.com/doc/2010-05-08/ GetRolePolicyResponse"`
		Doc     string   `xml:"GetRolePolicyResult>PolicyDocument"`
	}
	a.Doc = url.PathEscape(f.doc) // RFC 3986
	_ = xml.NewEncoder(w).Encode(a)
}

func (f *fakeIAM) put(w http.ResponseWriter, doc string) {
	var p struct {
		Version   string
		Statement []struct {
			Sid string
		}
	}
	seen := map[string]bool{}
	if err := json.Unmarshal([]byte(doc), &p); err != nil || p.Version != "2012-10-17" || len(p.Statement) == 0 {
		fail(w, http.StatusBadRequest, "MalformedPolicyDocument", "no")
		return
	}
	for _, s := range p.Statement {
		if seen[s.Sid] || strings.Trim(s.Sid, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			fail(w, http.StatusBadRequest, "MalformedPolicyDocument", "Sid")
			return
		}
		seen[s.Sid] = s.Sid != ""
	}
	if len(doc) > 10240 {
		fail(w, http.StatusConflict, "LimitExceeded", "Maximum policy size of 10240 bytes exceeded for role")
		return
	}
	if f.lose > 0 {
		f.lose--
	} else {
		f.doc = doc
	}
	_, _ = io.WriteString(w, `<PutRolePolicyResponse/>`)
}

// denying is a minter that revokes at the fake, with a clock to turn.
func denying(t *testing.T) (*provider.Minter, *fakeIAM, *atomic.Int64) {
	t.Helper()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	f := newSTS(t)
	f.now = now
	iam := &fakeIAM{sts: f, role: "reader"}
	iamServer := httptest.NewTLSServer(iam)
	t.Cleanup(iamServer.Close)
	srv, deps := mintingtest.Serve(t, f)
	deps.Now = now
	s := spec(srv.URL)
	s.Revocation = &v1alpha1.AWSRevocation{Kind: provider.RevokeIAMDeny, RoleARN: denyARN, Endpoint: iamServer.URL}
	m, err := provider.New("cloud", s, deps)
	if err != nil {
		t.Fatal(err)
	}
	return m, iam, &ahead
}

func mintOne(t *testing.T, m *provider.Minter, f *fakeSTS) minting.Credential {
	t.Helper()
	e := evidence(f)
	c, err := m.Mint(t.Context(), request(e), e)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// statement is what a Deny of ours must look like, word for word.
func statement(t *testing.T, c ...minting.Credential) string {
	t.Helper()
	end := c[len(c)-1].Issued.Add(15 * time.Minute).Truncate(time.Second).Truncate(5 * time.Minute).Add(5 * time.Minute).UTC()
	var ids []string
	for _, c := range c {
		ids = append(ids, `"`+roleID+`:`+c.Handle+`"`)
	}
	return `{"Sid":"AttacheRevoke` + end.Format("200601021504") + `","Effect":"Deny","Action":"*","Resource":"*","Condition":{` +
		`"DateLessThan":{"aws:TokenIssueTime":"` + end.Format(time.RFC3339) + `"},"StringEquals":{"aws:userid":[` + strings.Join(ids, ",") + `]}}}`
}

func document(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// middle moves the clock to the middle of a bucket, so that sessions minted
// within a minute end in one.
func middle(ahead *atomic.Int64) {
	now := time.Now()
	ahead.Store(int64(now.Truncate(5 * time.Minute).Add(7*time.Minute + 30*time.Second).Sub(now)))
}

func TestDeny(t *testing.T) {
	m, iam, ahead := denying(t)
	middle(ahead)
	one, two, three := mintOne(t, m, iam.sts), mintOne(t, m, iam.sts), mintOne(t, m, iam.sts)
	if one.RevokeID != roleID+":"+one.Handle {
		t.Errorf("RevokeID %q", one.RevokeID)
	}
	if err := minting.Revoke(t.Context(), m, one); err != nil {
		t.Fatal(err)
	}
	if got, want := iam.policy(), document(statement(t, one)); got != want {
		t.Errorf("policy %s\nwant   %s", got, want)
	}
	q := iam.sts.asked()
	last := q[len(q)-1]
	if last.Get("RoleArn") != denyARN || !strings.Contains(last.Get("Policy"), `"Resource":"`+roleARN+`"`) || strings.Contains(last.Get("Policy"), `"iam:*"`) {
		t.Errorf("the revoker's session: %v", last)
	}
	if err := minting.Revoke(t.Context(), m, two); err != nil {
		t.Fatal(err)
	}
	both := document(statement(t, one, two))
	if got := iam.policy(); got != both {
		t.Errorf("policy %s\nwant   %s", got, both)
	}
	// Again: it is seen to be there, and nothing is written.
	iam.set(both)
	if err := minting.Revoke(t.Context(), m, two); err != nil || iam.did() != "Get" {
		t.Errorf("again: %v, %s", err, iam.did())
	}
	// When they have ended by themselves, their statement goes, and then the policy.
	ahead.Add(int64(20 * time.Minute))
	if err := minting.Revoke(t.Context(), m, three); err != nil {
		t.Fatal(err)
	}
	if got := iam.policy(); got != "" {
		t.Errorf("policy %s, want none", got)
	}
}

func TestDenyKeepsOthers(t *testing.T) {
	const foreign = `{ "Sid":"Mine", "Effect":"Deny","Action":"s3:DeleteBucket","Resource":"*" }`
	m, iam, ahead := denying(t)
	middle(ahead)
	one := mintOne(t, m, iam.sts)
	iam.set(document(foreign))
	if err := minting.Revoke(t.Context(), m, one); err != nil {
		t.Fatal(err)
	}
	compact := `{"Sid":"Mine","Effect":"Deny","Action":"s3:DeleteBucket","Resource":"*"}`
	if got, want := iam.policy(), document(compact, statement(t, one)); got != want {
		t.Errorf("policy %s\nwant   %s", got, want)
	}
	two := mintOne(t, m, iam.sts)
	ahead.Add(int64(20 * time.Minute))
	if err := minting.Revoke(t.Context(), m, two); err != nil {
		t.Fatal(err)
	}
	if got, want := iam.policy(), document(compact); got != want {
		t.Errorf("after their end %s\nwant   %s", got, want)
	}
}

// TestDenyRefuses: what is not understood is not overwritten.
func TestDenyRefuses(t *testing.T) {
	m, iam, ahead := denying(t)
	middle(ahead)
	one := mintOne(t, m, iam.sts)
	ours := statement(t, one)
	var many []minting.Credential
	for i := range 170 {
		c := one
		c.Handle = fmt.Sprintf("cred_%032d", i)
		many = append(many, c)
	}
	many[169].Issued = one.Issued
	for name, doc := range map[string]string{
		"no JSON":        "nonsense",
		"another form":   `{"Version":"2012-10-17","Statement":{"Effect":"Deny"}}`,
		"old version":    `{"Version":"2008-10-17","Statement":[]}`,
		"ours twice":     document(ours, ours),
		"ours allows":    document(strings.Replace(ours, "Deny", "Allow", 1)),
		"ours is less":   document(strings.Replace(ours, `"Action":"*"`, `"Action":"s3:*"`, 1)),
		"ours is nobody": document(strings.Replace(ours, `"`+roleID+":"+one.Handle+`"`, "", 1)),
		"full":           document(statement(t, many...)),
	} {
		t.Run(name, func(t *testing.T) {
			iam.set(doc)
			err := minting.Revoke(t.Context(), m, one)
			if !errors.Is(err, minting.ErrDenied) || iam.did() != "Get" || iam.policy() != doc {
				t.Errorf("Revoke = %v after %s", err, iam.did())
			}
		})
	}
	iam.set("")
	iam.refuse = "AccessDenied"
	if err := minting.Revoke(t.Context(), m, one); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("IAM refuses: %v", err)
	}
	iam.refuse = "LimitExceeded"
	if err := minting.Revoke(t.Context(), m, one); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("the role is full: %v", err)
	}
	iam.refuse = ""
	// What failed is not lost: the next revocation takes it along.
	two := mintOne(t, m, iam.sts)
	if err := minting.Revoke(t.Context(), m, two); err != nil || !strings.Contains(iam.policy(), one.Handle) || !strings.Contains(iam.policy(), two.Handle) {
		t.Errorf("afterwards: %v, %s", err, iam.policy())
	}
}

// TestDenySurvivesAnotherWriter: IAM has no conditional write.
func TestDenySurvivesAnotherWriter(t *testing.T) {
	m, iam, _ := denying(t)
	one := mintOne(t, m, iam.sts)
	iam.lose = 1
	if err := minting.Revoke(t.Context(), m, one); err != nil || !strings.Contains(iam.policy(), one.Handle) {
		t.Errorf("Revoke = %v, policy %s", err, iam.policy())
	}
	two := mintOne(t, m, iam.sts)
	iam.lose = 9
	if err := minting.Revoke(t.Context(), m, two); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("lost for good: %v", err)
	}
}

// TestDenyTogether: many revocations at once are few writes, and none is lost.
func TestDenyTogether(t *testing.T) {
	m, iam, _ := denying(t)
	var all []minting.Credential
	for range 30 {
		all = append(all, mintOne(t, m, iam.sts))
	}
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := minting.Revoke(t.Context(), m, c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range all {
		if !strings.Contains(iam.policy(), `"`+roleID+":"+c.Handle+`"`) {
			t.Errorf("%s is not denied", c.Handle)
		}
	}
	if n := strings.Count(iam.did(), "Put"); n == 0 || n > len(all) {
		t.Errorf("%d writes for %d revocations", n, len(all))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := minting.Revoke(ctx, m, mintOne(t, m, iam.sts)); err == nil {
		t.Error("a revocation that was stopped said it was done")
	}
}

// TestDenyNeedsTheSession: without its id a session could not be revoked, so
// that it is not used.
func TestDenyNeedsTheSession(t *testing.T) {
	m, iam, _ := denying(t)
	iam.sts.lie = func(a *answer) { a.Result.AssumedRole.AssumedRoleID = "" }
	e := evidence(iam.sts)
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("Mint = %v", err)
	}
}

// TestDenyOtherAccount: a role of another account cannot write the policy.
func TestDenyOtherAccount(t *testing.T) {
	m, iam, _ := denying(t)
	e := evidence(iam.sts)
	r := request(e)
	r.Role = "arn:aws:iam::210987654321:role/reader"
	iam.sts.lie = func(a *answer) {
		a.Result.AssumedRole.Arn = strings.Replace(a.Result.AssumedRole.Arn, account, "210987654321", 1)
	}
	c, err := m.Mint(t.Context(), r, e)
	if err != nil {
		t.Fatal(err)
	}
	calls := len(iam.sts.asked())
	if err := minting.Revoke(t.Context(), m, c); !errors.Is(err, minting.ErrDenied) || len(iam.sts.asked()) != calls {
		t.Errorf("Revoke = %v", err)
	}
}
