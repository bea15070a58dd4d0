package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/destination"
)

func policyCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Check, explain, replay and suggest policies"}
	c.AddCommand(policyCheck(g), policyExplain(g), policyReplay(g), policySuggest(g))
	return c
}

// loadPolicies loads and compiles a folder; the error lists every mistake. What
// only a cluster has is welcome too: place says whose rules count.
func loadPolicies(dir string, place api.Place) (*api.Bundle, *policy.Set, error) {
	b, err := api.LoadFor(api.PlaceReview, dir)
	if err != nil {
		return nil, nil, err
	}
	b.Place = place
	s, err := policy.Compile(b)
	return b, s, b.Located(err)
}

func policyCheck(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "check DIR", Short: "Find every mistake in a folder of documents", Args: cobra.ExactArgs(1), Example: "  attache policy check examples/quickstart",
		RunE: func(c *cobra.Command, args []string) error {
			b, _, err := loadPolicies(args[0], api.PlaceRun)
			var warnings api.Problems
			if err == nil {
				warnings = append(policy.Warnings(b), api.ClusterOnly(b)...)
			}
			if g.json() {
				out := struct {
					Valid    bool         `json:"valid"`
					Problems api.Problems `json:"problems"`
					Warnings api.Problems `json:"warnings"`
					Error    string       `json:"error,omitempty"`
				}{Valid: err == nil, Problems: api.Problems{}, Warnings: append(api.Problems{}, warnings...)}
				if err != nil && !errors.As(err, &out.Problems) {
					out.Error = err.Error()
				}
				if werr := writeJSON(c.OutOrStdout(), out); werr != nil {
					return werr
				}
				if err != nil {
					return exit(1)
				}
				return nil
			}
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is good: %s, %s (version %s)\n", args[0], count(len(b.Policies), "policy", "policies"), count(len(b.Providers), "provider", "providers"), b.Version)
			return err
		},
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// explainFlags describe a request that is not made.
type explainFlags struct {
	as, namespace, account, purpose, human string
	labels, headers                        []string
	at, data                               string
}

func policyExplain(g *global) *cobra.Command {
	var f explainFlags
	c := &cobra.Command{
		Use:     "explain DIR --as SPIFFE-ID METHOD URL",
		Short:   "Say which rule decides a request, why, and with which credential",
		Example: `  attache policy explain examples/quickstart --as spiffe://attache.local/agent/curl GET https://api.example.com/v1/me`,
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			place := api.PlaceRun
			if c.Flags().Changed("namespace") {
				place = api.PlaceReview
			}
			b, set, err := loadPolicies(args[0], place)
			if err != nil {
				return err
			}
			r, err := f.request(strings.ToUpper(args[1]), args[2])
			if err != nil {
				return err
			}
			x := set.Explain(r)
			if err := destination.CheckPath(r.Path); err != nil && x.Decision.Verdict != policy.Deny && !x.Decision.RawPaths {
				fmt.Fprintln(c.ErrOrStderr(), "note: without rawPaths this path is refused:", err)
			}
			if x.Decision.Grant.AWS != nil && x.Decision.Verdict == policy.Inject {
				if err := f.explainAWS(&x, set, b, r, args[2]); err != nil {
					return err
				}
			}
			if g.json() {
				err = writeJSON(c.OutOrStdout(), x)
			} else {
				_, err = fmt.Fprint(c.OutOrStdout(), x.String())
			}
			if err == nil && x.Decision.Verdict == policy.Deny {
				return exit(3) // so that scripts can ask
			}
			return err
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.as, "as", "", "SPIFFE ID of the workload (required)")
	fl.StringVar(&f.namespace, "namespace", "local", "namespace of the workload; given, namespaces count as in a cluster")
	fl.StringVar(&f.account, "service-account", "", "service account (default the last part of the SPIFFE ID)")
	fl.StringSliceVar(&f.labels, "label", nil, "label of the workload, key=value")
	fl.StringArrayVar(&f.headers, "header", nil, "header of the request, Name: value")
	fl.StringVar(&f.data, "data", "", "body of the request, or @FILE; calls to AWS are read from it")
	fl.StringVar(&f.purpose, "task", "", "purpose of an open task")
	fl.StringVar(&f.human, "human", "", "subject the task is for")
	fl.StringVar(&f.at, "at", "", "time of the request, RFC 3339 (default now)")
	if err := c.MarkFlagRequired("as"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func (f *explainFlags) request(method, target string) (*policy.Request, error) {
	usage := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{run.ErrUsage}, args...)...)
	}
	id, err := spiffeid.FromString(f.as)
	if err != nil {
		return nil, usage("--as: %v", err)
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, usage("URL: %v", err)
	}
	d, err := destination.FromURL(u)
	if err != nil {
		return nil, usage("URL: %v", err)
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	w := &identity.Workload{ID: id, Namespace: f.namespace, ServiceAccount: f.account, Labels: map[string]string{}, RunID: "explain"}
	if w.ServiceAccount == "" {
		w.ServiceAccount = id.Path()[strings.LastIndexByte(id.Path(), '/')+1:]
	}
	for _, l := range f.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return nil, usage("--label is %q; must be key=value", l)
		}
		w.Labels[k] = v
	}
	r := &policy.Request{Host: d.Host, Port: d.Port, Scheme: d.Scheme, Method: method, Path: path, Query: u.Query(), Header: http.Header{},
		Protocol: policy.HTTP, Workload: w, Time: time.Now()}
	for _, h := range f.headers {
		k, v, ok := strings.Cut(h, ":")
		if !ok {
			return nil, usage("--header is %q; must be Name: value", h)
		}
		r.Header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	if f.data != "" && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded") // as curl does
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		r.Protocol = policy.GRPC
	}
	if f.at != "" {
		if r.Time, err = time.Parse(time.RFC3339, f.at); err != nil {
			return nil, usage("--at is %q; must look like 2026-01-02T15:04:05Z", f.at)
		}
	}
	if f.purpose != "" || f.human != "" {
		r.Task = &identity.Task{ID: "explain", Purpose: f.purpose, OpenedBy: "launcher", Opened: r.Time, Expires: r.Time.Add(time.Hour), WorkloadID: id}
		if f.human != "" {
			r.Task.Human = &identity.Human{Subject: f.human}
		}
	}
	return r, nil
}
