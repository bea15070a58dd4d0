package run

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// releaseCode takes the pages of our own code and constants that starting and
// rare events have touched (schemas, handshakes, parsers' tables) off the
// process's account: they stay in the page cache and come back when they are
// used. It is a matter of memory only, so errors do not matter.
func releaseCode() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		var from, to uintptr
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil || !strings.HasSuffix(line, " "+exe) {
			continue
		}
		if perms == "r-xp" || perms == "r--p" { // never written: nothing is lost
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
		}
	}
}
