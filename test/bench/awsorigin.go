package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/injector/sigv4/sigv4test"
)

// What the stand-in for STS hands out; worth nothing outside the benchmark.
const (
	awsKeyID  = "ASIABENCHMARK0000000"
	awsSecret = "bench-secret-key-0123456789abcdef01234567"
	awsToken  = "bench-session-token-0123456789abcdef0123456789abcdef"
)

// awsOrigin stands in for S3 and STS (AWS STS API reference,
// AssumeRoleWithWebIdentity): it verifies the signature of every read, and of
// uploads, which it discards, whose credential and length they are.
func awsOrigin(certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().String())
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			continue
		}
		os.Exit(0)
	}()
	v := &sigv4test.Verifier{Single: true, Lookup: func(id string) (string, string, bool) { return awsSecret, awsToken, id == awsKeyID }}
	srv := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	body := []byte(strings.Repeat("x", 1<<10))
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch r.Method {
		case http.MethodPost:
			err = assumeRole(w, r)
		case http.MethodPut:
			err = discard(r)
		default:
			if _, err = v.Verify(r); err == nil {
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				_, err = w.Write(body)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})
	return srv.ServeTLS(ln, "", "")
}

func assumeRole(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	if r.Form.Get("Action") != "AssumeRoleWithWebIdentity" || r.Form.Get("WebIdentityToken") == "" || r.Form.Get("Policy") == "" {
		return errors.New("not a call for a session cut by a policy")
	}
	w.Header().Set("Content-Type", "text/xml")
	_, err := fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials><PackedPolicySize>3</PackedPolicySize></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		awsKeyID, awsSecret, awsToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	return err
}

func discard(r *http.Request) error {
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+awsKeyID+"/") || r.Header.Get("X-Amz-Security-Token") != awsToken {
		return errors.New("not signed by the session")
	}
	n, err := io.Copy(io.Discard, r.Body)
	if want, _ := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64); err == nil && n < want {
		err = fmt.Errorf("%d bytes of %d", n, want)
	}
	return err
}
