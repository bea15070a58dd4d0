// Package release says what the project's images hold, for the packer that
// needs no registry (package oci) and for end-to-end tests.
// The Dockerfile makes the same of a base image.
package release

import (
	"path"

	"github.com/attache-dev/attache/internal/oci"
)

// Users of the images. The sidecar's is exempt from redirection, so no other
// container of a pod may have it; package webhook/inject says the same.
const (
	SidecarUser = "64200:64200"
	ControlUser = "65532:65532"
)

// Images of one architecture (GOARCH) and tag below registry, from the
// programs in dir.
func Images(registry, tag, arch, dir string) []oci.Image {
	image := func(name, user string) oci.Image {
		return oci.Image{
			Name: registry + "/" + name + ":" + tag, Architecture: arch, User: user, Entrypoint: []string{"/" + name},
			Labels: map[string]string{
				"org.opencontainers.image.title":   name,
				"org.opencontainers.image.version": tag,
				"org.opencontainers.image.source":  "https://github.com/attache-dev/attache",
			},
			Files: []oci.File{{Path: "/" + name, Source: path.Join(dir, name)}},
		}
	}
	sidecar := image("attache-sidecar", SidecarUser)
	// For the redirect as the sidecar's user. It gives nothing to the sidecar
	// itself, whose container drops all capabilities.
	sidecar.Files[0].Capabilities = []oci.Capability{oci.NetAdmin}
	// Beside the store that only its pod can open: attache audit search, show,
	// verify there, by kubectl exec.
	control := image("attache-control", ControlUser)
	control.Files = append(control.Files, oci.File{Path: "/attache", Source: path.Join(dir, "attache")})
	return []oci.Image{sidecar, control}
}
