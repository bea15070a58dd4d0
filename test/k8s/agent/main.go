// Command agent is an unchanged program: it calls URLs with net/http and what
// the environment says, and knows nothing of Attaché.
//
//	agent get URL...           calls each once; fails unless all answer 200
//	agent loop PERIOD URL      calls without end, one line for each call
//	agent stream URL           prints the lines of an answer that does not end
//	agent fresh PERIOD URL     as loop, with a new connection for each call
//	agent sleep                waits for the signal that ends it
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: agent get|loop|fresh|stream|sleep, and their arguments")
	}
	switch args[0] {
	case "get":
		return getAll(ctx, args[1:])
	case "loop", "fresh":
		return loop(ctx, args[0] == "fresh", args[1:])
	case "stream":
		return stream(ctx, args[1])
	case "sleep":
		<-ctx.Done()
		return nil
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func getAll(ctx context.Context, urls []string) error {
	var errs []error
	for _, url := range urls {
		if l := call(ctx, http.DefaultClient, url); l.Status != http.StatusOK {
			errs = append(errs, fmt.Errorf("%s: status %d %s", url, l.Status, l.Error))
		}
	}
	return errors.Join(errs...)
}

func loop(ctx context.Context, fresh bool, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: agent loop PERIOD URL")
	}
	period, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = fresh
	client := &http.Client{Transport: transport, Timeout: 15 * time.Second}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		call(ctx, client, args[1])
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// line is what is printed for each call.
type line struct {
	URL    string    `json:"url"`
	Status int       `json:"status"`
	Body   string    `json:"body,omitempty"`
	Error  string    `json:"error,omitempty"`
	At     time.Time `json:"at"`
}

func call(ctx context.Context, c *http.Client, url string) line {
	l := line{URL: url, At: time.Now()}
	defer func() { _ = json.NewEncoder(os.Stdout).Encode(l) }()
	resp, err := get(ctx, c, url)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	defer resp.Body.Close()
	l.Status = resp.StatusCode
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	l.Body = strings.TrimSpace(string(body))
	if err != nil {
		l.Error, l.Status = err.Error(), 0
	}
	return l
}

func get(ctx context.Context, c *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return c.Do(req)
}

func stream(ctx context.Context, url string) error {
	resp, err := get(ctx, http.DefaultClient, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("status " + resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the stream ended")
}
