package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/test/audit/kill"
	"github.com/attache-dev/attache/test/audit/query"
	"github.com/attache-dev/attache/test/servers"
)

func cases() []testCase {
	return []testCase{
		{"producers killed at random moments, with outages, full disks and jumps of the clock", true, kills},
		{"a real OpenTelemetry Collector, killed and cut off", false, goTest("./test/audit/collector", "TestRealCollector")},
		{"tampering at every record's boundary, by who holds store and key too", false, goTest("./audit/checkpoint", "Test(EachBoundaryIsGuarded|RemovedProducer|RolledBackStore|CheckpointLog|LaterCheckpointsExcuseNothing)")},
		{"tampering at random bytes of lines, hashes, checkpoints and the store's file", false, goTest("./audit/checkpoint", "TestRandomBytes(OfTheFile)?")},
		{"the collector: forgers, gaps, outages, lost producers, from a spool into SQLite", true, goTest("./control/collector", "Test.*")},
		{"the statements of docs/audit-clickhouse.md in ClickHouse, its answers against the store's", false, clickhouse},
		{"questions to many records in SQLite: p95, rate of ingest, bytes a record", true, questions(false)},
		{"questions to many records in PostgreSQL: p95, rate of ingest, bytes a record", true, questions(true)},
	}
}

// questions measures the record store: ten million records, in the short form
// some thousand and no goals.
func questions(postgres bool) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) (err error) {
		o := query.Options{Records: 10_000_000, URL: "sqlite:" + filepath.Join(r.dir, "audit.db"), Rounds: 20, Out: os.Stderr}
		if r.short {
			o.Records, o.Rounds, o.Out = 10_000, 2, nil
		}
		if postgres {
			pg, err := servers.StartPostgres(ctx, "", "shared_buffers=512MB", "max_wal_size=4GB", "checkpoint_timeout=15min")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, pg.Stop()) }()
			o.URL, o.Files = pg.URL, func() ([]string, error) { return filepath.Glob(filepath.Join(pg.Dir, "data/base/*/*")) }
		}
		if !r.short {
			o.Command = filepath.Join(r.dir, "attache")
			if out, err := exec.CommandContext(ctx, "go", "build", "-o", o.Command, "./cmd/attache").CombinedOutput(); err != nil {
				return fmt.Errorf("build attache: %w\n%s", err, out)
			}
		}
		report, err := query.Run(ctx, o)
		if err != nil {
			return err
		}
		r.note("%s", report.Summary())
		if r.short {
			return nil
		}
		return errors.Join(report.Check(!postgres), pages(ctx, o.URL, r))
	}
}

// pages measures the review page over a store.
func pages(ctx context.Context, url string, r *run) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout=30m", "-v", "-run", "^TestSpeed$", "./audit/ui")
	cmd.Env = append(os.Environ(), "ATTACHE_BENCH_UI="+url)
	out, err := cmd.CombinedOutput()
	n, worst := 0, ""
	for line := range strings.Lines(string(out)) {
		_, path, ok := strings.Cut(line, "speed_test.go:")
		if ms, found := between(line, "95 %", "ms"); ok && found {
			n++
			if old, _ := between(worst, "95 %", "ms"); worst == "" || ms > old {
				worst = path
			}
		}
	}
	if err == nil && n == 0 {
		err = errors.New("no page was measured")
	}
	if err != nil {
		return fmt.Errorf("the pages: %w\n%s", err, out)
	}
	r.note("%d pages, the slowest %s", n, strings.TrimSpace(worst))
	return nil
}

// between returns the number between two words.
func between(line, a, b string) (int, bool) {
	_, rest, ok := strings.Cut(line, a)
	text, _, found := strings.Cut(rest, b)
	n, err := strconv.Atoi(strings.TrimSpace(text))
	return n, ok && found && err == nil
}

func kills(ctx context.Context, r *run) error {
	n := 1000
	if r.short {
		n = 20
	}
	report, err := kill.Run(ctx, kill.Options{Kills: n, Dir: r.dir, Log: os.Stderr})
	if err == nil {
		r.note("%s", report)
	}
	return err
}

// clickhouse installs ClickHouse, from the registry of npm, and asks it.
func clickhouse(ctx context.Context, r *run) error {
	if out, err := exec.CommandContext(ctx, "test/deps.sh", "clickhouse").CombinedOutput(); err != nil {
		return fmt.Errorf("install ClickHouse: %w\n%s", err, out)
	}
	return goTest("./test/audit/clickhouse", "TestSavedQuestions", "-tags=clickhouse")(ctx, r)
}

// goTest is a case that is a Go test. AUDIT_FULL=1 asks it for its full form.
func goTest(pkg, name string, flags ...string) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"test"}, flags...), "-count=1", "-timeout=60m", "-run", "^"+name+"$", pkg)...) //nolint:gosec // our own table
		cmd.Env = append(os.Environ(), "ATTACHE_REQUIRE_SERVERS=1", "TMPDIR="+r.dir)
		if !r.short {
			cmd.Env = append(cmd.Env, "AUDIT_FULL=1")
		}
		out, err := cmd.CombinedOutput()
		if err == nil && bytes.Contains(out, []byte("[no test")) { // "[no tests to run]" and "[no test files]" are ok to go
			err = fmt.Errorf("no test of %s is called %s", pkg, name)
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}
}
