// Command bench measures Attaché beside its peers in one interleaved run on
// loopback: requests/s, CPU of the proxy alone, latency and memory. The
// machine is noisy, so every figure is a median over rounds and the ratios,
// taken round by round, are what counts.
//
//	bench                the matrix
//	bench aws            calls to AWS: who signs, and what that costs
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// scenario is one kind of work.
type scenario struct {
	path  string
	h2    bool
	conns int
}

func (s scenario) String() string {
	proto := "h1"
	if s.h2 {
		proto = "h2"
	}
	return fmt.Sprintf("%s %s c%d", strings.TrimPrefix(s.path, "/"), proto, s.conns)
}

// rounds is how often s is measured when o says nothing else. 256 bodies of
// 10 MiB at a time keep slow targets busy for minutes, so that these are
// measured once.
func (s scenario) rounds(o options) int {
	if s.path == "/10m" && s.conns == 256 {
		return min(o.rounds, 1)
	}
	return o.rounds
}

// row is one line of latest.json.
type row struct {
	Target   string  `json:"target"`
	Scenario string  `json:"scenario"`
	RPS      float64 `json:"rps"`
	CPU      float64 `json:"cpu_ms_per_1k"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	RSS      int64   `json:"rss_kib"`
	dials    int64   // new connections to the origin while measured
}

type options struct {
	attache, out, only, targets, profile string
	rounds                               int
	warm, dur                            time.Duration
	goals                                bool
}

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "origin":
			log.Fatal(origin(os.Args[2], os.Args[3]))
		case "aws-origin":
			log.Fatal(awsOrigin(os.Args[2], os.Args[3]))
		case "aws":
			ok, err := awsBench(os.Args[2:])
			if err != nil {
				log.Fatal("bench: ", err)
			}
			if !ok {
				os.Exit(1)
			}
			return
		case "generate":
			if err := generate(); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
	var o options
	flag.StringVar(&o.attache, "attache", "bin/attache", "binary under test")
	flag.StringVar(&o.out, "out", ".cache/bench/latest.json", "where the figures go")
	flag.StringVar(&o.only, "only", "", "run scenarios whose name contains this, such as \"1k h1\"")
	flag.StringVar(&o.targets, "targets", "", "comma-separated targets; default all")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of attache's last measurement to this file")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.DurationVar(&o.warm, "warm", 300*time.Millisecond, "warm-up of a measurement")
	flag.DurationVar(&o.dur, "for", 1500*time.Millisecond, "length of a measurement")
	flag.BoolVar(&o.goals, "goals", true, "check the goals; a missed one is a failure")
	flag.Parse()
	ok, err := compare(o)
	if err != nil {
		log.Fatal("bench: ", err)
	}
	if !ok {
		os.Exit(1)
	}
}

// close ends what was started, the last first.
func (b *bench) close() {
	for _, c := range slices.Backward(b.closers) {
		c()
	}
}

var portOf = regexp.MustCompile(`:(\d+)`)

func scenarios(only string) []scenario {
	var out []scenario
	for _, path := range []string{"/1k", "/64k", "/10m", "/sse"} {
		for _, h2 := range []bool{false, true} {
			for _, c := range []int{1, 32, 256} {
				s := scenario{path, h2, c}
				if path == "/10m" && h2 && c == 256 {
					continue // HAProxy 2.6 breaks off, mitmproxy takes minutes
				}
				if strings.Contains(s.String(), only) {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

func compare(o options) (bool, error) {
	dir, err := os.MkdirTemp("", "attache-bench-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return false, err
	}
	b := &bench{dir: dir, attache: o.attache}
	if b.attache, err = filepath.Abs(o.attache); err != nil {
		return false, err
	}
	// A copy under a name of its own tells the generator from the target.
	if b.self, err = copySelf(dir); err != nil {
		return false, err
	}
	defer b.close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		b.close()
		_ = os.RemoveAll(dir)
		os.Exit(130)
	}()
	if b.ca, err = newAuthority(dir); err != nil {
		return false, err
	}
	in, out, err := b.start(exec.Command(b.self, "origin", b.ca.leafFile, b.ca.leafKeyFile))
	if err != nil {
		return false, err
	}
	b.counter = &generator{in, out}
	if !out.Scan() {
		return false, fmt.Errorf("origin said nothing")
	}
	ports := portOf.FindAllStringSubmatch(out.Text(), 2)
	if len(ports) != 2 {
		return false, fmt.Errorf("origin said %q", out.Text())
	}
	b.origin, b.originH2 = "localhost:"+ports[0][1], "localhost:"+ports[1][1]
	ts, err := b.targets(o.targets)
	if err != nil {
		return false, err
	}
	all := b.measureAll(ts, scenarios(o.only), o)
	rows := all.rows()
	if err := save(o.out, rows); err != nil {
		return false, err
	}
	all.print()
	if o.goals && o.only == "" {
		if all.recording, err = recordings(); err != nil {
			return false, err
		}
	}
	return all.verdict(o.goals), nil
}

func (b *bench) targets(only string) ([]*target, error) {
	var ts []*target
	for _, m := range []struct {
		name string
		make func() (*target, error)
	}{
		{"direct", b.direct}, {"nginx", b.nginx}, {"haproxy", b.haproxy}, {"squid", b.squid},
		{"mitmproxy", b.mitmproxy}, {"goproxy", b.goproxy}, {"attache", b.attacheTarget},
	} {
		if only != "" && !slices.Contains(strings.Split(only, ","), m.name) {
			continue
		}
		t, err := m.make()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("ready  %-10s %s\n", t.name, t.note)
		ts = append(ts, t)
	}
	return ts, nil
}

func copySelf(dir string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	p := filepath.Join(dir, generatorName)
	return p, os.WriteFile(p, b, 0o755)
}

// generatorName is at most 15 bytes: the kernel's comm holds no more.
const generatorName = "benchgen"

func save(path string, rows []row) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
