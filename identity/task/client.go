package task

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/attache-dev/attache/internal/secret"
)

const (
	clientTimeout = 30 * time.Second
	maxAnswer     = 4 << 20
)

// Opened is the answer to opening a task.
type Opened struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
}

// Listed is an open task as [Client.List] shows it. Subject and Issuer are
// empty without a human.
type Listed struct {
	ID       string    `json:"id"`
	Purpose  string    `json:"purpose"`
	OpenedBy string    `json:"opened_by"`
	Workload string    `json:"workload"`
	Run      string    `json:"run"`
	Subject  string    `json:"subject,omitempty"`
	Issuer   string    `json:"issuer,omitempty"`
	Opened   time.Time `json:"opened"`
	Expires  time.Time `json:"expires"`
}

// ClientRequest asks for a task. Only Purpose is required; Workload and Run
// may be empty where one run is served.
type ClientRequest struct {
	Purpose       string
	Workload, Run string
	HumanToken    secret.Value
	TTL           time.Duration
}

// Client speaks to a [Server]. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the server at a Unix socket.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{
		Timeout: clientTimeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, // the server's socket may go at any time
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Open opens a task. Refusals are [*Error].
func (c *Client) Open(ctx context.Context, r ClientRequest) (Opened, error) {
	body := map[string]string{"purpose": r.Purpose}
	for k, v := range map[string]string{"workload": r.Workload, "run": r.Run, "human_token": r.HumanToken.Reveal()} {
		if v != "" {
			body[k] = v
		}
	}
	if r.TTL != 0 {
		body["ttl"] = r.TTL.String()
	}
	b, err := json.Marshal(body)
	if err != nil {
		return Opened{}, fmt.Errorf("open task: %w", err)
	}
	defer clear(b)
	var out Opened
	err = c.do(ctx, http.MethodPost, "/v1/tasks", b, http.StatusCreated, &out)
	return out, err
}

// Close ends a task.
func (c *Client) Close(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/tasks/"+url.PathEscape(id), nil, http.StatusNoContent, nil)
}

// List returns the open tasks, oldest first.
func (c *Client) List(ctx context.Context) ([]Listed, error) {
	var out struct{ Tasks []Listed }
	err := c.do(ctx, http.MethodGet, "/v1/tasks", nil, http.StatusOK, &out)
	return out.Tasks, err
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, want int, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+localHost+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("task request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("reach the task server at %s: %w; is attache running there", c.socket, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the task server's answer: %w", err)
	}
	if res.StatusCode != want {
		var e wireError
		if json.Unmarshal(b, &e) != nil || e.Error.Code == "" {
			return fmt.Errorf("the task server answered %s", res.Status)
		}
		return &Error{Code: e.Error.Code, Text: e.Error.Message}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return errors.New("the task server's answer is no JSON of the expected form")
	}
	return nil
}
