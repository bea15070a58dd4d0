package injector

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/attache-dev/attache/injector/internal/names"
)

// TaskHeader names the task that a request belongs to. It is for Attaché
// alone and never reaches an origin.
const TaskHeader = "Attache-Task"

// CheckMethod refuses TRACE (RFC 9110 section 9.3.8) and TRACK: their answers
// repeat the request, credential and all.
func CheckMethod(method string) error {
	if strings.EqualFold(method, http.MethodTrace) || strings.EqualFold(method, "TRACK") {
		return fmt.Errorf("%w: %s is not allowed; use another method", ErrMethod, strings.ToUpper(method))
	}
	return nil
}

// Hygiene removes the fields that speak to a proxy or make an origin see
// another request than policy saw: hop-by-hop fields, those that Connection
// names, method and URL overrides, and what claims to come from a proxy. It
// runs before anything is put on the request. A pipeline that carries an
// upgrade reads Upgrade first and writes it anew.
func Hygiene(r *http.Request) {
	h := r.Header
	trailers := false
	for name, values := range h {
		switch names.Fold(name) {
		case "connection", "proxy-connection":
			for _, v := range values {
				for listed := range strings.SplitSeq(v, ",") {
					if listed = strings.TrimSpace(listed); listed != "" && !strings.EqualFold(listed, "te") {
						dropFolded(h, listed)
					}
				}
			}
		case "te":
			trailers = trailers || wantsTrailers(values)
		}
	}
	for name := range h {
		if n := names.Fold(name); hopByHop(n) || overriding(n) {
			delete(h, name)
		}
	}
	if trailers { // gRPC servers insist on it
		h["Te"] = []string{"trailers"}
	}
	if len(r.Trailer) == 0 {
		h.Del("Trailer")
	}
	for name := range r.Trailer {
		if n := names.Fold(name); hopByHop(n) || overriding(n) {
			delete(r.Trailer, name)
		}
	}
}

func wantsTrailers(values []string) bool {
	for _, v := range values {
		for coding := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(coding), "trailers") {
				return true
			}
		}
	}
	return false
}

func dropFolded(h http.Header, name string) {
	fold := names.Fold(name)
	for k := range h {
		if names.Fold(k) == fold {
			delete(h, k)
		}
	}
}

// hopByHop knows the folded names of RFC 9110 section 7.6.1 and their kin.
func hopByHop(n string) bool {
	switch n {
	case "connection", "keep-alive", "te", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return strings.HasPrefix(n, "proxy-")
}

// overriding knows the folded names of fields by which frameworks and reverse
// proxies replace method, URL, host or client address.
func overriding(n string) bool {
	switch n {
	case "x-http-method-override", "x-http-method", "x-method-override", "x-method",
		"x-original-url", "x-original-uri", "x-original-host", "x-original-method", "x-rewrite-url",
		"x-envoy-original-path", "x-host", "forwarded", "x-forwarded", "x-real-ip", "x-client-ip",
		"x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "via", "attache-task":
		return true
	}
	return strings.HasPrefix(n, "x-forwarded-") || strings.HasPrefix(n, "x-proxyuser-")
}
