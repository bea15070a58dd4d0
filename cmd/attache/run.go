package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/version"
)

func runCommand(g *global) *cobra.Command {
	o := run.Options{}
	var runAs string
	c := &cobra.Command{
		Use:   "run --config DIR [flags] -- COMMAND [ARG...]",
		Short: "Run an agent behind Attaché",
		Long: `Run starts COMMAND unchanged in a sandbox whose programs use Attaché's proxy
and trust its CA, and ends with COMMAND's exit status. Real credentials are kept
from its environment and files; SDKs that insist on one get a placeholder.`,
		Example: `  attache run --config examples/quickstart -- curl https://api.example.com/v1/me
  attache run --config DIR --task "reconcile invoices" --human-token-file token.jwt -- python3 agent.py`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if err := sandbox.Harden(); err != nil {
				return err
			}
			out := os.Stderr
			if o.LogFile != "" {
				f, err := run.OpenLog(o.LogFile)
				if err != nil {
					return err
				}
				defer f.Close() //nolint:errcheck // each line is written at once
				out = f
			}
			log, err := g.logger(out)
			if err != nil {
				return err
			}
			if o.User, err = parseUser(runAs); err != nil {
				return err
			}
			o.Command, o.State, o.Log, o.Version = args, g.state, log, version.Get().Version
			status, err := run.Run(c.Context(), o)
			if errors.Is(err, run.ErrUsage) {
				return err
			}
			if err != nil {
				return failure{err, max(1, status)}
			}
			if status != 0 {
				return exit(status)
			}
			return nil
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.Config, "config", "c", "", "folder of CredentialProvider, AccessPolicy and AttacheConfig documents (default $ATTACHE_CONFIG)")
	f.StringVar(&o.Name, "name", "", "workload name, the last part of the SPIFFE ID (default the configuration's, then the command's)")
	f.StringVar(&o.Owner, "owner", "", "accountable owner, for the records")
	f.StringVar(&o.Task, "task", "", "open a task with this purpose")
	f.DurationVar(&o.TaskTTL, "task-ttl", 0, "lifetime of the task (default the configured maximum)")
	f.StringVar(&o.HumanTokenFile, "human-token-file", "", "file with the OpenID token of the human the task is for")
	f.StringVar(&o.LogFile, "log-file", "", "append the log to this file, which the agent does not see, instead of standard error")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:0", "loopback address of the proxy")
	f.StringSliceVar(&o.Keep, "keep-env", nil, "pass these variables on although they look like credentials")
	f.StringSliceVar(&o.NoProxy, "no-proxy", nil, "hosts that the agent reaches directly")
	f.StringVar(&runAs, "user", "", "run the agent as this user (name or uid:gid); needs root")
	f.BoolVar(&o.OnlyProxy, "only-proxy", false, "let the agent open TCP connections to Attaché's ports only")
	f.StringVar(&o.Isolate, "isolate", "", "give the agent a network of its own whose only way out is Attaché: always (the value of --isolate alone), or auto: where this machine can")
	f.Lookup("isolate").NoOptDefVal = run.IsolateAlways
	f.BoolVar(&o.UnsafeSameUser, "unsafe-same-user", false, "run although the agent cannot be confined here; every record says so")
	f.BoolVarP(&o.Quiet, "quiet", "q", false, "print nothing about the start")
	return c
}

// parseUser reads "name" or "uid:gid"; empty means the caller's own.
func parseUser(s string) (*sandbox.User, error) {
	if s == "" {
		return nil, nil
	}
	bad := fmt.Errorf("%w: --user is %q; must be a user's name or uid:gid", run.ErrUsage, s)
	if uid, gid, ok := strings.Cut(s, ":"); ok {
		u, err1 := strconv.ParseUint(uid, 10, 32)
		g, err2 := strconv.ParseUint(gid, 10, 32)
		if err1 != nil || err2 != nil {
			return nil, bad
		}
		return &sandbox.User{UID: uint32(u), GID: uint32(g)}, nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return nil, bad
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		return nil, bad
	}
	out := &sandbox.User{UID: uint32(uid), GID: uint32(gid)}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of %s: %w", s, err)
	}
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			out.Groups = append(out.Groups, uint32(n))
		}
	}
	return out, nil
}
