package footprint

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// codePages are the mappings of our own code and constants. It is a matter of
// memory only, so errors do not matter anywhere here.
type codePages [][2]uintptr

// ownCode finds the mappings and cuts them into pieces of codePiece bytes. At a
// fault the kernel maps up to 64 KiB of what the page cache has, but not beyond
// the mapping: small ones keep what is not used off the process's account.
// Alternating advice is what makes them differ; for a file that is in the page
// cache it means nothing else.
func ownCode() codePages {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer f.Close()
	var pages codePages
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		var from, to uintptr
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil || !strings.HasSuffix(line, " "+exe) {
			continue
		}
		if perms == "r-xp" || perms == "r--p" { // never written: nothing is lost
			pages = append(pages, [2]uintptr{from, to})
		}
	}
	for _, p := range pages {
		for at := p[0]; at+codePiece <= p[1]; at += 2 * codePiece {
			madvise(at, codePiece, syscall.MADV_RANDOM)
		}
	}
	return pages
}

const codePiece = 8 << 10

// release takes the pages that starting and rare events have touched (schemas,
// handshakes, parsers' tables) off the process's account: they stay in the page
// cache and come back when they are used.
func (c codePages) release() {
	for _, p := range c {
		madvise(p[0], p[1]-p[0], syscall.MADV_DONTNEED)
	}
}

func madvise(at, n uintptr, advice int) {
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, at, n, uintptr(advice))
}
