package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// agent is what this test binary does when attache starts it as an agent: to
// the proxy, what no honest client does.
func agent(name string, args []string) int {
	do, ok := map[string]func(proxy string, args []string) error{
		"garbage": garbage, "no-sni": noSNI, "reset-flood": resetFlood, "headers": manyHeaders, "silence": silence, "aws-keys": awsKeys, "direct": direct, "load": load,
	}[name]
	if !ok {
		return 64
	}
	if err := do(strings.TrimPrefix(os.Getenv("https_proxy"), "http://"), args); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		return 1
	}
	fmt.Println(name, "done")
	return 0
}

// direct is a Go program that knows no proxy.
func direct(_ string, args []string) error {
	c := http.Client{Timeout: patience, Transport: &http.Transport{Proxy: nil}}
	r, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}

// load measures calls a second by the proxy and without it, in turns, on
// connections that are kept and on new ones.
func load(proxyAddr string, args []string) error {
	const rounds, workers, each = 3, 8, 2 * time.Second
	proxyURL, err := url.Parse("http://" + proxyAddr)
	if err != nil {
		return err
	}
	for _, kept := range []bool{true, false} {
		var sums [2]float64
		for range rounds {
			for way, proxy := range []func(*http.Request) (*url.URL, error){http.ProxyURL(proxyURL), nil} {
				n, err := hammer(args[0], &http.Transport{Proxy: proxy, DisableKeepAlives: !kept, MaxIdleConnsPerHost: workers}, workers, each)
				if err != nil {
					return err
				}
				sums[way] += float64(n) / each.Seconds() / rounds
			}
		}
		fmt.Printf("connections kept %v: by the proxy %.0f/s, isolated without it %.0f/s, ratio %.2f\n", kept, sums[0], sums[1], sums[1]/sums[0])
	}
	return nil
}

func hammer(target string, t *http.Transport, workers int, each time.Duration) (int64, error) {
	defer t.CloseIdleConnections()
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	end := time.Now().Add(each)
	for range workers {
		wg.Go(func() {
			for time.Now().Before(end) {
				r, err := (&http.Client{Transport: t}).Get(target)
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					_ = r.Body.Close()
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return done.Load(), nil
}

// garbage sends what is no HTTP, and no TLS inside of a tunnel.
func garbage(proxy string, args []string) error {
	for _, text := range []string{"\x00\xff\xfe\r\n\r\n", "GET\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01", "SSH-2.0-x\r\n", strings.Repeat("A", 1<<20)} {
		c, err := net.Dial("tcp", proxy)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		_, _ = io.WriteString(c, text)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // it must end
		_ = c.Close()
	}
	c, err := tunnel(proxy, args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = io.WriteString(c, "\x16\x03\x01\x00\x05garbage, not a ClientHello")
	_, err = io.Copy(io.Discard, c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return err
	}
	return nil
}

// tunnel is CONNECT.
func tunnel(proxy, host string) (net.Conn, error) {
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n", host, host)
	res, err := http.ReadResponse(bufio.NewReaderSize(io.MultiReader(io.LimitReader(c, 39)), 16), nil)
	if err != nil {
		return nil, fmt.Errorf("CONNECT: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("CONNECT: %s", res.Status)
	}
	return c, nil
}

func noSNI(proxy string, args []string) error {
	c, err := tunnel(proxy, args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // no ServerName: no SNI
	if err := t.Handshake(); err != nil {
		return err
	}
	fmt.Fprintf(t, "GET /v1/no-sni HTTP/1.1\r\nHost: %s\r\n\r\n", args[0]) // the CONNECT authority names the host
	res, err := http.ReadResponse(bufio.NewReader(t), nil)
	if err != nil {
		return err
	}
	fmt.Println(res.Status)
	return nil
}

// resetFlood opens and resets streams as fast as it can (CVE-2023-44487).
func resetFlood(proxy string, args []string) error {
	c, err := tunnel(proxy, args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: args[0], NextProtos: []string{"h2"}})
	if err := t.Handshake(); err != nil {
		return err
	}
	if t.ConnectionState().NegotiatedProtocol != "h2" {
		return fmt.Errorf("no h2")
	}
	if _, err := io.WriteString(t, http2.ClientPreface); err != nil {
		return err
	}
	f := http2.NewFramer(t, t)
	if err := f.WriteSettings(); err != nil {
		return err
	}
	ended := make(chan string, 1)
	go func() {
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				ended <- err.Error()
				return
			}
			if g, ok := fr.(*http2.GoAwayFrame); ok {
				ended <- "GOAWAY " + g.ErrCode.String()
				return
			}
		}
	}()
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	sent := 0
	for id := uint32(1); id < 200_000; id += 2 {
		block.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", args[0]}, {":path", "/v1/flood"}} {
			if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
				return err
			}
		}
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}) != nil ||
			f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
		sent++
		select {
		case why := <-ended:
			fmt.Println("ended:", why, "after", sent)
			return nil
		default:
		}
	}
	fmt.Println("sent", sent)
	return nil
}

// manyHeaders sends 100,000 header fields.
func manyHeaders(proxy string, args []string) error {
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	w := bufio.NewWriter(c)
	fmt.Fprintf(w, "GET http://%s/v1/headers HTTP/1.1\r\nHost: %s\r\n", args[0], args[0])
	for i := range 100_000 {
		if _, err := fmt.Fprintf(w, "X-%d: y\r\n", i); err != nil {
			break
		}
	}
	_, _ = io.WriteString(w, "\r\n")
	_ = w.Flush()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		fmt.Println("closed")
		return nil
	}
	fmt.Println(res.Status)
	return nil
}

// silence opens connections and says nothing.
func silence(proxy string, _ []string) error {
	for range 50 {
		c, err := net.Dial("tcp", proxy)
		if err != nil {
			return err
		}
		defer c.Close()
	}
	return nil
}
