package trail

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// Document is a policy, provider or configuration as records have it: what
// decides, without what the API server keeps beside it.
type Document struct {
	Kind, Namespace, Name string
	Text                  string // YAML
	Digest                string // SHA-256 of Text, hex
}

// NewDocument makes one of an object's spec. Equal specs give equal documents.
func NewDocument(kind, namespace, name string, spec json.RawMessage) (Document, error) {
	meta := map[string]any{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	if len(spec) == 0 {
		spec = json.RawMessage("{}")
	}
	text, err := json.Marshal(map[string]any{"apiVersion": v1alpha1.APIVersion, "kind": kind, "metadata": meta, "spec": spec})
	if err == nil {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return Document{}, fmt.Errorf("%s %s/%s: %w", kind, namespace, name, err)
	}
	sum := sha256.Sum256(text)
	return Document{kind, namespace, name, string(text), hex.EncodeToString(sum[:])}, nil
}

// diff is the difference of two texts as it is recorded.
func (t *Trail) diff(before, after string) string {
	return diff(before, after, t.spool.Redactor().DocumentLines)
}

// Bounds of a difference.
const (
	maxDiff      = 16 << 10 // bytes, of a record
	maxDiffLines = 2000     // of what differs; more is told as replaced
	diffContext  = 3
)

// diff is the unified difference of two texts, whose lines are shown as mask
// makes them of each text. What differs is seen in the texts as they are: a
// secret that changed is a line taken out and one put in, which look the same.
func diff(before, after string, mask func(string) []string) string {
	if before == after {
		return ""
	}
	a, b := lines(before, mask), lines(after, mask)
	head := 0
	for head < len(a) && head < len(b) && a[head].text == b[head].text {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail].text == b[len(b)-1-tail].text {
		tail++
	}
	ops := edits(a[head:len(a)-tail], b[head:len(b)-tail])
	var out strings.Builder
	from, to := max(0, head-diffContext), max(0, tail-diffContext)
	fmt.Fprintf(&out, "@@ -%d,%d +%d,%d @@\n", from+1, len(a)-to-from, from+1, len(b)-to-from)
	for i := from; i < head; i++ {
		out.WriteString(" " + both(a[i], b[i]) + "\n")
	}
	for _, l := range ops {
		out.WriteString(l + "\n")
	}
	for i := tail; i > to; i-- {
		out.WriteString(" " + both(a[len(a)-i], b[len(b)-i]) + "\n")
	}
	text := out.String()
	if len(text) > maxDiff {
		cut := strings.LastIndexByte(text[:maxDiff-len("…\n")], '\n') + 1
		text = text[:cut] + "…\n"
	}
	return text
}

// line is one of a text, and what is shown of it.
type line struct{ text, shown string }

func lines(s string, mask func(string) []string) []line {
	s = strings.TrimSuffix(s, "\n")
	if s == "" {
		return nil
	}
	texts, shown := strings.Split(s, "\n"), mask(s)
	out := make([]line, len(texts))
	for i, l := range texts {
		out[i] = line{l, audit.Mask}
		if len(shown) == len(texts) {
			out[i].shown = shown[i]
		}
	}
	return out
}

// both is a line that two texts have: what one of them masks is not shown.
func both(a, b line) string {
	switch {
	case a.shown == b.shown, b.shown == b.text:
		return a.shown
	case a.shown == a.text:
		return b.shown
	}
	return audit.Mask
}

// edits turns a into b by the longest common subsequence; large ones are all
// taken out and put in, so that work and memory are bounded.
func edits(a, b []line) (out []string) {
	if len(a)*len(b) > maxDiffLines*maxDiffLines/4 {
		for _, l := range a {
			out = append(out, "-"+l.shown)
		}
		for _, l := range b {
			out = append(out, "+"+l.shown)
		}
		return out
	}
	// common[i][j] is the length of what a[i:] and b[j:] have in common.
	common := make([][]int32, len(a)+1)
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i].text == b[j].text {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i].text == b[j].text:
			out = append(out, " "+both(a[i], b[j]))
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "-"+a[i].shown)
			i++
		default:
			out = append(out, "+"+b[j].shown)
			j++
		}
	}
	return out
}
