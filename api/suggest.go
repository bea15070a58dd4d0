package api

import (
	"slices"
	"strings"
)

// suggest says which name was probably meant.
func suggest(got string, allowed []string) string {
	best, bestDistance := "", min(len(got)-1, max(2, len(got)/3))+1
	for _, a := range allowed {
		if d := distance(strings.ToLower(got), strings.ToLower(a)); d < bestDistance {
			best, bestDistance = a, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	sorted := slices.Clone(allowed)
	slices.Sort(sorted)
	return "must be one of " + strings.Join(sorted, ", ")
}

// distance is the Levenshtein distance; texts longer than any field name are
// simply far away.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
