package pipeline

import "github.com/attache-dev/attache/injector/sigv4"

// AWSCode is what a service would call a failure of this status.
func AWSCode(p sigv4.Protocol, status int) string { return awsCode(p, status) }
