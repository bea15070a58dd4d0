//go:build !linux

package run

func releaseCode() {}
