package awsscope

import (
	"maps"
	"slices"
)

// TableSize is the size of the embedded data, in bytes.
func TableSize() int { return len(operationsText) + len(rulesText) }

// RuleActions lists the actions that rules.txt and the code name.
func RuleActions() []string {
	set := map[string]bool{}
	for _, s := range table().services {
		for _, o := range s.ops {
			for _, r := range o.rules {
				for _, a := range r.actions {
					set[a] = true
				}
			}
		}
	}
	for _, o := range table().s3 {
		for _, a := range slices.Concat(o.actions, o.versioned) {
			set[a] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// CredentialActions lists the exact names among the credential actions, in lower case.
func CredentialActions() []string {
	var l []string
	for _, c := range table().credentials {
		l = append(l, c.name)
	}
	return l
}

// LoadTable parses tables.
func LoadTable(operations, rules string) error {
	_, err := load(operations, rules)
	return err
}

// Parsers of foreign bodies, for fuzzing.
var (
	ParseJSON   = parseJSON
	ParseCBOR   = parseCBOR
	ParseQuery  = parseQuery
	ParseDelete = parseDelete
)

// Covers and Overlaps are pattern containment and overlap.
func Covers(wide, narrow Pattern) bool { return resourceCovers(wide, narrow) }

// Overlaps reports whether two patterns may share a string.
func Overlaps(a, b Pattern) bool { return resourceOverlaps(a, b) }
