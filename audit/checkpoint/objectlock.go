package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// ObjectLock is a Sink in a bucket that has S3 Object Lock: until the retention
// ends nobody, not even the bucket's owner, can change or remove a checkpoint
// (mode COMPLIANCE). The key may put and read objects; it needs no right to
// delete.
type ObjectLock struct {
	Client *s3.Client
	Bucket string
	Prefix string        // of the keys, such as attache/
	Retain time.Duration // how long each is locked; 0: as the bucket's default says
	Now    func() time.Time
}

// Name implements Sink.
func (o ObjectLock) Name() string { return "s3:" + o.Bucket + "/" + o.Prefix }

// highest is what numbers are taken from in keys, so that a bucket lists the
// newest first.
const highest = 999_999_999_999

func (o ObjectLock) key(number uint64, kind string) string {
	return fmt.Sprintf("%s%s/%012d-%d", o.Prefix, kind, highest-number, number)
}

// Put implements Sink.
func (o ObjectLock) Put(ctx context.Context, p Published) error {
	if err := o.put(ctx, o.key(p.Number, "leaves"), p.Leaves); err != nil {
		return err
	}
	return o.put(ctx, o.key(p.Number, "checkpoint"), p.Note)
}

func (o ObjectLock) put(ctx context.Context, key string, content []byte) error {
	in := &s3.PutObjectInput{
		Bucket: &o.Bucket, Key: &key, Body: bytes.NewReader(content), IfNoneMatch: aws.String("*"),
		ContentType: aws.String("text/plain; charset=utf-8"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
	}
	if o.Retain > 0 {
		in.ObjectLockMode = types.ObjectLockModeCompliance
		in.ObjectLockRetainUntilDate = aws.Time(o.Now().Add(o.Retain).UTC())
	}
	_, err := o.Client.PutObject(ctx, in)
	var api smithy.APIError
	if errors.As(err, &api) && (api.ErrorCode() == "PreconditionFailed" || api.ErrorCode() == "ConditionalRequestConflict") {
		had, err := o.get(ctx, key, nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(had, content) {
			return fmt.Errorf("s3://%s/%s is there with another content: a checkpoint was made twice, or the store was rolled back", o.Bucket, key)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("put s3://%s/%s: %w", o.Bucket, key, err)
	}
	return nil
}

func (o ObjectLock) get(ctx context.Context, key string, version *string) ([]byte, error) {
	out, err := o.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.Bucket, Key: &key, VersionId: version})
	if err != nil {
		return nil, fmt.Errorf("get s3://%s/%s: %w", o.Bucket, key, err)
	}
	defer out.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(out.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("get s3://%s/%s: %w", o.Bucket, key, err)
	}
	return b, nil
}

// Newest returns the checkpoints of up to n numbers, newest first, in every
// version that the bucket has: a lock keeps a version, and does not keep
// somebody from laying another one on top.
func (o ObjectLock) Newest(ctx context.Context, n int) ([][]byte, error) {
	var l [][]byte
	keys := map[string]bool{}
	pages := s3.NewListObjectVersionsPaginator(o.Client, &s3.ListObjectVersionsInput{Bucket: &o.Bucket, Prefix: aws.String(o.Prefix + "checkpoint/")})
	for pages.HasMorePages() {
		p, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list s3://%s/%scheckpoint/: %w", o.Bucket, o.Prefix, err)
		}
		for _, v := range p.Versions {
			if keys[aws.ToString(v.Key)] = true; len(keys) > n {
				return l, nil
			}
			b, err := o.get(ctx, aws.ToString(v.Key), v.VersionId)
			if err != nil {
				return nil, err
			}
			l = append(l, b)
		}
	}
	if len(l) == 0 {
		return nil, fmt.Errorf("s3://%s/%scheckpoint/ has no checkpoint", o.Bucket, o.Prefix)
	}
	return l, nil
}

// ParseURL reads s3://BUCKET/PREFIX.
func ParseURL(url string) (bucket, prefix string, err error) {
	rest, ok := strings.CutPrefix(url, "s3://")
	bucket, prefix, _ = strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return "", "", fmt.Errorf("%q is not of the form s3://BUCKET/PREFIX", url)
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return bucket, prefix, nil
}
