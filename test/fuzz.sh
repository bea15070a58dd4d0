#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time (20s) or number of
# inputs (20x), one after another, and ends with the count. A crasher's input
# is kept by `go test` in testdata. Few inputs show that a target works and
# finds nothing at once; that is what a gate can ask, since what a longer search
# finds depends on luck.
set -uo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
passed=0 failed=0
while IFS=: read -r file name; do
	pkg=./$(dirname "$file")
	printf 'fuzz  %-52s %s\n' "$pkg $name" "$time"
	if out=$(go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 5x -parallel 2 "$pkg" 2>&1); then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		printf '%s\n' "$out" | tail -n 40
	fi
done < <(git grep -hoE --full-name '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' >/dev/null 2>&1 && git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed -E 's/:func /:/')
echo "fuzz: $passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
