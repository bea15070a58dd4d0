package pipeline

import (
	"net/http"

	"github.com/attache-dev/attache/policy/awsscope"
)

// mayTouch refuses a call that names objects beside its path where no rule would
// let the agent ask for one of them.
func (x *exchange) mayTouch() *Refusal {
	if len(x.aws.call.Objects) == 0 {
		return nil
	}
	t, err := awsscope.Match(x.awsHost(), x.provider.endpoints)
	if err != nil {
		return awsRefusal(err)
	}
	if err := x.state.Policies.Untouchable(x.policyRequest(), x.aws.call, t); err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: clip(err.Error())}
	}
	return nil
}
