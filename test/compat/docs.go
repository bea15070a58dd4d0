package main

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
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
` + "`base-url`" + ` a local listener that stands for the API, ` + "`base-url, https`" + ` one that speaks TLS, ` + "`connect, http`" + ` plain http in a tunnel.

The AWS SDKs (boto3, Go, JavaScript) are not here: to a server that checks no signature they are one more HTTP client. They run
against servers that do, in ` + "`test/aws`" + `.

## Each client and each door

A dash is a door that the client cannot take; the note says why. ` + "`attache doctor`" + `, run beside, says the same of the runtimes that it probes.

`)
	writeDoors(&b, runs)
	b.WriteString("\n## Each check\n\n| client | version | door | works | denied | no secret | record |\n|---|---|---|---|---|---|---|\n")
	for _, r := range runs {
		fmt.Fprintf(&b, "| %s | %s | %s |", cell(r.client.name), cell(firstLine(r.version)), r.door.name)
		for _, err := range r.errs {
			fmt.Fprintf(&b, " %s |", yes(err == nil))
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
				needs = append(needs, d.name+": "+d.note)
			}
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", cell(r.client.name), cell(short(r.denial)), strings.Trim(strings.Join(needs, "; "), "; "))
	}
	return b.Bytes()
}

// writeDoors is one row a client: yes, or a dash with a footnote.
func writeDoors(b *bytes.Buffer, runs []*run) {
	fmt.Fprintf(b, "| client | %s |\n|---|%s\n", strings.Join(allDoors[:], " | "), strings.Repeat("---|", len(allDoors)))
	var notes []string
	for i, r := range runs {
		if i > 0 && runs[i-1].client.name == r.client.name {
			continue
		}
		fmt.Fprintf(b, "| %s |", cell(r.client.name))
		for _, d := range allDoors {
			reason, cannot := r.client.reasons[d]
			if !cannot {
				fmt.Fprintf(b, " %s |", yes(passed(runs, r.client.name, d)))
				continue
			}
			at := slices.Index(notes, reason)
			if at < 0 {
				at, notes = len(notes), append(notes, reason)
			}
			fmt.Fprintf(b, " – [%d] |", at+1)
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	for i, n := range notes {
		fmt.Fprintf(b, "%d. %s\n", i+1, n)
	}
}

// passed reports whether the client ran through the door and each cell is good.
func passed(runs []*run, client, door string) bool {
	i := slices.IndexFunc(runs, func(r *run) bool { return r.client.name == client && r.door.name == door })
	return i >= 0 && runs[i].errs == [cells]error{}
}

func yes(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
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
