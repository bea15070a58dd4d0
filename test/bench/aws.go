package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// awsRow is one line of aws.json. Rates are of requests or, for uploads, MiB.
type awsRow struct {
	Target   string  `json:"target"`
	Scenario string  `json:"scenario"`
	Rate     float64 `json:"per_second"`
	CPU      float64 `json:"cpu_ms"` // of the proxy: per 1,000 requests, or per GiB
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	RSS      int64   `json:"rss_kib"`
}

// awsScenario is one kind of work for aws-sdk-go-v2.
type awsScenario struct {
	name, mode string
	conns      int
	warm, dur  time.Duration
}

func awsScenarios(dur time.Duration) []awsScenario {
	return []awsScenario{
		{"get 1k c1", modeGet, 1, dur / 5, dur}, {"get 1k c32", modeGet, 32, dur / 5, dur},
		{"upload 1 GiB", modeUpload, 1, 0, 4 * dur},
	}
}

// awsBench compares: the SDK signing in process, alone and behind nginx, and
// the SDK with placeholder keys behind Attaché, which signs.
func awsBench(args []string) (bool, error) {
	var attache, out, only, profile string
	var rounds int
	var dur time.Duration
	f := flag.NewFlagSet("aws", flag.ExitOnError)
	f.StringVar(&attache, "attache", "bin/attache", "binary under test")
	f.StringVar(&out, "out", ".cache/bench/aws.json", "where the figures go")
	f.StringVar(&only, "only", "", "run scenarios whose name contains this")
	f.StringVar(&profile, "profile", "", "write a CPU profile of attache's last measurement to this file")
	f.IntVar(&rounds, "rounds", 3, "interleaved rounds")
	f.DurationVar(&dur, "for", 2*time.Second, "length of a measurement")
	_ = f.Parse(args) // exits on an error
	b, err := newAWSBench(attache)
	if err != nil {
		return false, err
	}
	defer func() {
		b.close()
		_ = os.RemoveAll(b.dir)
	}()
	targets, err := b.awsTargets()
	if err != nil {
		return false, err
	}
	var rows []awsRow
	passed, failed := 0, 0
	for _, s := range awsScenarios(dur) {
		if !strings.Contains(s.name, only) {
			continue
		}
		got := map[string][]awsRow{}
		for round := range rounds {
			for i := range targets { // another one goes first in each round
				t := targets[(i+round)%len(targets)]
				r, err := b.awsOne(t, s, profile)
				if err != nil {
					failed++
					fmt.Printf("FAIL   %-10s %-14s %v\n", t.name, s.name, err)
					continue
				}
				passed++
				got[t.name] = append(got[t.name], r)
			}
		}
		for _, t := range targets {
			if rs := got[t.name]; len(rs) > 0 {
				rows = append(rows, medians(rs))
			}
		}
	}
	printAWS(rows)
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	return failed == 0 && passed > 0, saveAWS(out, rows)
}

// newAWSBench starts the origin.
func newAWSBench(attache string) (*bench, error) {
	dir, err := os.MkdirTemp("", "attache-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // nginx reads its files as another user
		return nil, err
	}
	b := &bench{dir: dir}
	if b.attache, err = filepath.Abs(attache); err != nil {
		return nil, err
	}
	if b.self, err = copySelf(dir); err != nil {
		return nil, err
	}
	if b.ca, err = newAuthority(dir); err != nil {
		return nil, err
	}
	_, out, err := b.start(exec.Command(b.self, "aws-origin", b.ca.leafFile, b.ca.leafKeyFile))
	if err != nil {
		return nil, err
	}
	if !out.Scan() {
		return nil, fmt.Errorf("the origin said nothing")
	}
	_, port, err := net.SplitHostPort(out.Text())
	b.origin = "localhost:" + port
	return b, err
}

func (b *bench) awsTargets() ([]*target, error) {
	direct, err := b.plainGenerator()
	if err != nil {
		return nil, err
	}
	ts := []*target{{name: "direct", note: "the SDK signs", gen: direct, order: order{Host: b.origin, CA: b.ca.certFile, Header: true}}}
	for _, make := range []func() (*target, error){b.awsNginx, b.awsAttache} {
		t, err := make()
		if err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	for _, t := range ts {
		fmt.Printf("ready  %-10s %s\n", t.name, t.note)
	}
	return ts, nil
}

func (b *bench) awsNginx() (*target, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	conf, err := b.write("nginx-aws.conf", `daemon off; worker_processes 1; pid `+b.dir+`/nginx.pid; error_log `+b.dir+`/nginx.err;
events { worker_connections 4096; }
http { access_log off; client_max_body_size 0; client_body_temp_path `+b.dir+`/nb; proxy_temp_path `+b.dir+`/np; fastcgi_temp_path `+b.dir+`/nf; uwsgi_temp_path `+b.dir+`/nu; scgi_temp_path `+b.dir+`/ns;
 upstream o { server `+b.origin+`; keepalive 256; keepalive_requests 1000000000; }
 server { listen `+addr+` ssl; keepalive_requests 1000000000; ssl_certificate `+b.ca.leafFile+`; ssl_certificate_key `+b.ca.leafKeyFile+`;
  location / { proxy_pass https://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; proxy_buffering off; proxy_request_buffering off;
   proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_trusted_certificate `+b.ca.certFile+`; proxy_ssl_session_reuse on; } } }
`)
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	t := &target{name: "nginx", note: "the SDK signs; TLS to TLS", order: order{Host: "localhost:" + port, CA: b.ca.certFile, Header: true}}
	return b.daemon(t, addr, "nginx", "-c", conf, "-p", b.dir)
}

// awsAttache is Attaché with everything on: attested caller, policy, scope
// derived from each request, session from the cache, signature, guard, durable
// record.
func (b *bench) awsAttache() (*target, error) {
	const host = "s3.bench.example"
	_, port, err := net.SplitHostPort(b.origin)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "aws-config")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	doc := `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: bench}
spec:
  ttl: 1h
  destinations:
  - {host: ` + host + `, addresses: ["127.0.0.1:` + port + `"], onlyCA: true, caFile: ` + b.ca.certFile + `, serverName: localhost}
  aws:
    roleARN: arn:aws:iam::111122223333:role/bench
    region: us-east-1
    duration: 1h
    endpoint: https://localhost:` + port + `
    addresses: ["127.0.0.1"]
    caFile: ` + b.ca.certFile + `
    endpoints: [{host: ` + host + `, service: s3}]
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: bench}
spec:
  rules:
  - {name: objects, hosts: [` + host + `], action: allow, rawPaths: true, credential: {provider: bench}}
`
	if err := os.WriteFile(filepath.Join(dir, "bench.yaml"), []byte(doc), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.attache, "run", "--config", dir, "--state", b.state(), "--", b.self, "generate")
	in, out, err := b.start(cmd)
	return &target{name: "attache", note: "signs with a session cut to each request", cmd: cmd,
		gen: &generator{in, out}, order: order{Host: host + ":443", CA: "env"}}, err
}

// awsOne measures t in s.
func (b *bench) awsOne(t *target, s awsScenario, profile string) (awsRow, error) {
	o := t.order
	o.Mode, o.Conns, o.Warm, o.For = s.mode, s.conns, s.warm, s.dur
	var before, after usage
	profiled := make(chan error, 1)
	profiled <- nil
	r, err := t.gen.run(o, func(phase string) error {
		if phase != phaseBegin {
			after = t.spent()
			return nil
		}
		before = t.spent()
		if profile != "" && t.cmd != nil && t.name == "attache" {
			<-profiled
			go func() { profiled <- b.profile(options{profile: profile, dur: s.dur}) }()
		}
		return nil
	})
	if err := errors.Join(err, <-profiled); err != nil {
		return awsRow{}, err
	}
	row := awsRow{Target: t.name, Scenario: s.name, Rate: float64(r.Requests) / r.Seconds, P50: r.P50, P99: r.P99, RSS: after.rss}
	spent := float64((after.cpu - before.cpu).Microseconds()) / 1000
	row.CPU = spent / float64(r.Requests) * 1000
	if s.mode == modeUpload { // uploads do not end where the measurement does
		row.Rate = uploadSize / (1 << 20) / (r.P50 / 1e6)
		row.CPU = spent / r.Seconds * (r.P50 / 1e6)
	}
	return row, nil
}

func medians(rs []awsRow) awsRow {
	mid := func(f func(awsRow) float64) float64 {
		v := make([]float64, 0, len(rs))
		for _, r := range rs {
			v = append(v, f(r))
		}
		return median(v)
	}
	return awsRow{
		Target: rs[0].Target, Scenario: rs[0].Scenario,
		Rate: mid(func(r awsRow) float64 { return r.Rate }), CPU: mid(func(r awsRow) float64 { return r.CPU }),
		P50: mid(func(r awsRow) float64 { return r.P50 }), P99: mid(func(r awsRow) float64 { return r.P99 }),
		RSS: slices.MaxFunc(rs, func(a, b awsRow) int { return int(a.RSS - b.RSS) }).RSS,
	}
}

func printAWS(rows []awsRow) {
	fmt.Printf("\n%-14s %-10s %16s %18s %12s %12s %9s\n", "scenario", "target", "rate", "CPU of the proxy", "p50 µs", "p99 µs", "RSS MiB")
	for _, r := range rows {
		rate, cpu := "/s", "ms/1k"
		if strings.HasPrefix(r.Scenario, "upload") {
			rate, cpu = "MiB/s", "ms/GiB"
		}
		fmt.Printf("%-14s %-10s %10.0f %-5s %11.1f %-6s %12.0f %12.0f %9.1f\n", r.Scenario, r.Target, r.Rate, rate, r.CPU, cpu, r.P50, r.P99, float64(r.RSS)/1024)
	}
}

func saveAWS(path string, rows []awsRow) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
