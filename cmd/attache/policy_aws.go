package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
)

// maxData bounds a body that is read for an explanation, as the proxy bounds
// those that it reads.
const maxData = 16 << 20

// explainAWS adds what a call asks of AWS, and with which session policy it
// would be signed. An error is one of how the command was called.
func (f *explainFlags) explainAWS(x *policy.Explanation, set *policy.Set, b *api.Bundle, r *policy.Request, target string) error {
	i := slices.IndexFunc(b.Providers, func(p v1alpha1.CredentialProvider) bool { return p.Metadata.Name == x.Decision.Grant.Provider })
	spec := b.Providers[i].Spec.AWS // the set was compiled from it
	body, err := readData(f.data)
	if err != nil {
		return err
	}
	hr, err := http.NewRequest(r.Method, target, http.NoBody)
	if err != nil {
		return fmt.Errorf("%w: %w", run.ErrUsage, err)
	}
	hr.Header = r.Header.Clone()
	role, err := lastRole(spec, x, r)
	if err != nil {
		_ = x.Refuse(fmt.Errorf("role: %w", err))
		return nil
	}
	q := awsscope.Request{
		Method: r.Method, Host: r.Host, RawPath: hr.URL.EscapedPath(), Header: hr.Header, Body: body,
		BodyComplete: f.data != "" || r.Method == http.MethodGet || r.Method == http.MethodHead,
		Account:      role.Account, Partition: role.Partition,
		Endpoints: endpoints(spec), PartitionKeys: spec.PartitionKeys, NoACLs: awsrole.IsMinIO(spec.RoleARN), Cleartext: r.Scheme == "http",
	}
	if r.Port != 443 {
		q.Host = net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
	}
	if err := claim(&q, hr, spec.Region); err != nil {
		_ = x.Refuse(err)
		return nil
	}
	if err := x.ExplainAWS(q, *spec.NoEscapes, r.Time); errors.Is(err, awsscope.ErrBodyNeeded) {
		fmt.Fprintln(os.Stderr, "note: what this call does stands in its body; give it with --data")
	}
	if x.Decision.Verdict == policy.Inject {
		x.Credential.AWS.SessionPolicy = mayTouch(x, set, r, q)
	}
	return nil
}

// mayTouch returns the session policy, or none and refuses the call if it names
// an object that no rule lets the agent ask for.
func mayTouch(x *policy.Explanation, set *policy.Set, r *policy.Request, q awsscope.Request) string {
	call, err := awsscope.Recognise(q)
	if err == nil {
		var t awsscope.Target
		if t, err = awsscope.Match(q.Host, q.Endpoints); err == nil {
			err = set.Untouchable(r, call, t)
		}
	}
	if err != nil {
		_ = x.Refuse(err)
		return ""
	}
	return x.Credential.AWS.SessionPolicy
}

// claim fills in what the call's signature claims; for a call without one, what
// its SDK would sign for.
func claim(q *awsscope.Request, hr *http.Request, region string) error {
	c, err := sigv4.Parse(hr)
	switch {
	case err == nil:
		q.ClaimedService, q.ClaimedRegion = c.Service, c.Region
		sigv4.Strip(hr)
	case errors.Is(err, sigv4.ErrUnsigned):
		q.ClaimedService, q.ClaimedRegion, err = awsscope.Claim(q.Host, region, q.Endpoints)
	}
	q.RawQuery = hr.URL.RawQuery
	return err
}

// lastRole is the role in whose account the call is made: the end of the chain.
func lastRole(spec *v1alpha1.AWS, x *policy.Explanation, r *policy.Request) (awsrole.ARN, error) {
	role := spec.RoleARN
	if own := x.Decision.Grant.Role; own != "" {
		role = own
	}
	if spec.Chain != nil {
		role = spec.Chain.RoleARN
	}
	text, err := awsrole.Expand(role, r.Workload, r.Task)
	if err != nil {
		return awsrole.ARN{}, err
	}
	x.Credential.Role = text
	arn, err := awsrole.Parse(text)
	if !strings.HasPrefix(arn.Partition, "aws") {
		arn.Partition = "aws" // MinIO names its resources as AWS does
	}
	return arn, err
}

func endpoints(spec *v1alpha1.AWS) []awsscope.Endpoint {
	var list []awsscope.Endpoint
	for _, e := range spec.Endpoints {
		host := e.Host
		if e.Port != 443 {
			host = net.JoinHostPort(host, strconv.Itoa(e.Port))
		}
		list = append(list, awsscope.Endpoint{Host: host, Service: e.Service, Region: e.Region, VirtualHost: e.VirtualHost})
	}
	return list
}

// readData returns the body that --data gives.
func readData(data string) ([]byte, error) {
	name, file := strings.CutPrefix(data, "@")
	if !file {
		return []byte(data), nil
	}
	in, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: --data: %w", run.ErrUsage, err)
	}
	defer func() { _ = in.Close() }()
	body, err := io.ReadAll(io.LimitReader(in, maxData+1))
	if err == nil && len(body) > maxData {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxData)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: --data: %w", run.ErrUsage, err)
	}
	return body, nil
}
