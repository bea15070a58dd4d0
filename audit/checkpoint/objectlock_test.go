package checkpoint_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/test/servers"
)

// A real bucket with Object Lock: the attacker has the bucket's root key.
func TestObjectLock(t *testing.T) {
	minio, err := servers.StartMinIO(t.Context(), servers.MinIOOptions{})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(minio.Close)
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(minio.URL), UsePathStyle: true, Region: minio.Region,
		Credentials: credentials.NewStaticCredentialsProvider(minio.RootUser, minio.RootPassword, ""),
	})
	bucket := aws.String("locked")
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	sink := checkpoint.ObjectLock{Client: client, Bucket: "locked", Prefix: "attache/", Retain: time.Hour, Now: time.Now}
	signer, key := newKey(t, "attache/test")
	one := statement(t, signer, 1, chain.Hash{}, 10)
	two := statement(t, signer, 2, digest(t, one), 20)
	for _, p := range []checkpoint.Published{one, two, two} { // twice is once
		if err := sink.Put(t.Context(), p); err != nil {
			t.Fatalf("checkpoint %d: %v", p.Number, err)
		}
	}
	forged := statement(t, signer, 2, digest(t, one), 19)
	if err := sink.Put(t.Context(), forged); err == nil {
		t.Error("another checkpoint took the place of number 2")
	}

	l, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: bucket, Prefix: aws.String("attache/checkpoint/")})
	if err != nil || len(l.Versions) != 2 {
		t.Fatalf("%d objects, %v", len(l.Versions), err)
	}
	newest := l.Versions[0]
	for what, in := range map[string]*s3.DeleteObjectInput{
		"deleted":                   {Bucket: bucket, Key: newest.Key, VersionId: newest.VersionId},
		"deleted as its governance": {Bucket: bucket, Key: newest.Key, VersionId: newest.VersionId, BypassGovernanceRetention: aws.Bool(true)},
	} {
		if _, err := client.DeleteObject(t.Context(), in); err == nil {
			t.Errorf("a locked checkpoint was %s", what)
		}
	}
	if _, err := client.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
		Bucket: bucket, Key: newest.Key, VersionId: newest.VersionId, BypassGovernanceRetention: aws.Bool(true),
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(time.Now().Add(time.Minute))},
	}); err == nil {
		t.Error("the retention of a locked checkpoint was shortened")
	}

	// Another version laid on top does not hide the honest one, nor does a mark
	// of deletion.
	if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: newest.Key, Body: bytes.NewReader(forged.Note)}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucket, Key: newest.Key}); err != nil {
		t.Fatal(err)
	}
	notes, err := sink.Newest(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]int{}
	for _, n := range notes {
		c, err := chain.Parse(n, key)
		if err != nil {
			t.Fatal(err)
		}
		seen[c.Number]++
	}
	if seen[1] != 1 || seen[2] != 2 {
		t.Errorf("versions read, by number: %v; want the honest and the forged number 2, and number 1", seen)
	}
	if newest, err := sink.Newest(t.Context(), 1); err != nil || len(newest) != 2 {
		t.Errorf("the newest number: %d versions, %v", len(newest), err)
	}

	// Such a bucket is found out by verify, whatever the store says.
	w := newWorld(t)
	w.signer, w.key = signer, key
	r, err := checkpoint.Verify(t.Context(), w.take(), checkpoint.Options{Keys: []note.Verifier{key}, Outside: notes})
	if err != nil || r.OK() {
		t.Errorf("two different checkpoints of one number: %v", err)
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string][2]string{"s3://b": {"b", ""}, "s3://b/": {"b", ""}, "s3://b/p": {"b", "p/"}, "s3://b/p/q/": {"b", "p/q/"}} {
		if bucket, prefix, err := checkpoint.ParseURL(in); err != nil || bucket != want[0] || prefix != want[1] {
			t.Errorf("ParseURL(%q) = %q, %q, %v", in, bucket, prefix, err)
		}
	}
	for _, in := range []string{"", "b", "s3://", "s3:///p", "https://b/p"} {
		if _, _, err := checkpoint.ParseURL(in); err == nil {
			t.Errorf("ParseURL(%q) was taken", in)
		}
	}
}
