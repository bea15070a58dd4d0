package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/attache-dev/attache/internal/oci"
)

// Images packs what every node needs, pause and CoreDNS, into dir and returns
// the archives. It compiles, so it runs before the sandbox has no network.
func Images(ctx context.Context, root, bin, dir string) ([]string, error) {
	pause := filepath.Join(bin, "pause")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", pause, "./test/cluster/node/pause")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build pause: %w: %s", err, out)
	}
	var archives []string
	for _, i := range []oci.Image{
		{Name: "attache.test/pause:e2e", User: "65535:65535", Entrypoint: []string{"/pause"}, Files: []oci.File{{Path: "/pause", Source: pause}}},
		{Name: "attache.test/coredns:e2e", User: "65532:65532", Entrypoint: []string{"/coredns"}, Files: []oci.File{{Path: "/coredns", Source: filepath.Join(bin, "coredns")}}},
	} {
		archive, err := Pack(dir, i)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// Pack writes the image to a file in dir that bears its name.
func Pack(dir string, i oci.Image) (string, error) {
	name := i.Name[strings.LastIndexByte(i.Name, '/')+1:]
	archive := filepath.Join(dir, strings.ReplaceAll(name, ":", "-")+".tar")
	_, err := i.WriteFile(archive)
	return archive, err
}

func (n *Node) coreDNS(ctx context.Context, hosts []string) error {
	line := Address + " " + strings.Join(append([]string{"node.test"}, hosts...), " ")
	text := strings.NewReplacer("@HOSTS@", line, "@DNS@", DNS).Replace(dnsManifests)
	_, err := n.Kubectl(ctx, text, "apply", "-f", "-")
	return err
}
