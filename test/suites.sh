#!/usr/bin/env bash
# Runs make targets one after another, goes on after a failure so that one run
# shows everything, and ends with the count and the minutes of each.
set -uo pipefail
cd "$(dirname "$0")/.."
passed=0 failed=() times=()
for suite in "$@"; do
	echo "== $suite"
	begin=$SECONDS
	if "${MAKE:-make}" --no-print-directory "$suite"; then
		passed=$((passed + 1))
	else
		failed+=("$suite")
	fi
	times+=("$suite $(((SECONDS - begin) / 60)):$(printf %02d $(((SECONDS - begin) % 60)))")
done
echo "minutes: ${times[*]}"
[ ${#failed[@]} -eq 0 ] || echo "failed suites: ${failed[*]}"
echo "suites: $passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] && [ "$passed" -gt 0 ]
