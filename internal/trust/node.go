package trust

import (
	"fmt"
	"strings"
)

// NodeVersion is a version of Node.js; the zero value is none.
type NodeVersion struct{ Major, Minor int }

// String formats v as major.minor.
func (v NodeVersion) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// UsesEnvProxy reports whether this Node honours NODE_USE_ENV_PROXY in fetch
// and in agents that take proxyEnv: since 22.21 and 24.5, never in 23.
func (v NodeVersion) UsesEnvProxy() bool {
	switch v.Major {
	case 22:
		return v.Minor >= 21
	case 24:
		return v.Minor >= 5
	default:
		return v.Major > 24
	}
}

// ParseNodeVersion reads the output of node --version ("v22.21.0").
func ParseNodeVersion(s string) (NodeVersion, error) {
	var v NodeVersion
	if _, err := fmt.Sscanf(strings.TrimSpace(s), "v%d.%d.", &v.Major, &v.Minor); err != nil {
		return NodeVersion{}, fmt.Errorf("node version %.40q is not of the form v22.21.0", s)
	}
	return v, nil
}
