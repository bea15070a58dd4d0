package main

import (
	"slices"
	"testing"
)

func TestReadRecordings(t *testing.T) {
	got, err := readRecordings("goos: linux\nBenchmarkBeginEnd-2   \t  113818\t      9499 ns/op\t      8582 cpu-ns/op\t     560 B/op\t       8 allocs/op\n" +
		"BenchmarkBeginEnd \t  92659\t     12156 ns/op\t      8279.5 cpu-ns/op\nPASS\n")
	if err != nil || !slices.Equal(got, []float64{8582, 8279.5}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := readRecordings("BenchmarkBeginEnd-2 100 9499 ns/op\nPASS\n"); err == nil {
		t.Errorf("no CPU time, and got %v", got)
	}
}

// TestGoalOfRecording: above the limit a run fails, at the median.
func TestGoalOfRecording(t *testing.T) {
	count := func(ns ...float64) (passed, failed int) {
		f := &figures{m: map[cell][]row{}, recording: ns}
		return f.goals()
	}
	if p, n := count(8100, 9900, 30_000); p != 1 || n != 0 {
		t.Errorf("below: %d passed, %d failed", p, n)
	}
	if p, n := count(8100, 10_100, 10_200); p != 0 || n != 1 {
		t.Errorf("above: %d passed, %d failed", p, n)
	}
	if p, n := count(); p != 0 || n != 0 {
		t.Errorf("not measured: %d passed, %d failed", p, n)
	}
}
