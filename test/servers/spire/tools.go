//go:build tools

// Package spire pins the SPIRE release that build.sh builds.
package spire

import (
	_ "github.com/spiffe/spire/cmd/spire-agent"
	_ "github.com/spiffe/spire/cmd/spire-server"
)
