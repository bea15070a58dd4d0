//go:build !linux

package run

type codePages struct{}

func ownCode() codePages { return codePages{} }

func (codePages) release() {}
