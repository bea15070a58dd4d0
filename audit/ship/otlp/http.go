package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/internal/secret"
)

const protobufType = "application/x-protobuf"

type overHTTP struct {
	client *http.Client
	url    string
	gzip   bool
}

func newHTTP(c Config) (transport, error) {
	if err := CheckEndpoint(HTTP, c.Endpoint); err != nil {
		return nil, fmt.Errorf("otlp sink %s: endpoint %q %w", c.Name, c.Endpoint, err)
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/logs"
	}
	t := &http.Transport{TLSClientConfig: c.TLS, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 2, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
	// A redirect would take the records, and the headers, somewhere else.
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &overHTTP{client, u.String(), c.Gzip}, nil
}

// Close implements io.Closer.
func (h *overHTTP) Close() error {
	h.client.CloseIdleConnections()
	return nil
}

func (h *overHTTP) export(ctx context.Context, req *collogs.ExportLogsServiceRequest, headers map[string]secret.Value) (*collogs.ExportLogsServiceResponse, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, &refusedError{"not encodable: " + err.Error()} // text that is no UTF-8
	}
	if h.gzip {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		body = z.Bytes()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", protobufType)
	r.Header.Set("User-Agent", "attache")
	if h.gzip {
		r.Header.Set("Content-Encoding", "gzip")
	}
	for name, v := range headers {
		r.Header.Set(name, v.Reveal())
	}
	resp, err := h.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("otlp: read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, text)
	}
	answer := &collogs.ExportLogsServiceResponse{}
	if err := proto.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("otlp: %s answers 200 with what is no answer of OTLP: is it a collector?", h.url)
	}
	return answer, nil
}

// refusal is [classify] for HTTP: 400, 413 and 422 are about these records,
// everything else about the receiver.
func refusal(resp *http.Response, text []byte) error {
	why := "HTTP " + strconv.Itoa(resp.StatusCode)
	var st spb.Status
	if resp.Header.Get("Content-Type") == protobufType && proto.Unmarshal(text, &st) == nil && st.GetMessage() != "" {
		why += ": " + st.GetMessage()
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return &refusedError{why}
	}
	var after time.Duration
	if v := resp.Header.Get("Retry-After"); v != "" { // RFC 9110 section 10.2.3
		if n, err := strconv.Atoi(v); err == nil {
			after = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(v); err == nil {
			after = time.Until(t)
		}
	}
	return later(fmt.Errorf("otlp: %s", why), after)
}
