// Command peer is elazarl/goproxy as a benchmark peer: it intercepts TLS, adds
// one static header and, unlike goproxy's example, keeps enough idle
// connections to each origin.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/elazarl/goproxy"
)

// certs keeps minted leaves, so that each host is signed once.
type certs struct{ m sync.Map }

func (c *certs) Fetch(host string, gen func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	if v, ok := c.m.Load(host); ok {
		return v.(*tls.Certificate), nil
	}
	cert, err := gen()
	if err == nil {
		c.m.Store(host, cert)
	}
	return cert, err
}

func main() {
	caFile := flag.String("ca", "", "PEM with the interception CA's certificate and key")
	roots := flag.String("roots", "", "PEM with the origin's roots")
	header := flag.String("authorization", "", "value of the injected header")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*caFile, *caFile)
	if err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile(*roots)
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	p := goproxy.NewProxyHttpServer()
	p.CertStore = &certs{}
	p.Tr = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 256, DisableCompression: true}
	action := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&pair)}
	p.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) { return action, host })
	p.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r.Header.Set("Authorization", *header)
		return r, nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr().String())
	log.Fatal(http.Serve(ln, p))
}
