package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// unused leaves flags that c inherits, and has no use for, out of its help, and
// refuses them.
func unused(c *cobra.Command, names ...string) *cobra.Command {
	help := c.HelpFunc()
	c.SetHelpFunc(func(c *cobra.Command, args []string) {
		var hidden []*pflag.Flag
		for _, n := range names {
			if f := c.InheritedFlags().Lookup(n); f != nil && !f.Hidden {
				f.Hidden = true
				hidden = append(hidden, f)
			}
		}
		help(c, args)
		for _, f := range hidden { // they are those of other commands, too
			f.Hidden = false
		}
	})
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		for _, n := range names {
			if f := c.InheritedFlags().Lookup(n); f != nil && f.Changed {
				return fmt.Errorf("--%s has no meaning for %s", n, c.CommandPath())
			}
		}
		if check == nil {
			return nil
		}
		return check(c, args)
	}
	return c
}
