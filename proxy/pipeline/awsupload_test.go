package pipeline_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// chunked is an aws-chunked body as an SDK without trailing checksums makes it:
// its signatures are of the placeholder, and nobody verifies them.
func chunked(data string, size int) string {
	var b strings.Builder
	sig := strings.Repeat("a", 64)
	for len(data) > 0 {
		n := min(size, len(data))
		fmt.Fprintf(&b, "%x;chunk-signature=%s\r\n%s\r\n", n, sig, data[:n])
		data = data[n:]
	}
	return b.String() + "0;chunk-signature=" + sig + "\r\n"
}

func (a *awsRig) putChunked(body, payload string, decoded int, header ...string) result {
	header = append(header, "X-Amz-Content-Sha256", payload, "X-Amz-Decoded-Content-Length", strconv.Itoa(decoded), "Content-Encoding", "aws-chunked")
	return a.send(a.signed(http.MethodPut, object, "s3", "eu-west-1", body, header...))
}

// TestAWSChunks checks uploads that are signed chunk by chunk: ours carry our
// signatures, and what is framed wrongly is never a whole request at AWS.
func TestAWSChunks(t *testing.T) {
	const signed, trailing = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	data := strings.Repeat("0123456789", 20_000)
	crc := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(data))))
	sig := strings.Repeat("b", 64)
	good := chunked(data, 64<<10)
	trailer := "x-amz-checksum-crc32:" + crc + "\r\nx-amz-trailer-signature:" + sig + "\r\n\r\n"

	a := newAWSRig(t, nil)
	if got := a.putChunked(good+"\r\n", signed, len(data)); got.StatusCode != 200 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if _, call := a.verified(); string(call.Body) != data || call.Payload != signed {
		t.Errorf("%d bytes, %s", len(call.Body), call.Payload)
	}
	if got := a.putChunked(good+trailer, trailing, len(data), "X-Amz-Trailer", "x-amz-checksum-crc32"); got.StatusCode != 200 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if _, call := a.verified(); string(call.Body) != data || call.Trailers["x-amz-checksum-crc32"] != crc {
		t.Errorf("%d bytes, %v", len(call.Body), call.Trailers)
	}

	for _, tt := range []struct {
		name, body, payload string
		decoded             int
		header              []string
	}{
		{"no signature", strings.Replace(good, ";chunk-signature="+strings.Repeat("a", 64), "", 1) + "\r\n", signed, len(data), nil},
		{"a size that is no number", "z" + good[1:] + "\r\n", signed, len(data), nil},
		{"cut off", good[:len(good)/2], signed, len(data), nil},
		{"no last line", good, signed, len(data), nil},
		{"fewer bytes than declared", good + "\r\n", signed, len(data) + 1, nil},
		{"more bytes than declared", good + "\r\n", signed, len(data) - 1, nil},
		{"bytes after the end", good + "\r\nmore", signed, len(data), nil},
		{"another trailer than announced", good + strings.Replace(trailer, "crc32:", "sha1:", 1), trailing, len(data), []string{"X-Amz-Trailer", "x-amz-checksum-crc32"}},
		{"no trailer", good + "x-amz-trailer-signature:" + sig + "\r\n\r\n", trailing, len(data), []string{"X-Amz-Trailer", "x-amz-checksum-crc32"}},
		{"a trailer of another length", good + strings.Replace(trailer, crc, crc+"AAAA", 1), trailing, len(data), []string{"X-Amz-Trailer", "x-amz-checksum-crc32"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWSRig(t, nil)
			a.refusedS3(a.putChunked(tt.body, tt.payload, tt.decoded, tt.header...), 400, pipeline.CodeAWSCall, "InvalidRequest", audit.OutcomeError)
		})
	}
	for _, tt := range []struct {
		name   string
		header []string
		status int
	}{
		{"no decoded length", []string{"X-Amz-Content-Sha256", signed}, 400},
		{"a decoded length that no service takes", []string{"X-Amz-Content-Sha256", signed, "X-Amz-Decoded-Content-Length", "99999999999999999"}, 413},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWSRig(t, nil)
			got := a.send(a.signed(http.MethodPut, object, "s3", "eu-west-1", good+"\r\n", tt.header...))
			a.refused(got, tt.status, pipeline.CodeAWSCall, audit.OutcomeError)
		})
	}
}

// endless is a body that can be made at any length, and not held in memory.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), e.left))
	clear(p[:n])
	e.left -= int64(n)
	return n, nil
}

// TestAWSLargeUpload checks that an upload of any size takes constant memory,
// also where its chunks are signed anew.
func TestAWSLargeUpload(t *testing.T) {
	const size = 32 << 20
	a := newAWSRig(t, nil)
	var got int64
	var before, after runtime.MemStats
	a.serve(func(_ http.ResponseWriter, r *http.Request) { // a verifier would hold it
		got, _ = io.Copy(io.Discard, r.Body)
		runtime.GC()
		runtime.ReadMemStats(&after) // while the exchange still lives
	})
	runtime.GC()
	runtime.ReadMemStats(&before)
	line := fmt.Sprintf("%x;chunk-signature=%s\r\n", size, strings.Repeat("a", 64))
	end := "\r\n0;chunk-signature=" + strings.Repeat("a", 64) + "\r\n\r\n"
	r := a.signed(http.MethodPut, object, "s3", "eu-west-1", "", "X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "X-Amz-Decoded-Content-Length", strconv.Itoa(size))
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(line), &endless{size}, strings.NewReader(end)))
	r.ContentLength = int64(len(line) + size + len(end))
	resp := a.send(r)
	if resp.StatusCode != 200 || got < size {
		t.Fatalf("%d %s: %d bytes", resp.StatusCode, resp.body, got)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("%d KiB are held for %d MiB", grown>>10, size>>20)
	}
	if rec := a.record(); rec.Result.BytesUp < size {
		t.Errorf("%d bytes up", rec.Result.BytesUp)
	}
}

// TestAWSHugeLength checks that a length that no service takes is S3's to
// refuse, and costs us nothing.
func TestAWSHugeLength(t *testing.T) {
	a := newAWSRig(t, nil)
	a.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 5<<40+1 {
			t.Errorf("length %d", r.ContentLength)
		}
		awsError(w, http.StatusBadRequest, "EntityTooLarge", "too large")
	})
	r := a.signed(http.MethodPut, object, "s3", "eu-west-1", "", "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "Expect", "100-continue")
	conn := a.connect(r.Host+":443", "http/1.1")
	_, _ = fmt.Fprintf(conn, "PUT /key HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", r.Host, int64(5<<40+1))
	_ = r.Header.Write(conn)
	_, _ = io.WriteString(conn, "\r\n")
	got, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(got.Body)
	if _ = got.Body.Close(); got.StatusCode != 400 || !strings.Contains(string(body), "EntityTooLarge") {
		t.Errorf("%d %s", got.StatusCode, body)
	}
	if rec := a.record(); rec.Result.Status != 400 || rec.Credential.AWS.Operation != "PutObject" {
		t.Errorf("%+v", rec.Result)
	}
}

// TestAWSDataOfAnyLength is the property behind retries: what AWS verifies is
// what the agent sent, whatever its size and payload mode.
func TestAWSDataOfAnyLength(t *testing.T) {
	a := newAWSRig(t, nil)
	c := a.s3()
	for _, n := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000} {
		data := make([]byte, n)
		_, _ = rand.Read(data)
		for _, put := range []func() error{
			func() error {
				_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("media"), Key: aws.String("k"), Body: bytes.NewReader(data)})
				return err
			},
			func() error {
				got := a.send(a.signed(http.MethodPut, object, "s3", "eu-west-1", string(data)))
				return got.err
			},
			func() error {
				return a.putChunked(chunked(string(data), 8<<10)+"\r\n", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", n).err
			},
		} {
			before, _ := a.verified()
			if err := put(); err != nil {
				t.Fatal(err)
			}
			if after, call := a.verified(); after != before+1 || !bytes.Equal(call.Body, data) {
				t.Fatalf("%d bytes: %d calls, %d bytes", n, after-before, len(call.Body))
			}
		}
	}
}
