package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/internal/run"
)

func issuerCommand() *cobra.Command {
	c := &cobra.Command{Use: "issuer", Short: "The embedded identity issuer"}
	var config, url, agent string
	export := &cobra.Command{
		Use: "export DIR", Short: "Write discovery document and keys for static hosting", Args: cobra.ExactArgs(1),
		Long: `Export writes DIR/.well-known/openid-configuration and DIR/keys, to be served at
the issuer's URL by any web host: clouds cannot reach a laptop. The keys must
outlive this process, so they live in an ssh-agent (ECDSA P-256).`,
		Example: `  ssh-agent -a ~/.attache-agent.sock; ssh-keygen -t ecdsa -b 256 -f k; SSH_AUTH_SOCK=… ssh-add k; rm k
  attache issuer export --url https://issuer.example.com --ssh-agent ~/.attache-agent.sock public/
  attache issuer export --cluster --issuer-url https://oidc.example.com/cluster-1 public/`,
		RunE: func(c *cobra.Command, args []string) error {
			cfg := issuer.Config{URL: url, Keys: issuer.SSHAgent{Socket: agent}}
			td := "attache.local"
			if config != "" {
				b, err := api.Load(config)
				if err != nil {
					return err
				}
				s := b.Config.Spec
				td = s.TrustDomain
				if cfg.URL == "" {
					cfg.URL = s.Identity.IssuerURL
				}
				if agent == "" {
					cfg.Keys = issuer.SSHAgent{Socket: s.Identity.SSHAgent}
				}
			}
			if a, _ := cfg.Keys.(issuer.SSHAgent); a.Socket == "" {
				return fmt.Errorf("%w: name the ssh-agent that holds the signing key with --ssh-agent or spec.identity.sshAgent: keys in memory die with their process, so what is exported of them verifies nothing", run.ErrUsage)
			}
			if cfg.URL == "" {
				return fmt.Errorf("%w: name the URL where the files will be served with --url or spec.identity.issuerURL", run.ErrUsage)
			}
			var err error
			if cfg.TrustDomain, err = spiffeid.TrustDomainFromString(td); err != nil {
				return err
			}
			i, err := issuer.New(c.Context(), cfg)
			if err != nil {
				return err
			}
			if err := i.Export(c.Context(), args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "wrote %s%s and %s%s for %s\n", args[0], issuer.DiscoveryPath, args[0], issuer.KeysPath, i.URL())
			return err
		},
	}
	f := export.Flags()
	f.StringVarP(&config, "config", "c", "", "folder of documents, for trust domain, URL and agent")
	f.StringVar(&url, "url", "", "issuer URL, https")
	f.StringVar(&agent, "ssh-agent", "", "socket of the ssh-agent that holds the key")
	c.AddCommand(acceptsCluster(export, "export the keys of a cluster's issuer"))
	return c
}
