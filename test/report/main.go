// Command report reads `go test -json` from standard input, shows failures and
// a line a package, and closes with "N passed, N failed". It exits 1 if
// anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

func main() {
	var passed, failed, skipped int
	output := map[string][]string{}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 64<<10), 16<<20)
	var failures []string
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text()) // build errors are plain text
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output", "build-output":
			output[key] = append(output[key], e.Output)
		case "pass":
			if e.Test == "" {
				fmt.Printf("ok    %-60s %6.1fs\n", e.Package, e.Elapsed)
			} else {
				passed++
			}
			delete(output, key)
		case "skip":
			if e.Test != "" {
				skipped++
				fmt.Printf("SKIP  %s %s: %s\n", e.Package, e.Test, strings.TrimSpace(strings.Join(output[key], " ")))
			}
		case "fail", "build-fail":
			if e.Test != "" || e.Action == "build-fail" || len(failures) == 0 {
				failed++
				failures = append(failures, e.Package+" "+e.Test)
			}
			fmt.Printf("FAIL  %s %s\n%s", e.Package, e.Test, strings.Join(output[key], ""))
		}
	}
	sort.Strings(failures)
	for _, f := range failures {
		fmt.Println("failed:", f)
	}
	if skipped > 0 {
		fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	} else {
		fmt.Printf("%d passed, %d failed\n", passed, failed)
	}
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}
