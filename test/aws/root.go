package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// read returns an object's content, as root.
func (w *world) read(ctx context.Context, bucket, key string, to io.Writer) error {
	out, err := w.root.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	_, err = io.Copy(to, out.Body)
	return err
}

// sum is the SHA-256 of an object's content, as root.
func (w *world) sum(ctx context.Context, bucket, key string) (string, error) {
	h := sha256.New()
	err := w.read(ctx, bucket, key, h)
	return hex.EncodeToString(h.Sum(nil)), err
}

// keys are those of a bucket below prefix, as root.
func (w *world) keys(ctx context.Context, bucket, prefix string) ([]string, error) {
	var out []string
	for pages := s3.NewListObjectsV2Paginator(w.root, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			out = append(out, *o.Key)
		}
	}
	return out, nil
}

// untouched holds that what is out of scope is as it was before the clients.
func (s *suite) untouched(ctx context.Context) []error {
	var errs []error
	for _, at := range []struct{ bucket, prefix, want string }{
		{"alpha", "private/", "private/seed"}, {"alpha", "readonly/s", "readonly/seed"}, {"beta", "", "desk/seed"}, {"gamma", "", "seed"},
	} {
		keys, err := s.w.keys(ctx, at.bucket, at.prefix)
		if err != nil || len(keys) != 1 || keys[0] != at.want {
			errs = append(errs, fmt.Errorf("%s/%s holds %v, want %s alone (%v)", at.bucket, at.prefix, keys, at.want, err))
		}
	}
	if keys, err := s.w.keys(ctx, "alpha", "readonly/new"); err != nil || len(keys) > 0 {
		errs = append(errs, fmt.Errorf("readonly holds %v (%v)", keys, err))
	}
	for _, seed := range seeds {
		sum, err := s.w.sum(ctx, seed.bucket, seed.key)
		h := sha256.Sum256([]byte(seedText(seed.bucket, seed.key)))
		if err != nil || sum != hex.EncodeToString(h[:]) {
			errs = append(errs, fmt.Errorf("%s/%s has other content (%v)", seed.bucket, seed.key, err))
		}
	}
	out, err := s.w.root.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		return append(errs, err)
	}
	if len(out.Buckets) != 3 {
		errs = append(errs, errors.New("there are other buckets than the suite's own three"))
	}
	return errs
}
