package main

import (
	"regexp"
	"slices"
)

// exclusion is a term of a query that excludes, such as -outcome:ok. No flag
// has a colon in its name.
var exclusion = regexp.MustCompile(`^-[a-z]+:`)

// exclusionsLast moves such terms of a query behind "--", where they are not
// taken for flags.
func exclusionsLast(args []string) []string {
	// What follows "run" is the agent's own.
	first := slices.IndexFunc(args, func(a string) bool { return a == "audit" || a == "run" })
	if first < 0 || args[first] != "audit" {
		return args
	}
	var terms []string
	out := make([]string, 0, len(args)+1)
	for i, a := range args {
		if a == "--" {
			out = append(out, args[i:]...)
			return append(out, terms...)
		}
		if exclusion.MatchString(a) {
			terms = append(terms, a)
		} else {
			out = append(out, a)
		}
	}
	if len(terms) == 0 {
		return out
	}
	return append(append(out, "--"), terms...)
}
