//go:build !linux

package run

func releaseStartup() {}
