// Command pack writes the project's images as OCI archives, without docker and
// without a registry: `make images`. They are for `ctr images import`, `podman
// load` or `skopeo copy oci-archive:...`. The same sources give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/attache-dev/attache/internal/oci"
	"github.com/attache-dev/attache/internal/release"
)

func main() {
	out := flag.String("out", "bin/images", "folder for the archives")
	registry := flag.String("registry", "ghcr.io/attache-dev", "registry in the images' names")
	version := flag.String("version", "dev", "version of the programs, and tag")
	arches := flag.String("arch", "amd64,arm64", "architectures")
	flag.Parse()
	for _, arch := range strings.Split(*arches, ",") {
		if err := pack(*out, *registry, *version, arch); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func pack(out, registry, version, arch string) error {
	programs, err := os.MkdirTemp("", "attache-pack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(programs)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, i := range release.Images(registry, version, arch, programs) {
		for _, f := range i.Files {
			if err := build(f.Source, filepath.Base(f.Source), version, arch); err != nil {
				return err
			}
		}
		name := strings.TrimPrefix(i.Entrypoint[0], "/")
		if err := write(i, filepath.Join(out, name+"-"+arch+".tar")); err != nil {
			return err
		}
	}
	return nil
}

// build compiles as the Dockerfile does.
func build(to, name, version, arch string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -X github.com/attache-dev/attache/internal/version.version="+version, "-o", to, "./cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for %s: %w: %s", name, arch, err, text)
	}
	return nil
}

func write(i oci.Image, file string) error {
	digest, err := i.WriteFile(file)
	if err == nil {
		fmt.Println(file, i.Name, digest)
	}
	return err
}
