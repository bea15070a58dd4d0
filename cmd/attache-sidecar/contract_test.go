package main

import (
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/podspool"
	"github.com/attache-dev/attache/internal/quantity"
	"github.com/attache-dev/attache/internal/sidecar"
	"github.com/attache-dev/attache/webhook/inject"
)

// container is what injection made of one of ours.
type container struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	Resources struct {
		Requests map[string]string `json:"requests"`
	} `json:"resources"`
}

func (c container) getenv(name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

func injected(t *testing.T, c inject.Config) map[string]container {
	t.Helper()
	var list []container
	inPod(t, c, "initContainers", &list)
	out := map[string]container{}
	for _, c := range list {
		out[c.Name] = c
	}
	return out
}

// inPod reads a part of what injection makes of a pod's spec.
func inPod(t *testing.T, c inject.Config, part string, into any) {
	t.Helper()
	var pod, ns map[string]any
	for text, into := range map[string]*map[string]any{
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"serviceAccountName":"b","containers":[{"name":"agent","image":"agent"}]}}`: &pod,
		`{"name":"a","labels":{"attache.dev/inject":"enabled"}}`:                                                                                     &ns,
	} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	r, err := inject.Pod(pod, ns, c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Pod["spec"].(map[string]any)[part])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// TestSpoolFitsItsVolume: a spool that is full, with everything that as many
// sinks as there can be refused, does not get the pod evicted.
func TestSpoolFitsItsVolume(t *testing.T) {
	const sinks = 8 + 1 // audit.sinks, and the control plane
	if sinks*ship.MaxAside >= podspool.Aside {
		t.Errorf("sinks can set aside %d bytes, and %d are left to them", sinks*ship.MaxAside, podspool.Aside)
	}
	for name, r := range map[string]inject.Resources{
		"default": {}, "larger": {Spool: "1Gi"}, "tight": {Spool: "64Mi", SpoolVolume: "104Mi", EphemeralStorage: "105Mi"}, "no storage": {EphemeralStorage: "0"},
	} {
		t.Run(name, func(t *testing.T) {
			c := inject.Config{
				Image: "attache-sidecar:test", Mode: inject.Explicit, Nonce: strings.Repeat("n", 32), Control: "attache-control.attache-system.svc:8443", ControlCA: "-----BEGIN CERTIFICATE-----\n", Resources: r,
			}
			var volumes []struct {
				Name     string `json:"name"`
				EmptyDir *struct {
					SizeLimit string `json:"sizeLimit"`
					Medium    string `json:"medium"`
				} `json:"emptyDir"`
			}
			inPod(t, c, "volumes", &volumes)
			var o sidecar.Options
			proxy := injected(t, c)[inject.SidecarName]
			if err := o.FromEnv(proxy.getenv); err != nil {
				t.Fatal(err)
			}
			_ = o.Check() // of the other options; sets the default
			for _, v := range volumes {
				if v.Name != "attache-spool" {
					continue
				}
				limit, err := quantity.Parse(v.EmptyDir.SizeLimit)
				if err != nil || v.EmptyDir.Medium != "" {
					t.Fatalf("volume %+v: %v", v.EmptyDir, err)
				}
				if need := o.SpoolBytes + sinks*ship.MaxAside; need >= limit/1000 || o.SpoolBytes < 64<<20 {
					t.Errorf("the spool can take %d bytes of a volume of %s", need, v.EmptyDir.SizeLimit)
				}
				want, ok := proxy.Resources.Requests["ephemeral-storage"]
				if got, err := quantity.Parse(want); ok && (err != nil || got <= limit) || ok == (r.EphemeralStorage == "0") {
					t.Errorf("the sidecar requests %q for a volume of %s", want, v.EmptyDir.SizeLimit)
				}
				return
			}
			t.Errorf("no volume attache-spool among %+v", volumes)
		})
	}
}

// TestContract: this program understands what admission writes into pods, all
// of it.
func TestContract(t *testing.T) {
	cs := injected(t, inject.Config{
		Image: "attache-sidecar:test", Mode: inject.Transparent, Nonce: strings.Repeat("n", 32), Control: "attache-control.attache-system.svc:8443", ControlCA: "-----BEGIN CERTIFICATE-----\n$(X)\n",
		APIServers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("[fd00::1]:443")}, Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Placeholders: []inject.Placeholder{{Env: "OPENAI_API_KEY", Prefix: "sk-", Provider: "openai"}},
		BaseURLs:     []inject.BaseURL{{Env: "API_URL", Provider: "openai", Host: "api.example.com", Port: 443, Path: "/v1"}},
	})
	proxy, ok := cs[inject.SidecarName]
	if !ok {
		t.Fatalf("no sidecar in %v", cs)
	}
	env := map[string]string{}
	for _, e := range proxy.Env {
		env[e.Name] = strings.ReplaceAll(e.Value, "$$", "$") // as the kubelet does
	}
	env["ATTACHE_POD_UID"] = "0d2f8c1e-0000-4000-8000-000000000000"
	c := proxyCommand()
	if proxy.Args[0] != "proxy" {
		t.Fatalf("args %q", proxy.Args)
	}
	var o sidecar.Options
	if err := c.ParseFlags(proxy.Args[1:]); err != nil {
		t.Fatal(err)
	}
	o.Mode, o.Listen, o.Health = flag(c.Flags().GetString("mode")), flag(c.Flags().GetString("listen")), flag(c.Flags().GetString("health"))
	o.StateDir, o.SpoolDir = flag(c.Flags().GetString("state-dir")), flag(c.Flags().GetString("spool-dir"))
	if err := o.FromEnv(func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	if o.Mode != sidecar.Transparent || o.Health != ":15020" || o.Listen != "127.0.0.1:15002" || o.ControlCA != "-----BEGIN CERTIFICATE-----\n$(X)\n" ||
		o.TokenFile != "/var/run/secrets/attache.dev/token" || o.TrustDir != "/var/run/attache/trust" || o.StateDir != "/var/lib/attache/state" {
		t.Errorf("got %+v", o)
	}
	if len(o.Placeholders) != 1 || o.Placeholders[0].Provider != "openai" || !strings.HasPrefix(o.Placeholders[0].Value, "sk-attache") {
		t.Errorf("placeholders %+v", o.Placeholders)
	}
	if len(o.BaseURLs) != 1 || o.BaseURLs[0].Host != "api.example.com" || o.BaseURLs[0].Listen == "" || o.BaseURLs[0].Provider != "openai" {
		t.Errorf("base URLs %+v", o.BaseURLs)
	}

	rules, ok := cs[inject.RedirectName]
	if !ok || rules.Args[0] != "redirect" {
		t.Fatalf("no redirect in %v", cs)
	}
	var f redirectFlags
	r := redirectCommandFor(&f)
	if err := r.ParseFlags(rules.Args[1:]); err != nil {
		t.Fatal(err)
	}
	cfg, err := f.config()
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if cfg.Port4 != 15001 || cfg.Port6 != 15001 || cfg.SidecarUID != 64200 || len(cfg.APIServer) != 2 || len(cfg.Nameservers) != 1 {
		t.Errorf("got %+v", cfg)
	}
}

func flag(s string, err error) string {
	if err != nil {
		return err.Error()
	}
	return s
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"redirect --to-port=x --exempt-uid=1", "invalid argument"},
		{"redirect --to-port=15001 --exempt-uid=1 --apiserver=host:443", `--apiserver is "host:443"`},
		{"redirect --to-port=15001 --exempt-uid=1 --nameservers=host", `--nameservers is "host"`},
		{"redirect --to-port=15001 --exempt-uid=1 --exclude-cidrs=10.0.0.0", `--exclude-cidrs is "10.0.0.0"`},
		{"redirect --to-port=15001 --exempt-uid=1 --exclude-ports=0x10", `--exclude-ports is "0x10"`},
		{"redirect --to-port=15001 --exempt-uid=0", "sidecar uid: is 0"},
		{"redirect --exempt-uid=1", "listener ports: are 0 and 0"},
		{"proxy", "--mode is"},
		{"proxy --mode=explicit", "$ATTACHE_CONTROL is not set"},
		{"proxy --nope", "unknown flag"},
		{"nope", "unknown command"},
	} {
		c := root()
		c.SetArgs(strings.Fields(tt.args))
		c.SetOut(io.Discard)
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.want)
		}
	}
}
