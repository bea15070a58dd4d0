package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/attache-dev/attache/test/audit/kill"
)

func cases() []testCase {
	return []testCase{
		{"producers killed at random moments, with outages, full disks and jumps of the clock", true, kills},
		{"a real OpenTelemetry Collector, killed and cut off", false, goTest("./test/audit/collector", "TestRealCollector")},
		{"tampering at every record's boundary, by who holds store and key too", false, goTest("./audit/checkpoint", "Test(EachBoundaryIsGuarded|RemovedProducer|RolledBackStore|CheckpointLog|LaterCheckpointsExcuseNothing)")},
		{"tampering at random bytes of lines, hashes, checkpoints and the store's file", false, goTest("./audit/checkpoint", "TestRandomBytes(OfTheFile)?")},
	}
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

// goTest is a case that is a Go test. AUDIT_FULL=1 asks it for its full form.
func goTest(pkg, name string) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout=60m", "-run", "^"+name+"$", pkg) //nolint:gosec // our own table
		cmd.Env = append(os.Environ(), "ATTACHE_REQUIRE_SERVERS=1", "TMPDIR="+r.dir)
		if !r.short {
			cmd.Env = append(cmd.Env, "AUDIT_FULL=1")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}
}
