// Command awsgo makes every form of S3 call that aws-sdk-go-v2 makes.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/attache-dev/attache/test/aws/programs/steps"
)

type client struct {
	ctx    context.Context
	s3     *s3.Client
	prefix string
}

func main() {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion("us-east-1"), config.WithRetryMaxAttempts(1))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	endpoint := os.Getenv("ENDPOINT")
	c := client{ctx, s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.BaseEndpoint, o.UsePathStyle = &endpoint, os.Getenv("STYLE") != "virtual"
	}), os.Getenv("PREFIX")}
	c.allowed()
	c.denied()
}

func (c client) allowed() {
	for _, n := range steps.Sizes() {
		data, key := steps.Random(n), fmt.Sprintf("%sobject-%d", c.prefix, n)
		steps.Do(fmt.Sprintf("put %d", n), func() (steps.Stored, error) { return c.put("alpha", key, data) })
		steps.Try(fmt.Sprintf("get %d", n), func() error { return c.get("alpha", key, "", data) })
	}
	data, odd := bytes.Repeat([]byte("0123456789"), 100), c.prefix+"a key+with ~ü%2F&=()'"
	steps.Do("put odd key", func() (steps.Stored, error) { return c.put("alpha", odd, data) })
	steps.Try("head odd key", func() error {
		_, err := c.s3.HeadObject(c.ctx, &s3.HeadObjectInput{Bucket: aws.String("alpha"), Key: &odd})
		return err
	})
	steps.Try("range", func() error { return c.get("alpha", odd, "bytes=5-14", data[5:15]) })
	for _, a := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha256} {
		steps.Do("trailing checksum "+string(a), func() (steps.Stored, error) { return c.stream(c.prefix+string(a), data, a) })
	}
	steps.Do("multipart", func() (steps.Stored, error) { return c.multipart(c.prefix + "multipart") })
	steps.Try("copy", func() error { return c.copy("alpha/readonly/seed", c.prefix+"copy") })
	steps.Try("list", func() error { return c.list(c.prefix, c.prefix+"copy") })
	steps.Do("presigned put", func() (steps.Stored, error) { return c.presignedPut("alpha", c.prefix+"presigned", data) })
	steps.Try("presigned get", func() error {
		b, err := c.presignedGet(c.prefix + "presigned")
		return errors.Join(err, steps.Same(bytes.NewReader(b), data))
	})
	steps.Try("delete many", func() error {
		for _, k := range []string{"gone-1", "gone-2"} {
			if _, err := c.put("alpha", c.prefix+k, data); err != nil {
				return err
			}
		}
		return c.deleteMany(c.prefix+"gone-1", c.prefix+"gone-2")
	})
	steps.Try("delete", func() error { return c.delete(c.prefix + "copy") })
}

func (c client) denied() {
	data := []byte("x")
	steps.Try("denied get, other bucket", func() error { return c.get("beta", "desk/seed", "", data) })
	steps.Do("denied put, other bucket", func() (steps.Stored, error) { return c.put("beta", "desk/new", data) })
	steps.Try("denied get, other key", func() error { return c.get("alpha", "private/seed", "", data) })
	steps.Do("denied put, other key", func() (steps.Stored, error) { return c.put("alpha", "private/new", data) })
	steps.Do("denied put, other action", func() (steps.Stored, error) { return c.put("alpha", "readonly/new", data) })
	steps.Try("denied delete, other action", func() error { return c.delete("readonly/seed") })
	steps.Do("denied multipart", func() (steps.Stored, error) { return c.multipart("private/new") })
	steps.Do("denied trailing checksum", func() (steps.Stored, error) {
		return c.stream("private/new", data, types.ChecksumAlgorithmCrc32)
	})
	steps.Try("denied copy, other source", func() error { return c.copy("alpha/private/seed", c.prefix+"stolen") })
	steps.Try("denied copy, other target", func() error { return c.copy("alpha/readonly/seed", "private/new") })
	steps.Try("denied list", func() error { return c.list("private/", "private/seed") })
	steps.Try("denied delete many", func() error { return c.deleteMany(c.prefix+"presigned", "private/seed") })
	steps.Try("denied presigned get", func() error {
		_, err := c.presignedGet("private/seed")
		return err
	})
	steps.Do("denied presigned put", func() (steps.Stored, error) { return c.presignedPut("beta", "desk/new", data) })
}

func (c client) put(bucket, key string, data []byte) (steps.Stored, error) {
	_, err := c.s3.PutObject(c.ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)})
	return steps.Of(key, data), err
}

// stream sends what cannot be read twice, so that the checksum has to trail.
func (c client) stream(key string, data []byte, a types.ChecksumAlgorithm) (steps.Stored, error) {
	n := int64(len(data))
	_, err := c.s3.PutObject(c.ctx, &s3.PutObjectInput{Bucket: aws.String("alpha"), Key: &key, ContentLength: &n, ChecksumAlgorithm: a, Body: io.MultiReader(bytes.NewReader(data))})
	return steps.Of(key, data), err
}

func (c client) get(bucket, key, span string, want []byte) error {
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key}
	if span != "" {
		in.Range = &span
	}
	out, err := c.s3.GetObject(c.ctx, in)
	if err != nil {
		return err
	}
	defer out.Body.Close()
	return steps.Same(out.Body, want)
}

func (c client) multipart(key string) (steps.Stored, error) {
	data := steps.Random(steps.Big())
	up := manager.NewUploader(c.s3, func(u *manager.Uploader) { u.PartSize, u.Concurrency = 5<<20, 2 })
	if _, err := up.Upload(c.ctx, &s3.PutObjectInput{Bucket: aws.String("alpha"), Key: &key, Body: bytes.NewReader(data)}); err != nil {
		return steps.Stored{}, err
	}
	return steps.Of(key, data), c.get("alpha", key, "", data)
}

func (c client) copy(source, key string) error {
	_, err := c.s3.CopyObject(c.ctx, &s3.CopyObjectInput{Bucket: aws.String("alpha"), Key: &key, CopySource: &source})
	return err
}

func (c client) list(prefix, want string) error {
	out, err := c.s3.ListObjectsV2(c.ctx, &s3.ListObjectsV2Input{Bucket: aws.String("alpha"), Prefix: &prefix})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(out.Contents, func(o types.Object) bool { return *o.Key == want }) {
		return fmt.Errorf("%s is not listed", want)
	}
	return nil
}

func (c client) presignedPut(bucket, key string, data []byte) (steps.Stored, error) {
	p, err := s3.NewPresignClient(c.s3).PresignPutObject(c.ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return steps.Stored{}, err
	}
	_, err = steps.Fetch(p.Method, p.URL, data)
	return steps.Of(key, data), err
}

func (c client) presignedGet(key string) ([]byte, error) {
	p, err := s3.NewPresignClient(c.s3).PresignGetObject(c.ctx, &s3.GetObjectInput{Bucket: aws.String("alpha"), Key: &key})
	if err != nil {
		return nil, err
	}
	return steps.Fetch(p.Method, p.URL, nil)
}

func (c client) delete(key string) error {
	_, err := c.s3.DeleteObject(c.ctx, &s3.DeleteObjectInput{Bucket: aws.String("alpha"), Key: &key})
	return err
}

func (c client) deleteMany(keys ...string) error {
	var objects []types.ObjectIdentifier
	for _, k := range keys {
		objects = append(objects, types.ObjectIdentifier{Key: &k})
	}
	out, err := c.s3.DeleteObjects(c.ctx, &s3.DeleteObjectsInput{Bucket: aws.String("alpha"), Delete: &types.Delete{Objects: objects}})
	if err == nil && len(out.Errors) > 0 {
		err = fmt.Errorf("%s: %s", *out.Errors[0].Key, aws.ToString(out.Errors[0].Message))
	}
	return err
}
