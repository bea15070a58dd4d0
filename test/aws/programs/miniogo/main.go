// Command miniogo makes every form of S3 call that minio-go makes: it is the
// client that signs its uploads chunk by chunk.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/attache-dev/attache/test/aws/programs/steps"
)

type client struct {
	ctx    context.Context
	s3     *minio.Client
	prefix string
}

func main() {
	u, err := url.Parse(os.Getenv("ENDPOINT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	s3, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewEnvAWS(), Secure: u.Scheme == "https", Region: "us-east-1", TrailingHeaders: true, MaxRetries: 1, BucketLookup: minio.BucketLookupPath})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	c := client{context.Background(), s3, os.Getenv("PREFIX")}
	c.allowed()
	c.denied()
}

func (c client) allowed() {
	for _, n := range steps.Sizes() {
		data, key := steps.Random(n), fmt.Sprintf("%sobject-%d", c.prefix, n)
		steps.Do(fmt.Sprintf("put %d", n), func() (steps.Stored, error) { return c.put("alpha", key, data, minio.PutObjectOptions{}) })
		steps.Try(fmt.Sprintf("get %d", n), func() error { return c.get("alpha", key, minio.GetObjectOptions{}, data) })
	}
	data, odd := bytes.Repeat([]byte("0123456789"), 100), c.prefix+"a key+with ~ü%2F&=()'"
	steps.Do("put odd key", func() (steps.Stored, error) { return c.put("alpha", odd, data, minio.PutObjectOptions{}) })
	steps.Try("range", func() error {
		var o minio.GetObjectOptions
		return errors.Join(o.SetRange(5, 14), c.get("alpha", odd, o, data[5:15]))
	})
	for name, sum := range map[string]minio.ChecksumType{"CRC32C": minio.ChecksumCRC32C, "CRC64NVME": minio.ChecksumCRC64NVME} {
		steps.Do("trailing checksum "+name, func() (steps.Stored, error) {
			return c.put("alpha", c.prefix+name, data, minio.PutObjectOptions{Checksum: sum})
		})
	}
	steps.Do("multipart", func() (steps.Stored, error) {
		data := steps.Random(steps.Big())
		if _, err := c.put("alpha", c.prefix+"multipart", data, minio.PutObjectOptions{PartSize: 5 << 20, NumThreads: 2}); err != nil {
			return steps.Stored{}, err
		}
		return steps.Of(c.prefix+"multipart", data), c.get("alpha", c.prefix+"multipart", minio.GetObjectOptions{}, data)
	})
	steps.Try("copy", func() error { return c.copy("readonly/seed", c.prefix+"copy") })
	steps.Try("list", func() error { return c.list(c.prefix, c.prefix+"copy") })
	steps.Do("presigned put", func() (steps.Stored, error) {
		u, err := c.s3.PresignedPutObject(c.ctx, "alpha", c.prefix+"presigned", time.Minute)
		if err != nil {
			return steps.Stored{}, err
		}
		_, err = steps.Fetch("PUT", u.String(), data)
		return steps.Of(c.prefix+"presigned", data), err
	})
	steps.Try("presigned get", func() error {
		b, err := c.presignedGet(c.prefix + "presigned")
		return errors.Join(err, steps.Same(bytes.NewReader(b), data))
	})
	steps.Try("delete many", func() error { return c.deleteMany(c.prefix+"copy", c.prefix+"CRC32C-none") })
}

func (c client) denied() {
	data, none := []byte("x"), minio.GetObjectOptions{}
	steps.Try("denied get, other bucket", func() error { return c.get("beta", "desk/seed", none, data) })
	steps.Do("denied put, other bucket", func() (steps.Stored, error) { return c.put("beta", "desk/new", data, minio.PutObjectOptions{}) })
	steps.Try("denied get, other key", func() error { return c.get("alpha", "private/seed", none, data) })
	steps.Do("denied put, other key", func() (steps.Stored, error) { return c.put("alpha", "private/new", data, minio.PutObjectOptions{}) })
	steps.Do("denied put, other action", func() (steps.Stored, error) {
		return c.put("alpha", "readonly/new", data, minio.PutObjectOptions{})
	})
	steps.Try("denied copy, other source", func() error { return c.copy("private/seed", c.prefix+"stolen") })
	steps.Try("denied list", func() error { return c.list("private/", "private/seed") })
	steps.Try("denied delete many", func() error { return c.deleteMany(c.prefix+"presigned", "private/seed") })
	steps.Try("denied presigned get", func() error {
		_, err := c.presignedGet("private/seed")
		return err
	})
}

// put hides what could be read twice, so that the upload is a stream.
func (c client) put(bucket, key string, data []byte, o minio.PutObjectOptions) (steps.Stored, error) {
	_, err := c.s3.PutObject(c.ctx, bucket, key, io.MultiReader(bytes.NewReader(data)), int64(len(data)), o)
	return steps.Of(key, data), err
}

func (c client) get(bucket, key string, o minio.GetObjectOptions, want []byte) error {
	obj, err := c.s3.GetObject(c.ctx, bucket, key, o)
	if err != nil {
		return err
	}
	defer obj.Close()
	return steps.Same(obj, want)
}

func (c client) copy(from, to string) error {
	_, err := c.s3.CopyObject(c.ctx, minio.CopyDestOptions{Bucket: "alpha", Object: to}, minio.CopySrcOptions{Bucket: "alpha", Object: from})
	return err
}

func (c client) list(prefix, want string) error {
	found := false
	for o := range c.s3.ListObjects(c.ctx, "alpha", minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		found = found || o.Key == want
	}
	if !found {
		return fmt.Errorf("%s is not listed", want)
	}
	return nil
}

func (c client) presignedGet(key string) ([]byte, error) {
	u, err := c.s3.PresignedGetObject(c.ctx, "alpha", key, time.Minute, nil)
	if err != nil {
		return nil, err
	}
	return steps.Fetch("GET", u.String(), nil)
}

func (c client) deleteMany(keys ...string) error {
	in := make(chan minio.ObjectInfo, len(keys))
	for _, k := range keys {
		in <- minio.ObjectInfo{Key: k}
	}
	close(in)
	var errs []error
	for e := range c.s3.RemoveObjects(c.ctx, "alpha", in, minio.RemoveObjectsOptions{}) {
		errs = append(errs, e.Err)
	}
	return errors.Join(errs...)
}
