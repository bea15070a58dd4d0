// Command audit runs the tests of the records that are too long, or need too
// much, for the unit tests: producers killed at random moments, a real
// collector, millions of records.
//
//	go run ./test/audit [-short] [-only NAME]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/attache-dev/attache/test/audit/kill"
)

// run is what a case is given.
type run struct {
	short bool
	dir   string // scratch, its own
	// note adds to what is printed of the case: figures.
	note func(format string, args ...any)
}

// testCase is one row of the table in cases.go.
type testCase struct {
	name  string
	short bool // also part of the short form
	run   func(context.Context, *run) error
}

func main() {
	kill.Child()
	os.Exit(audit())
}

func audit() int {
	short := flag.Bool("short", false, "the short form, part of make test")
	only := flag.String("only", "", "cases whose name contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	passed, failed := 0, 0
	for _, c := range cases() {
		if *short && !c.short || !strings.Contains(c.name, *only) {
			continue
		}
		begin := time.Now()
		note, err := one(ctx, c, *short)
		took := time.Since(begin).Round(100 * time.Millisecond)
		if err != nil {
			failed++
			fmt.Printf("FAIL %s (%s)\n%v\n", c.name, took, err)
			continue
		}
		passed++
		fmt.Printf("ok   %s (%s)%s\n", c.name, took, note)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return 1
	}
	return 0
}

func one(ctx context.Context, c testCase, short bool) (note string, err error) {
	dir, err := os.MkdirTemp("", "attache-audit-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL, which root runs as another user, has its files below
		return "", err
	}
	err = c.run(ctx, &run{short: short, dir: dir, note: func(format string, args ...any) {
		note += "\n     " + fmt.Sprintf(format, args...)
	}})
	return note, err
}
