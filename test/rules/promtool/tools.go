//go:build tools

// Package promtool pins the promtool that build.sh builds.
package promtool

import _ "github.com/prometheus/prometheus/cmd/promtool"
