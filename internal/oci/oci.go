// Package oci packs files as an OCI image without a daemon, a registry or a
// network: the same files give the same bytes, whoever packs them and when.
//
// What it writes is an image layout (OCI Image Format Specification 1.1,
// image-layout.md) in a tar archive, as `ctr images import`, `podman load` and
// `skopeo copy oci-archive:` read it.
package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/internal/replace"
)

// Media types of the image specification.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Image says what is packed. Order of Files does not matter.
type Image struct {
	// Name is the full reference under which containerd stores the image:
	// registry.test/name:tag.
	Name string
	// Entrypoint, Cmd, Env (NAME=VALUE), Dir and User ("uid:gid") are those of
	// every container of the image. User is required: an image that says
	// nothing runs as root.
	Entrypoint, Cmd, Env []string
	Dir, User            string
	Labels               map[string]string
	// Architecture is GOARCH's name; default that of this program.
	Architecture string
	Files        []File
}

// Digest of the manifest, "sha256:…": by it a pod can pin the image.
type Digest string

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Write packs the image. The layer goes through a file in the folder for
// temporary files, because its digest comes before it.
func (i Image) Write(w io.Writer) (Digest, error) {
	if err := i.check(); err != nil {
		return "", err
	}
	if i.Architecture == "" {
		i.Architecture = runtime.GOARCH
	}
	layer, err := os.CreateTemp("", "attache-layer-")
	if err != nil {
		return "", err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	hash := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, hash), i.Files); err != nil {
		return "", fmt.Errorf("pack %s: %w", i.Name, err)
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return i.writeLayout(w, layer, descriptor{MediaType: mediaLayer, Digest: digestOf(hash.Sum(nil)), Size: size})
}

// WriteFile is Write to a file that appears only when it is whole.
func (i Image) WriteFile(name string) (Digest, error) {
	var d Digest
	err := replace.Write(name, replace.How{Durability: replace.Volatile}, func(w io.Writer) (err error) {
		d, err = i.Write(w)
		return err
	})
	if err != nil {
		return "", err
	}
	return d, nil
}

func (i Image) check() error {
	var errs []error
	if _, tag, ok := strings.Cut(i.Name, ":"); !ok || tag == "" {
		errs = append(errs, fmt.Errorf("image name %q: has no tag", i.Name))
	}
	if i.User == "" {
		errs = append(errs, errors.New("image has no user: say 0:0 if it is to run as root"))
	}
	if len(i.Files) == 0 {
		errs = append(errs, errors.New("image has no files"))
	}
	return errors.Join(errs...)
}

func (i Image) writeLayout(w io.Writer, layer io.Reader, l descriptor) (Digest, error) {
	config, err := json.Marshal(map[string]any{
		"architecture": i.Architecture, "os": "linux",
		"config": map[string]any{
			"User": i.User, "Entrypoint": i.Entrypoint, "Cmd": i.Cmd, "Env": i.Env, "WorkingDir": i.Dir, "Labels": i.Labels,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []Digest{l.Digest}},
	})
	if err != nil {
		return "", err
	}
	configBlob := blob(mediaConfig, config)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": configBlob, "layers": []descriptor{l},
	})
	if err != nil {
		return "", err
	}
	m := blob(mediaManifest, manifest)
	listed := m
	listed.Platform = &platform{i.Architecture, "linux"}
	listed.Annotations = map[string]string{
		"io.containerd.image.name":          i.Name,
		"org.opencontainers.image.ref.name": i.Name[strings.LastIndexByte(i.Name, ':')+1:],
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{listed}})
	if err != nil {
		return "", err
	}
	t := tar.NewWriter(w)
	err = errors.Join(
		entry(t, "oci-layout", int64(len(layout)), strings.NewReader(layout)),
		entry(t, l.path(), l.Size, layer),
		entry(t, configBlob.path(), configBlob.Size, bytes.NewReader(config)),
		entry(t, m.path(), m.Size, bytes.NewReader(manifest)),
		entry(t, "index.json", int64(len(index)), bytes.NewReader(index)),
		t.Close(),
	)
	return m.Digest, err
}

const layout = `{"imageLayoutVersion":"1.0.0"}`

func blob(media string, b []byte) descriptor {
	sum := sha256.Sum256(b)
	return descriptor{MediaType: media, Digest: digestOf(sum[:]), Size: int64(len(b))}
}

func digestOf(sum []byte) Digest { return Digest("sha256:" + hex.EncodeToString(sum)) }

func (d descriptor) path() string {
	return "blobs/sha256/" + strings.TrimPrefix(string(d.Digest), "sha256:")
}

// stamp is the time of every entry: a build's own time would change the digest.
func stamp() time.Time { return time.Unix(0, 0).UTC() }

func entry(t *tar.Writer, name string, size int64, r io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: stamp(), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.Copy(t, r)
	return err
}

// sorted is a copy of files in the order of their paths, which is that of the
// layer: folders before what they hold.
func sorted(files []File) []File {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files
}
