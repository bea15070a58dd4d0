package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/attache-dev/attache/test/cluster/node"
)

// prepare runs outside of the sandbox, where there is a network: it packs
// the images.
func (o runOptions) prepare(ctx context.Context) error {
	dir := filepath.Join(o.dir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err := node.Images(ctx, o.root, o.bin, dir)
	return err
}

func (r *run) bringUp(ctx context.Context) error {
	images, err := filepath.Glob(filepath.Join(r.dir, "images", "*.tar"))
	if err != nil {
		return err
	}
	r.node, err = node.Start(ctx, node.Options{Dir: r.dir, Bin: r.bin, Images: images, Say: r.say})
	return err
}
