package guard

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/attache-dev/attache/injector/internal/names"
	"github.com/attache-dev/attache/injector/internal/wire"
	"github.com/attache-dev/attache/internal/secret"
)

// Request makes a request that is about to carry a credential ask for an
// answer that can be guarded: content codings are cut to those that [Response]
// decodes, WebSocket frames stay uncompressed and, with echoRisk, Range goes.
func Request(r *http.Request, echoRisk bool) {
	cutEncoding(r.Header)
	// permessage-deflate (RFC 7692) would hide echoes in frames.
	r.Header.Del("Sec-Websocket-Extensions")
	if echoRisk {
		r.Header.Del("Range")
		r.Header.Del("If-Range")
	}
}

// cutEncoding keeps of Accept-Encoding what can be decoded, weights and all. A
// request without the field accepts any coding (RFC 9110 section 12.5.3), so
// that identity is then asked for.
func cutEncoding(h http.Header) {
	var kept []string
	for _, v := range h.Values("Accept-Encoding") {
		for part := range strings.SplitSeq(v, ",") {
			part = strings.TrimSpace(part)
			name, _, _ := strings.Cut(part, ";")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "gzip", "x-gzip", "deflate", "identity":
				kept = append(kept, part)
			}
		}
	}
	if len(kept) == 0 {
		kept = []string{"identity"}
	}
	h.Set("Accept-Encoding", strings.Join(kept, ", "))
}

// Opened is what [Vault.Unseal] did to a request.
type Opened struct {
	// Names of headers, parameters and cookies whose handle was opened.
	Names []string
	// Removed are those that held a handle that does not open for this caller,
	// at this host or in this place.
	Removed []string
	// Secrets are the opened values: the echo guard looks for them too.
	Secrets []secret.Value
}

// Unseal opens the handles that a request carries to the host of who: in
// credential headers, in cookies and in query parameters. Every other handle
// is removed, so that none travels to a stranger. It is called after the
// agent's own credentials were stripped (which keeps handles, see
// [Vault.Holds]) and before injection. A nil Vault does nothing.
func (v *Vault) Unseal(r *http.Request, who Who) Opened {
	var o Opened
	if v == nil {
		return o
	}
	u := unsealer{v: v, who: who, o: &o}
	for name, values := range r.Header {
		if strings.EqualFold(name, "cookie") {
			wire.CookieLines(r.Header, name, u.cookie, nil)
			continue
		}
		kept := values[:0]
		for _, value := range values {
			if out, ok := u.header(name, value); ok {
				kept = append(kept, out)
			}
		}
		if len(kept) == 0 {
			delete(r.Header, name)
		} else {
			r.Header[name] = kept
		}
	}
	if strings.Contains(r.URL.RawQuery, HandlePrefix) || strings.Contains(r.URL.RawQuery, "%") {
		r.URL.RawQuery = wire.Params(r.URL.RawQuery, u.param)
	}
	if holdsHandle(r.URL.RawQuery) { // in text that decodes to something else
		r.URL.RawQuery = wire.Drop(r.URL.RawQuery, holdsHandle)
		u.removed("query (handle)")
	}
	return o
}

type unsealer struct {
	v   *Vault
	who Who
	o   *Opened
}

func (u *unsealer) open(name, handle string, slots ...string) (string, bool) {
	s, ok := u.v.open(u.who, handle, slots...)
	if !ok {
		return "", false
	}
	u.o.Names = append(u.o.Names, name)
	u.o.Secrets = append(u.o.Secrets, s)
	return s.Reveal(), true
}

func (u *unsealer) removed(name string) { u.o.Removed = append(u.o.Removed, name) }

// header returns the value to send, or false to drop it.
func (u *unsealer) header(name, value string) (string, bool) {
	scheme, rest, ok := strings.Cut(value, " ")
	if names.Header(name) {
		if strings.EqualFold(scheme, "basic") && ok {
			return u.basic(name, scheme, strings.TrimSpace(rest), value)
		}
		if out, ok := u.open(name, value, slotToken); ok {
			return out, true
		}
		if ok {
			if out, ok := u.open(name, strings.TrimSpace(rest), slotToken); ok {
				return scheme + " " + out, true
			}
		}
	}
	if holdsHandle(value) {
		u.removed(name)
		return "", false
	}
	return value, true
}

// basic opens a handle that stands for user or password (RFC 7617): git and
// pip send tokens so.
func (u *unsealer) basic(name, scheme, enc, value string) (string, bool) {
	plain, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		if plain, err = base64.RawStdEncoding.DecodeString(enc); err != nil {
			return value, !holdsHandle(value)
		}
	}
	if !holdsHandle(string(plain)) {
		return value, true
	}
	user, password, _ := strings.Cut(string(plain), ":")
	opened := false
	for _, part := range []*string{&user, &password} {
		if out, ok := u.open(name, *part, slotToken); ok {
			*part, opened = out, true
		}
	}
	if !opened || holdsHandle(user+" "+password) {
		u.removed(name)
		return "", false
	}
	return scheme + " " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), true
}

func (u *unsealer) cookie(name, value string) (string, bool) {
	bare := strings.Trim(value, `"`)
	if !holdsHandle(bare) && !holdsHandle(name) {
		return value, true
	}
	slots := []string{"cookie:" + name}
	if names.Cookie(name) {
		slots = append(slots, slotToken)
	}
	if v, ok := u.open("cookie "+name, bare, slots...); ok {
		return v, true
	}
	if holdsHandle(name) {
		name = "(handle)"
	}
	u.removed("cookie " + name)
	return "", false
}

func (u *unsealer) param(name, raw string) (string, bool) {
	value, err := url.QueryUnescape(raw)
	if err != nil {
		value = raw
	}
	if !holdsHandle(value) && !holdsHandle(name) {
		return raw, true
	}
	if v, ok := u.open("query "+name, value, "param:"+names.Fold(name)); ok {
		return v, true // kept as it stood in the URL
	}
	if names.Param(name) {
		if v, ok := u.open("query "+name, value, slotToken); ok {
			return url.QueryEscape(v), true
		}
	}
	if holdsHandle(name) {
		name = "(handle)"
	}
	u.removed("query " + name)
	return "", false
}
