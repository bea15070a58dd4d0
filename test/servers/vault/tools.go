//go:build tools

// Package vault pins the Vault release that build.sh builds.
package vault

import _ "github.com/hashicorp/vault"
