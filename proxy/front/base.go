package front

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/http1"
)

// ServeBaseURL accepts clients that take ln's address for dest: a request to
// http(s)://127.0.0.1:PORT/path stands for dest/path. With tlsConfig the
// listener speaks TLS. It returns like [Front.ServeProxy] and closes ln.
func (f *Front) ServeBaseURL(ctx context.Context, ln net.Listener, dest destination.Destination, tlsConfig *tls.Config) error {
	if dest.IsZero() {
		return errors.New("front: a base URL needs a destination")
	}
	local := ln.Addr().String()
	return f.accept(ctx, ln, func(ctx context.Context, c *clientConn) {
		conn := f.attest(ctx, c)
		if conn == nil {
			return
		}
		conn.Door = proxy.DoorBaseURL
		conn.Dest = dest
		conn.Local = local
		if tlsConfig != nil {
			if tc, ctx := f.handshake(ctx, c, conn, tlsConfig); tc != nil {
				c.next = func(context.Context) { f.serveTLS(ctx, tc) }
			}
			return
		}
		p, err := c.sniff(or(f.Limits.IdleTimeout.D(), http1.DefaultIdleTimeout))
		if err != nil {
			return
		}
		ctx = proxy.WithConn(ctx, conn)
		if p == protoHTTP2 {
			f.serveH2(ctx, c)
			return
		}
		f.h1.ServeConn(ctx, c) // it answers garbage, too
	})
}

// checkLocal refuses what a browser page sends to a local listener: it demands
// the listener's own Host (DNS rebinding) and nothing that says cross-site.
func (f *Front) checkLocal(w http.ResponseWriter, r *http.Request, conn *proxy.Conn) bool {
	if !ownHost(r.Host, conn.Local) {
		f.refuse(w, http.StatusMisdirectedRequest, KindMisdirected, "this listener is "+conn.Local+"; ask for it by that name")
		return false
	}
	if h, ok := r.Header["Host"]; ok && (len(h) != 1 || !ownHost(h[0], conn.Local)) {
		f.refuse(w, http.StatusMisdirectedRequest, KindMisdirected, "Host and :authority differ")
		return false
	}
	delete(r.Header, "Host")
	for _, name := range []string{"Origin", "Sec-Fetch-Site"} {
		if _, ok := r.Header[name]; ok {
			f.refuse(w, http.StatusForbidden, KindCrossSite, "requests of web pages are not served here ("+name+")")
			return false
		}
	}
	return true
}

// serveBase serves a request on a base-URL listener.
func (f *Front) serveBase(w http.ResponseWriter, r *http.Request, conn *proxy.Conn) {
	if !f.checkLocal(w, r, conn) {
		return
	}
	base := "http://" + conn.Local
	if r.TLS != nil {
		base = "https://" + conn.Local
	}
	f.handle(&baseWriter{ResponseWriter: w, dest: conn.Dest, base: base}, r, conn.Dest)
}

// ownHost allows the listener's own address and localhost.
func ownHost(host, local string) bool {
	if strings.EqualFold(host, local) {
		return true
	}
	addr, port, err := net.SplitHostPort(local)
	if err != nil {
		return false
	}
	if ip := net.ParseIP(addr); ip == nil || !ip.IsLoopback() && !ip.IsUnspecified() {
		return false
	}
	return strings.EqualFold(host, "localhost:"+port)
}

// baseWriter maps links to the destination back to the local listener.
type baseWriter struct {
	http.ResponseWriter
	dest   destination.Destination
	base   string
	mapped bool
}

// WriteHeader implements http.ResponseWriter.
func (w *baseWriter) WriteHeader(status int) {
	if !w.mapped {
		w.mapped = status >= 200 || status == http.StatusSwitchingProtocols
		h := w.Header()
		for _, name := range []string{"Location", "Content-Location"} {
			for i, v := range h[name] {
				h[name][i] = w.mapURL(v)
			}
		}
		for i, v := range h["Link"] {
			h["Link"][i] = w.mapLink(v)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *baseWriter) Write(p []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(p)
}

// WriteString implements io.StringWriter.
func (w *baseWriter) WriteString(s string) (int, error) {
	w.begin()
	return io.WriteString(w.ResponseWriter, s)
}

// FlushError implements http.ResponseController's Flush.
func (w *baseWriter) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (w *baseWriter) Flush() { _ = w.FlushError() }

// Hijack implements http.Hijacker.
func (w *baseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Unwrap implements http.ResponseController.
func (w *baseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *baseWriter) begin() {
	if !w.mapped {
		w.WriteHeader(http.StatusOK)
	}
}

// mapURL replaces the destination's scheme and authority, in any spelling, by
// the listener's. Other URLs stay.
func (w *baseWriter) mapURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return s
	}
	if u.Scheme == "" { // //host/path
		u.Scheme = w.dest.Scheme
	}
	if d, err := destination.FromURL(u); err != nil || d != w.dest {
		return s
	}
	// The rest is kept byte for byte: a signature may cover it.
	_, rest, _ := strings.Cut(s, "//")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return w.base + rest[i:]
	}
	return w.base
}

// mapLink maps the URLs of a Link field, which stand between angle brackets:
// RFC 8288 section 3.
func (w *baseWriter) mapLink(s string) string {
	var b strings.Builder
	for {
		open := strings.IndexByte(s, '<')
		end := -1
		if open >= 0 {
			end = strings.IndexByte(s[open:], '>')
		}
		if end < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:open+1])
		b.WriteString(w.mapURL(s[open+1 : open+end]))
		s = s[open+end:]
	}
}

// LocalURL is the base URL by which clients reach ln.
func LocalURL(ln net.Listener, useTLS bool) string {
	scheme := "http"
	if useTLS {
		scheme = "https"
	}
	host, port := "127.0.0.1", ""
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		port = strconv.Itoa(a.Port)
		if !a.IP.IsUnspecified() {
			host = a.IP.String()
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
