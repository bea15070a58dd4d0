package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// recordingLimit is what recording a request may cost, in nanoseconds of CPU:
// begin and end, into a spool on disk, each with the hash of its chain.
const recordingLimit = 10_000.0

var cpuPerOp = regexp.MustCompile(`(?m)^BenchmarkBeginEnd\S*\s.*?([0-9.]+) cpu-ns/op`)

// recordings measures it five times, by the benchmark of package audit.
func recordings() ([]float64, error) {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", "^BenchmarkBeginEnd$", "-benchtime", "1s", "-count", "5", "github.com/attache-dev/attache/audit").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("measure recording: %w\n%s", err, out)
	}
	return readRecordings(string(out))
}

func readRecordings(out string) ([]float64, error) {
	var all []float64
	for _, m := range cpuPerOp.FindAllStringSubmatch(out, -1) {
		ns, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, fmt.Errorf("measure recording: %w", err)
		}
		all = append(all, ns)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("measure recording: no cpu-ns/op in\n%s", out)
	}
	return all, nil
}
