package oci_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/internal/oci"
)

// image is one of every kind of file.
func image(t *testing.T, program string) oci.Image {
	t.Helper()
	return oci.Image{
		Name: "images.test/app:1", Architecture: "arm64", User: "64200:64200", Dir: "/tmp",
		Entrypoint: []string{"/app"}, Cmd: []string{"run"}, Env: []string{"PATH=/bin"},
		Files: []oci.File{
			{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
			{Path: "/app", Source: program, Capabilities: []oci.Capability{oci.NetAdmin}},
			{Path: "/etc/deep/passwd", Data: []byte("app:x:64200:64200::/:\n")},
			{Path: "/bin/link", Link: "../app"},
		},
	}
}

func program(t *testing.T, modified time.Time) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "app")
	if err := errors.Join(os.WriteFile(name, []byte("a program"), 0o700), os.Chtimes(name, modified, modified)); err != nil {
		t.Fatal(err)
	}
	return name
}

func pack(t *testing.T, i oci.Image) ([]byte, oci.Digest) {
	t.Helper()
	var b bytes.Buffer
	d, err := i.Write(&b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), d
}

// TestSameFilesSameBytes: neither the order of the files nor their times nor
// where they lie changes a byte; what they hold does.
func TestSameFilesSameBytes(t *testing.T) {
	a := image(t, program(t, time.Unix(1, 0)))
	b := image(t, program(t, time.Unix(2_000_000_000, 0)))
	slices.Reverse(b.Files)
	x, dx := pack(t, a)
	y, dy := pack(t, b)
	if !bytes.Equal(x, y) || dx != dy {
		t.Errorf("two images of the same files: %s and %s", dx, dy)
	}
	// Known once, known on every machine: a change here changes the digest of
	// every image that is packed without a change of its files.
	if want := oci.Digest("sha256:2d999176a762bd04899ed89001143a29f01c13d70f4fa670431e132e4531d4bf"); dx != want {
		t.Errorf("got %s, want %s", dx, want)
	}
	if err := os.WriteFile(b.Files[slices.IndexFunc(b.Files, func(f oci.File) bool { return f.Path == "/app" })].Source, []byte("b program"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, dz := pack(t, b); dz == dx {
		t.Error("another program has the same digest")
	}
}

// TestLayout follows the digests from the index to the files, as an importer
// does.
func TestLayout(t *testing.T) {
	archive, digest := pack(t, image(t, program(t, time.Now())))
	parts := map[string][]byte{}
	for h, b := range entries(t, archive) {
		parts[h.Name] = b
	}
	if got := string(parts["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Size        int
			Annotations map[string]string
			Platform    struct{ Architecture, OS string }
		}
	}
	parse(t, parts["index.json"], &index)
	m := index.Manifests[0]
	if m.Digest != string(digest) || m.Platform.Architecture != "arm64" || m.Platform.OS != "linux" ||
		m.Annotations["io.containerd.image.name"] != "images.test/app:1" || m.Annotations["org.opencontainers.image.ref.name"] != "1" {
		t.Errorf("the index lists %+v", m)
	}
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct {
			Digest string
			Size   int
		}
	}
	parse(t, blob(t, parts, m.Digest), &manifest)
	var config struct {
		Config struct {
			User, WorkingDir     string
			Entrypoint, Cmd, Env []string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	parse(t, blob(t, parts, manifest.Config.Digest), &config)
	if c := config.Config; c.User != "64200:64200" || c.WorkingDir != "/tmp" || c.Entrypoint[0] != "/app" || c.Cmd[0] != "run" || c.Env[0] != "PATH=/bin" {
		t.Errorf("the configuration is %+v", c)
	}
	layer := blob(t, parts, manifest.Layers[0].Digest)
	if config.Rootfs.DiffIDs[0] != manifest.Layers[0].Digest || manifest.Layers[0].Size != len(layer) {
		t.Errorf("the layer is %s of %d bytes, described as %s of %d", config.Rootfs.DiffIDs[0], len(layer), manifest.Layers[0].Digest, manifest.Layers[0].Size)
	}
	checkFiles(t, layer)
}

func checkFiles(t *testing.T, layer []byte) {
	t.Helper()
	var names []string
	for h, b := range entries(t, layer) {
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s: owner %d:%d %q, time %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		switch h.Name {
		case "app":
			// vfs_cap_data: revision 2, not effective; bit 12 permitted.
			want := "\x00\x00\x00\x02" + "\x00\x10\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"
			if got := h.PAXRecords["SCHILY.xattr.security.capability"]; got != want || h.Mode != 0o755 || string(b) != "a program" {
				t.Errorf("app: capability %q, want %q; mode %o; %q", got, want, h.Mode, b)
			}
		case "tmp/":
			if h.Mode != 0o1777 || h.Typeflag != tar.TypeDir {
				t.Errorf("tmp: mode %o, type %c", h.Mode, h.Typeflag)
			}
		case "bin/link":
			if h.Linkname != "../app" || h.Typeflag != tar.TypeSymlink {
				t.Errorf("link: %q, type %c", h.Linkname, h.Typeflag)
			}
		}
	}
	if want := []string{"app", "bin/", "bin/link", "etc/", "etc/deep/", "etc/deep/passwd", "tmp/"}; !slices.Equal(names, want) {
		t.Errorf("the layer holds %v, want %v", names, want)
	}
}

func TestRefusals(t *testing.T) {
	good := oci.File{Path: "/a", Data: []byte("a")}
	for name, c := range map[string]struct {
		change func(*oci.Image)
		want   string
	}{
		"no tag":    {func(i *oci.Image) { i.Name = "images.test/app" }, "has no tag"},
		"no user":   {func(i *oci.Image) { i.User = "" }, "has no user"},
		"no files":  {func(i *oci.Image) { i.Files = nil }, "has no files"},
		"twice":     {func(i *oci.Image) { i.Files = []oci.File{good, good} }, "/a: is in the image twice"},
		"relative":  {func(i *oci.Image) { i.Files[0].Path = "a" }, "must be absolute and clean"},
		"dots":      {func(i *oci.Image) { i.Files[0].Path = "/a/../../b" }, "must be absolute and clean"},
		"two kinds": {func(i *oci.Image) { i.Files[0].Link = "/b" }, "exactly one of"},
		"no kind":   {func(i *oci.Image) { i.Files[0].Data = nil }, "exactly one of"},
		"folder with cap": {func(i *oci.Image) {
			i.Files[0] = oci.File{Path: "/d", Dir: true, Capabilities: []oci.Capability{oci.NetAdmin}}
		}, "only a file has capabilities"},
		"source a folder": {func(i *oci.Image) { i.Files[0] = oci.File{Path: "/d", Source: "/"} }, "is not a regular file"},
		"no source":       {func(i *oci.Image) { i.Files[0] = oci.File{Path: "/d", Source: "/does/not/exist"} }, "no such file"},
		"below a file":    {func(i *oci.Image) { i.Files = []oci.File{good, {Path: "/a/b", Data: []byte("b")}} }, "/a: is a file and a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			i := oci.Image{Name: "images.test/app:1", User: "1:1", Files: []oci.File{good}}
			c.change(&i)
			if _, err := i.Write(io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestWriteFileIsWholeOrAbsent(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image.tar")
	if _, err := (oci.Image{Name: "images.test/app:1", User: "1:1", Files: []oci.File{{Path: "/a", Source: "/does/not/exist"}}}).WriteFile(name); err == nil {
		t.Fatal("no error")
	}
	if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func entries(t *testing.T, archive []byte) func(yield func(*tar.Header, []byte) bool) {
	return func(yield func(*tar.Header, []byte) bool) {
		r := tar.NewReader(bytes.NewReader(archive))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(h, b) {
				return
			}
		}
	}
}

func blob(t *testing.T, parts map[string][]byte, digest string) []byte {
	t.Helper()
	b := parts["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
	sum := sha256.Sum256(b)
	if "sha256:"+hex.EncodeToString(sum[:]) != digest {
		t.Fatalf("%s: the bytes have another digest", digest)
	}
	return b
}

func parse(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
