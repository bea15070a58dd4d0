package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// The libraries' loggers are set once, before anything reads them.
func TestMain(m *testing.M) {
	setLoggers(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

func execute(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	c, _ := root()
	var b, discard strings.Builder
	c.SetOut(&b)
	c.SetErr(&discard)
	c.SetArgs(args)
	err = c.ExecuteContext(t.Context())
	return b.String(), err
}

func TestVersion(t *testing.T) {
	out, err := execute(t, "version", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Go, Platform string }
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Go == "" || v.Platform == "" {
		t.Errorf("version: %q, %v", out, err)
	}
	if out, err = execute(t, "version"); err != nil || !strings.HasPrefix(out, "attache-control ") {
		t.Errorf("version: %q, %v", out, err)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, err := execute(t, "completion", shell); err != nil || !strings.Contains(out, "attache-control") {
			t.Errorf("%s: %.40q, %v", shell, out, err)
		}
	}
	if out, _ := execute(t, "__complete", "serve", "--roles", ""); !strings.Contains(out, "webhook\n") {
		t.Errorf("roles complete to %q", out)
	}
}

// Mistakes of the operator are found before the cluster is asked.
func TestBadFlags(t *testing.T) {
	good := []string{"serve", "--namespace=attache-system", "--sidecar-image=x", "--kubeconfig=/nonexistent/config"}
	for name, c := range map[string]struct {
		flag, want string
	}{
		"role":       {"--roles=webhook,kitchen", `--roles has "kitchen"; must be of webhook`},
		"no role":    {"--roles=", "--roles is empty"},
		"namespace":  {"--namespace=", "--namespace is missing"},
		"image":      {"--sidecar-image=", "--sidecar-image is missing"},
		"authority":  {"--ca-source=vault", "--ca-source is \"vault\"; must be secret or spire"},
		"SPIRE":      {"--ca-source=spire", "--spire-server is missing"},
		"listen":     {"--webhook-listen=10250", `--webhook-listen is "10250"; must be HOST:PORT`},
		"relay rate": {"--relay-rate=0", "--relay-rate is 0; must be 1 to 100000"},
		"drain":      {"--drain=1h", "--drain is 1h0m0s; must be 0 to 5m"},
		"log":        {"--log-level=loud", `--log-level is "loud"`},
		"output":     {"--output=xml", `--output is "xml"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := execute(t, append(good, c.flag)...)
			if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %s", err, c.want)
			}
		})
	}
	if _, err := execute(t, good...); err == nil || errors.Is(err, errUsage) || !strings.Contains(err.Error(), "find the cluster") {
		t.Errorf("good flags without a cluster: %v", err)
	}
}

func TestOldClusters(t *testing.T) {
	for minor, ok := range map[string]bool{"32": false, "32+": false, "33": true, "33+": true, "37": true, "": false} {
		if err := checkVersion("1", minor, "v1."+minor); (err == nil) != ok {
			t.Errorf("1.%s: %v", minor, err)
		}
	}
	if checkVersion("2", "40", "v2.40") == nil {
		t.Error("version 2 is not known to work")
	}
}

func TestHealth(t *testing.T) {
	h := &health{}
	s := httptest.NewServer(h.handler(prometheus.NewRegistry()))
	defer s.Close()
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	var broken error
	h.add("certificate", func() error { return broken })
	if code, text := get("/readyz"); code != 200 {
		t.Errorf("ready: %d %s", code, text)
	}
	broken = errors.New("is not there")
	if code, text := get("/readyz"); code != 503 || !strings.Contains(text, "certificate: is not there") {
		t.Errorf("broken: %d %s", code, text)
	}
	broken = nil
	h.draining.Store(true)
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("draining: %d", code)
	}
	for _, path := range []string{"/healthz", "/metrics"} {
		if code, _ := get(path); code != 200 {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func TestMistypedCommand(t *testing.T) {
	for args, want := range map[string]string{"templates lst": `unknown command "lst" for "attache-control templates"`, "issuer exprot": `unknown command "exprot"`, "templates": ""} {
		c, _ := root()
		c.SetArgs(strings.Fields(args))
		c.SetOut(io.Discard)
		if err := c.Execute(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
