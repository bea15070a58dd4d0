package audit

import (
	"slices"
	"strconv"
)

// maxDocumentFields is in how many fields a policy.bundle lists its documents:
// with the others that it has, fewer than an event may have.
const maxDocumentFields = 24

// BundleFields are the fields of an [EventPolicyBundle]: what a version consists
// of, a line a document, sorted, in the fields documents, documents.2 and so on.
// left_out says how many had no room.
func BundleFields(version string, documents []string) map[string]string {
	documents = slices.Sorted(slices.Values(documents))
	fields := map[string]string{"version": version, "count": strconv.Itoa(len(documents))}
	key, n := "documents", 1
	for i, line := range documents {
		if text := fields[key]; text != "" {
			if len(text)+1+len(line) <= maxField {
				fields[key] = text + "\n" + line
				continue
			}
			if n++; n > maxDocumentFields {
				fields["left_out"] = strconv.Itoa(len(documents) - i)
				break
			}
			key = "documents." + strconv.Itoa(n)
		}
		fields[key] = line
	}
	return fields
}
