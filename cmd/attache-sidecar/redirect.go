package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/proxy/redirect"
)

// redirectFlags are those that webhook/inject writes.
type redirectFlags struct {
	toPort       uint16
	exemptUID    uint32
	apiServers   []string
	nameservers  []string
	excludeCIDRs []string
	excludePorts []string
	strict       bool
}

func redirectCommand() *cobra.Command { return redirectCommandFor(&redirectFlags{}) }

func redirectCommandFor(f *redirectFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "redirect --to-port PORT --exempt-uid UID",
		Short: "Redirect the pod's outbound connections to the sidecar",
		Long: `redirect installs nftables rules in the pod's network namespace and ends. It
may be run again: one transaction replaces all rules. It needs CAP_NET_ADMIN, as
root or by a file capability, and nothing else.`,
		Example: "  attache-sidecar redirect --to-port=15001 --exempt-uid=64200 --nameservers=10.96.0.10",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			if err := redirect.Apply(cfg); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "attache-sidecar: TCP goes to port %d, but for that of user %d\n", cfg.Port4, cfg.SidecarUID)
			return err
		},
	}
	fl := c.Flags()
	fl.Uint16Var(&f.toPort, "to-port", 0, "port of the sidecar's listeners on 127.0.0.1 and [::1]")
	fl.Uint32Var(&f.exemptUID, "exempt-uid", 0, "user id of the sidecar, which nothing else in the pod runs as")
	fl.StringSliceVar(&f.apiServers, "apiserver", nil, "kube-apiserver (ADDRESS:PORT), reached directly")
	fl.StringSliceVar(&f.nameservers, "nameservers", nil, "resolvers (ADDRESS), reached directly")
	fl.StringSliceVar(&f.excludeCIDRs, "exclude-cidrs", nil, "networks that are reached directly: a bypass")
	fl.StringSliceVar(&f.excludePorts, "exclude-ports", nil, "TCP ports that are reached directly: a bypass")
	fl.BoolVar(&f.strict, "strict", false, "reject everything but TCP, ICMP and DNS to the resolvers")
	return c
}

func (f *redirectFlags) config() (redirect.Config, error) {
	c := redirect.Config{Port4: f.toPort, Port6: f.toPort, SidecarUID: f.exemptUID, Strict: f.strict}
	for _, s := range f.apiServers {
		a, err := netip.ParseAddrPort(strings.TrimSpace(s))
		if err != nil {
			return c, usage("--apiserver is %q; must be ADDRESS:PORT", s)
		}
		c.APIServer = append(c.APIServer, a)
	}
	for _, s := range f.nameservers {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil {
			return c, usage("--nameservers is %q; must be an address", s)
		}
		c.Nameservers = append(c.Nameservers, a)
	}
	for _, s := range f.excludeCIDRs {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return c, usage("--exclude-cidrs is %q; must be a network such as 10.0.0.0/8", s)
		}
		c.ExcludedCIDRs = append(c.ExcludedCIDRs, p)
	}
	for _, s := range f.excludePorts {
		p, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
		if err != nil {
			return c, usage("--exclude-ports is %q; must be a port", s)
		}
		c.ExcludedPorts = append(c.ExcludedPorts, uint16(p))
	}
	return c, nil
}
