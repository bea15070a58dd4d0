package http1

// canonical returns the canonical form of a valid field name. The common ones
// cost no allocation, whatever their case.
func canonical(name string) string {
	upper := true
	for i := range len(name) {
		c := name[i]
		if upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			return recase(name)
		}
		upper = c == '-'
	}
	return name
}

func recase(name string) string {
	var buf [64]byte
	b := append(buf[:0], name...)
	upper := true
	for i, c := range b {
		switch {
		case upper && 'a' <= c && c <= 'z':
			b[i] = c - 'a' + 'A'
		case !upper && 'A' <= c && c <= 'Z':
			b[i] = c - 'A' + 'a'
		}
		upper = c == '-'
	}
	return intern(b)
}

// intern is a switch rather than a map: it compiles to a search by length and
// content, and there is nothing to change at run time.
func intern(b []byte) string {
	switch string(b) {
	case "Host":
		return "Host"
	case "Date":
		return "Date"
	case "Cookie":
		return "Cookie"
	case "Accept":
		return "Accept"
	case "Origin":
		return "Origin"
	case "Expect":
		return "Expect"
	case "Range":
		return "Range"
	case "Referer":
		return "Referer"
	case "Upgrade":
		return "Upgrade"
	case "Trailer":
		return "Trailer"
	case "Te":
		return "Te"
	case "Priority":
		return "Priority"
	case "X-Api-Key":
		return "X-Api-Key"
	case "Connection":
		return "Connection"
	case "User-Agent":
		return "User-Agent"
	case "Keep-Alive":
		return "Keep-Alive"
	case "Api-Key":
		return "Api-Key"
	case "Baggage":
		return "Baggage"
	case "Traceparent":
		return "Traceparent"
	case "Tracestate":
		return "Tracestate"
	case "Content-Type":
		return "Content-Type"
	case "Content-Length":
		return "Content-Length"
	case "Content-Encoding":
		return "Content-Encoding"
	case "Accept-Encoding":
		return "Accept-Encoding"
	case "Accept-Language":
		return "Accept-Language"
	case "Authorization":
		return "Authorization"
	case "Cache-Control":
		return "Cache-Control"
	case "If-None-Match":
		return "If-None-Match"
	case "If-Modified-Since":
		return "If-Modified-Since"
	case "Idempotency-Key":
		return "Idempotency-Key"
	case "Last-Event-Id":
		return "Last-Event-Id"
	case "Mcp-Session-Id":
		return "Mcp-Session-Id"
	case "Mcp-Protocol-Version":
		return "Mcp-Protocol-Version"
	case "Anthropic-Version":
		return "Anthropic-Version"
	case "Anthropic-Beta":
		return "Anthropic-Beta"
	case "X-Goog-Api-Key":
		return "X-Goog-Api-Key"
	case "X-Amz-Date":
		return "X-Amz-Date"
	case "X-Amz-Content-Sha256":
		return "X-Amz-Content-Sha256"
	case "X-Amz-Security-Token":
		return "X-Amz-Security-Token"
	case "Amz-Sdk-Invocation-Id":
		return "Amz-Sdk-Invocation-Id"
	case "Amz-Sdk-Request":
		return "Amz-Sdk-Request"
	case "X-Requested-With":
		return "X-Requested-With"
	case "X-Request-Id":
		return "X-Request-Id"
	case "Sec-Fetch-Mode":
		return "Sec-Fetch-Mode"
	case "Sec-Fetch-Site":
		return "Sec-Fetch-Site"
	case "Proxy-Authorization":
		return "Proxy-Authorization"
	case "Proxy-Connection":
		return "Proxy-Connection"
	case "Transfer-Encoding":
		return "Transfer-Encoding"
	case "Sec-Websocket-Key":
		return "Sec-Websocket-Key"
	case "Sec-Websocket-Version":
		return "Sec-Websocket-Version"
	case "Sec-Websocket-Extensions":
		return "Sec-Websocket-Extensions"
	case "Sec-Websocket-Protocol":
		return "Sec-Websocket-Protocol"
	}
	return string(b)
}
