// Command filecap gives programs the file capability that package release gives
// them in the images that it packs; the Dockerfile runs it, since its builder
// image has no setcap.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/oci"
)

func main() {
	value := oci.CapabilityData([]oci.Capability{oci.NetAdmin})
	for _, file := range os.Args[1:] {
		if err := unix.Setxattr(file, "security.capability", []byte(value), 0); err != nil {
			fmt.Fprintf(os.Stderr, "filecap: %s: %v: the builder must be root with CAP_SETFCAP, on a file system with extended attributes\n", file, err)
			os.Exit(1)
		}
	}
}
