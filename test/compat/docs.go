package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// document is docs/compatibility.md.
func document(runs []*run) []byte {
	var b bytes.Buffer
	b.WriteString(`<!-- Written by "make compat"; do not edit. -->
# Compatibility

Unchanged real clients behind ` + "`attache run`" + `, through each front door that can serve them. Each row was run; a cell is "yes"
only if its check passed:

- **works**: the call succeeds at an upstream that verifies the credential, which the client never had.
- **denied**: a denied call shows its user why, or at least its status, and the record has rule and reason.
- **no secret**: nothing that the client received, wrote, printed or has in its environment holds a credential that any upstream issued
  or was shown, also not in base64, hex, gzip or zlib; the search first found values planted in environment, files and answers.
- **record**: the records join one to one, by id, with the upstreams' own access logs, and no field is missing.

Doors: ` + "`connect`" + ` is the explicit proxy for https, ` + "`absolute`" + ` the same for plain http (a provider must say ` + "`unsafeCleartext`" + `),
` + "`base-url`" + ` a local listener that stands for the API.

| client | version | door | works | denied | no secret | record |
|---|---|---|---|---|---|---|
`)
	for _, r := range runs {
		fmt.Fprintf(&b, "| %s | %s | %s |", cell(r.client.name), cell(firstLine(r.version)), r.door)
		for _, err := range r.errs {
			fmt.Fprintf(&b, " %s |", map[bool]string{true: "yes", false: "**no**"}[err == nil])
		}
		b.WriteByte('\n')
	}
	b.WriteString("\n## What a denial looks like, and what a client needs\n\n`attache run` sets proxy and trust variables for all of them; the last column is what it cannot do.\n\n| client | its user sees | needs |\n|---|---|---|\n")
	done := map[string]bool{}
	for _, r := range runs {
		if done[r.client.name] {
			continue
		}
		done[r.client.name] = true
		needs := []string{r.client.note}
		for _, d := range r.client.doors {
			if d.note != "" {
				needs = append(needs, d.String()+": "+d.note)
			}
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", cell(r.client.name), cell(short(r.denial)), strings.Trim(strings.Join(needs, "; "), "; "))
	}
	return b.Bytes()
}

var recordIDs = regexp.MustCompile(`rec_[0-9a-f]+`)

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// short cuts the text of a denial to what fits into a table, around the
// reason where it is there.
func short(s string) string {
	s = recordIDs.ReplaceAllString(s, "rec_…") // the same text for the same behaviour
	s = strings.Join(strings.Fields(strings.ReplaceAll(s, "`", "'")), " ")
	const width = 150
	if len(s) <= width {
		return s
	}
	at := strings.Index(s, reason)
	from := max(0, min(at-60, len(s)-width))
	return strings.ToValidUTF8("…"+s[from:from+width]+"…", "")
}
