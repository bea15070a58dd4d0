package chain

import (
	"fmt"
	"strconv"
	"strings"
)

// Range is sequences from From to To, both included.
type Range struct{ From, To uint64 }

// FormatRanges writes ascending ranges as "4-6,9"; no range is "".
func FormatRanges(ranges []Range) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(r.From, 10))
		if r.To != r.From {
			b.WriteByte('-')
			b.WriteString(strconv.FormatUint(r.To, 10))
		}
	}
	return b.String()
}

// ParseRanges reads what FormatRanges wrote of ranges that ascend, do not touch
// each other and begin at 1 or later.
func ParseRanges(text string) ([]Range, error) {
	if text == "" {
		return nil, nil
	}
	var l []Range
	for part := range strings.SplitSeq(text, ",") {
		from, to, both := strings.Cut(part, "-")
		if !both {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 64)
		b, err2 := strconv.ParseUint(to, 10, 64)
		if err1 != nil || err2 != nil || a == 0 || b < a || both && a == b || len(l) > 0 && a <= l[len(l)-1].To+1 {
			return nil, fmt.Errorf("ranges of sequences: %q is none, or does not ascend", part)
		}
		l = append(l, Range{a, b})
	}
	if FormatRanges(l) != text {
		return nil, fmt.Errorf("ranges of sequences: %q is not spelled as it is written", text)
	}
	return l, nil
}
