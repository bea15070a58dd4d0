package ocsf

import "strings"

// Activities of API Activity.
const (
	create = 1
	read   = 2
	update = 3
	del    = 4
	other  = 99
)

//nolint:gochecknoglobals // constant tables
var (
	crud = map[int]string{create: "Create", read: "Read", update: "Update", del: "Delete", other: "Other"}
	// verbs are the first words of operations of AWS and of RPCs.
	verbs = map[string]int{
		"Get": read, "List": read, "Describe": read, "Head": read, "Query": read, "Scan": read, "Select": read, "Search": read,
		"Lookup": read, "View": read, "Read": read, "Receive": read, "Download": read, "Check": read, "Test": read, "Validate": read,
		"Verify": read, "Simulate": read, "Poll": read, "Peek": read, "Filter": read, "Discover": read, "Preview": read, "Watch": read,
		"Find": read, "Fetch": read, "Count": read, "Decode": read, "Detect": read, "Estimate": read, "Retrieve": read, "Decrypt": read,
		"Create": create, "Run": create, "Start": create, "Allocate": create, "Register": create, "Import": create, "Copy": create,
		"Publish": create, "Send": create, "Upload": create, "Request": create, "Assume": create, "Issue": create, "Generate": create,
		"Insert": create, "Post": create, "Invoke": create, "Purchase": create, "Provision": create, "Launch": create, "Make": create,
		"Write": create, "Encrypt": create, "Sign": create, "Initiate": create, "Invite": create, "Subscribe": create, "Export": create,
		"Put": update, "Update": update, "Modify": update, "Set": update, "Tag": update, "Untag": update, "Attach": update, "Detach": update,
		"Enable": update, "Disable": update, "Change": update, "Restore": update, "Complete": update, "Associate": update, "Disassociate": update,
		"Replace": update, "Reset": update, "Rotate": update, "Stop": update, "Reboot": update, "Pause": update, "Resume": update, "Patch": update,
		"Accept": update, "Reject": update, "Authorize": update, "Add": update, "Apply": update, "Move": update, "Rename": update, "Edit": update,
		"Delete": del, "Remove": del, "Terminate": del, "Deregister": del, "Release": del, "Abort": del, "Purge": del, "Revoke": del,
		"Cancel": del, "Destroy": del, "Drop": del, "Unsubscribe": del,
	}
	methods = map[string]int{
		"GET": read, "HEAD": read, "OPTIONS": read, "TRACE": read, "QUERY": read, "PROPFIND": read, "REPORT": read, "SEARCH": read,
		"POST": create, "MKCOL": create, "COPY": create, "PUT": update, "PATCH": update, "PROPPATCH": update, "MOVE": update, "LOCK": update, "UNLOCK": update,
		"DELETE": del,
	}
)

// byVerb reads the activity from the first word of an operation's name:
// GetObject, list_tables, BatchGetItem.
func byVerb(operation string) int {
	w := firstWord(operation)
	if w == "Batch" || w == "Admin" || w == "Transact" || w == "Bulk" {
		w = firstWord(operation[len(w):])
	}
	if a, ok := verbs[w]; ok {
		return a
	}
	return other
}

// firstWord is the first word of a name in CamelCase, camelCase or snake_case,
// with a capital.
func firstWord(s string) string {
	end := len(s)
	for i := 1; i < len(s); i++ {
		if c := s[i]; c >= 'A' && c <= 'Z' || c == '_' || c == '-' || c >= '0' && c <= '9' {
			end = i
			break
		}
	}
	s = s[:end]
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// byMethod reads it from the HTTP method.
func byMethod(method string) int {
	if a, ok := methods[method]; ok {
		return a
	}
	return other
}
