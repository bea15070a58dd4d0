//go:build !linux

package footprint

type codePages struct{}

func ownCode() codePages { return codePages{} }

func (codePages) release() {}
