package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/attache-dev/attache/internal/iampolicy"
	"github.com/attache-dev/attache/policy/awsscope"
)

// ExplainedAWS is what a call asks of AWS, and the session that would sign it.
type ExplainedAWS struct {
	Granularity string   `json:"granularity"`
	OnTooLarge  string   `json:"onTooLarge"`
	Service     string   `json:"service,omitempty"`
	Operation   string   `json:"operation,omitempty"`
	Region      string   `json:"region,omitempty"`
	Account     string   `json:"account,omitempty"`
	Actions     []string `json:"actions,omitempty"`
	Resources   []string `json:"resources,omitempty"`
	// Scope is request or action-only: how much of the call was understood.
	Scope string `json:"scope,omitempty"`
	// HandsOutCredentials says that the answer is a credential or a secret, and
	// Answer what becomes of it: seal or pass.
	HandsOutCredentials bool   `json:"handsOutCredentials,omitempty"`
	Answer              string `json:"answer,omitempty"`
	// UsedGranularity differs from Granularity where that was too large.
	UsedGranularity string `json:"usedGranularity,omitempty"`
	// SessionPolicy is the text that STS would get.
	SessionPolicy string `json:"sessionPolicy,omitempty"`
}

// ExplainAWS adds to the explanation of a call with a credential of an aws
// provider what the call asks of AWS and the session policy that STS would get
// at the time now. A call that is refused becomes a denial; the error is why. It
// leaves other explanations as they are.
func (x *Explanation) ExplainAWS(r awsscope.Request, noEscapes bool, now time.Time) error {
	g := x.Decision.Grant.AWS
	if g == nil || x.Credential == nil || x.Credential.AWS == nil {
		return nil
	}
	a := x.Credential.AWS
	call, err := awsscope.Recognise(r)
	if err != nil {
		return x.Refuse(err)
	}
	a.Service, a.Operation, a.Region, a.Account = call.Service, call.Operation, call.Region, call.Account
	a.Scope, a.HandsOutCredentials = string(call.ScopeKind), call.HandsOutCredentials
	if call.ScopeKind == awsscope.ScopeActionOnly && x.Credential.ScopeSource == "derived" {
		x.Credential.ScopeSource = a.Scope
	}
	for _, access := range call.Access {
		a.Actions = append(a.Actions, access.Action)
		for _, p := range access.Resources {
			a.Resources = append(a.Resources, string(p))
		}
	}
	a.Actions, a.Resources = unique(a.Actions), unique(a.Resources)
	if err := x.Decision.MayHandOut(call); err != nil {
		return x.Refuse(err)
	}
	if call.HandsOutCredentials {
		a.Answer = string(x.Decision.Answers)
	}
	text, used, err := g.SessionPolicy(call, noEscapes)
	if err != nil {
		return x.Refuse(err)
	}
	a.UsedGranularity = string(used)
	a.SessionPolicy = iampolicy.End(text, now.Add(x.Decision.Grant.TTL))
	return nil
}

// Refuse makes the explanation that of a call which its rule allows, but which
// is refused before anything is minted. It returns err, the reason.
func (x *Explanation) Refuse(err error) error {
	x.Verdict, x.Decision.Verdict = Deny.String(), Deny
	x.Reason += "; but the call is refused: " + err.Error()
	return err
}

func explainAWS(g *AWSGrant) *ExplainedAWS {
	if g == nil {
		return nil
	}
	x := &ExplainedAWS{Granularity: string(g.Granularity), OnTooLarge: string(g.OnTooLarge)}
	if x.OnTooLarge == "" {
		x.OnTooLarge = onTooLargeDeny
	}
	return x
}

func (a *ExplainedAWS) write(b *strings.Builder) {
	if a.Operation != "" {
		fmt.Fprintf(b, "  call        %s %s", a.Service, a.Operation)
		if a.Region != "" {
			fmt.Fprintf(b, " in %s", a.Region)
		}
		if a.Account != "" {
			fmt.Fprintf(b, ", account %s", a.Account)
		}
		b.WriteByte('\n')
	}
	if len(a.Actions) > 0 {
		fmt.Fprintf(b, "  actions     %s\n", strings.Join(a.Actions, "\n              "))
		fmt.Fprintf(b, "  resources   %s\n", strings.Join(a.Resources, "\n              "))
	}
	if a.Scope != "" {
		fmt.Fprintf(b, "  scope       %s\n", a.Scope)
	}
	if a.Answer != "" {
		fmt.Fprintf(b, "  answer      holds secrets: %s\n", a.Answer)
	}
	fmt.Fprintf(b, "  granularity %s, too large: %s\n", a.Granularity, a.OnTooLarge)
	if a.SessionPolicy == "" {
		return
	}
	fmt.Fprintf(b, "  session policy by granularity %s, %d of %d characters\n", a.UsedGranularity, len(a.SessionPolicy), awsscope.MaxPolicy)
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, []byte(a.SessionPolicy), "    ", "  "); err != nil {
		pretty.WriteString(a.SessionPolicy)
	}
	fmt.Fprintf(b, "    %s\n", pretty.String())
}
