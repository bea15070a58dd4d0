package front

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/http1"
)

// serve is the handler below both codecs.
func (f *Front) serve(w http.ResponseWriter, r *http.Request) {
	conn := proxy.ConnFrom(r.Context())
	if conn == nil {
		f.refuse(w, http.StatusInternalServerError, KindProtocol, "the connection is unknown")
		return
	}
	delete(r.Header, "Proxy-Authorization")
	delete(r.Header, "Proxy-Connection")
	switch {
	case conn.Dest.IsZero() && conn.Door == proxy.DoorTransparent:
		f.serveOriginal(w, r, conn)
	case conn.Dest.IsZero():
		f.serveOuter(w, r, conn)
	case r.Method == http.MethodConnect:
		// RFC 8441 and proxies behind proxies: neither is offered.
		f.refuse(w, http.StatusNotImplemented, KindConnect, "CONNECT inside a connection is not supported")
	case conn.Door == proxy.DoorBaseURL:
		f.serveBase(w, r, conn)
	case conn.Door == proxy.DoorAWS:
		if f.checkLocal(w, r, conn) {
			f.handle(w, r, conn.Dest)
		}
	default:
		if f.checkHost(w, r, conn) {
			f.handle(w, r, conn.Dest)
		}
	}
}

// serveOuter serves what is said to the proxy itself.
func (f *Front) serveOuter(w http.ResponseWriter, r *http.Request, conn *proxy.Conn) {
	switch {
	case r.Method == http.MethodConnect:
		f.connect(w, r, conn)
	case r.URL.Scheme == "http":
		dest, err := destination.FromURL(r.URL)
		if err != nil {
			f.refuse(w, http.StatusBadRequest, KindAuthority, err.Error())
			return
		}
		c := *conn
		c.Door = proxy.DoorAbsolute
		c.Dest = dest
		f.handle(w, r.WithContext(proxy.WithConn(r.Context(), &c)), dest)
	case r.URL.Scheme != "":
		f.refuse(w, http.StatusBadRequest, KindNotProxy, "this proxy takes http:// URLs; for https use CONNECT")
	default:
		f.refuse(w, http.StatusBadRequest, KindNotProxy,
			"this is an HTTP proxy, not a web server; set HTTP_PROXY and HTTPS_PROXY to this address, or start the program with attache run")
	}
}

// checkHost holds the request to the connection's destination: RFC 9110
// section 7.4, RFC 9113 section 8.3.1.
func (f *Front) checkHost(w http.ResponseWriter, r *http.Request, conn *proxy.Conn) bool {
	if !conn.Dest.Is(r.Host) || r.URL.Scheme != "" && r.URL.Scheme != conn.Dest.Scheme {
		f.refuse(w, http.StatusMisdirectedRequest, KindMisdirected,
			"this connection was opened for "+conn.Dest.String()+"; open another one for other hosts")
		return false
	}
	// HTTP/2 keeps a Host field beside :authority.
	if h, ok := r.Header["Host"]; ok {
		if len(h) != 1 || !conn.Dest.Is(h[0]) {
			f.refuse(w, http.StatusMisdirectedRequest, KindMisdirected, "Host and :authority differ")
			return false
		}
		delete(r.Header, "Host")
	}
	return true
}

// handle gives the canonical request to the handler.
func (f *Front) handle(w http.ResponseWriter, r *http.Request, dest destination.Destination) {
	if r.ProtoMajor == 2 && !f.checkH2(w, r) {
		return
	}
	if r.URL.Path == "" {
		r.URL.Path = "/" // http://host: RFC 9110 section 4.2.3
	}
	r.URL.Scheme = dest.Scheme
	r.Host = dest.Authority()
	r.URL.Host = r.Host
	f.Handler.ServeHTTP(w, r)
}

// checkH2 refuses what the HTTP/2 library lets pass and HTTP/1.1 could not
// carry on.
func (f *Front) checkH2(w http.ResponseWriter, r *http.Request) bool {
	if !httpguts.ValidHeaderFieldName(r.Method) { // a token, as a method is
		f.refuse(w, http.StatusBadRequest, http1.KindMethod, "the :method is not a token")
		return false
	}
	p := r.RequestURI
	if p == "" || p[0] != '/' && (p != "*" || r.Method != http.MethodOptions) {
		f.refuse(w, http.StatusBadRequest, KindPath, "the :path must begin with a slash")
		return false
	}
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == '#' {
			f.refuse(w, http.StatusBadRequest, KindPath, "the :path holds a byte that must be percent-encoded")
			return false
		}
	}
	n := 0
	for _, v := range r.Header {
		n += len(v)
	}
	if n > f.maxHeaders() {
		f.refuse(w, http.StatusRequestHeaderFieldsTooLarge, http1.KindHeaderCount, "the request has too many header fields")
		return false
	}
	if te, ok := r.Header["Te"]; ok && (len(te) != 1 || !strings.EqualFold(te[0], "trailers")) {
		f.refuse(w, http.StatusBadRequest, http1.KindHeaderValue, "TE may only be trailers (RFC 9113 section 8.2.2)")
		return false
	}
	return true
}
