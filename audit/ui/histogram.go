package ui

import (
	"context"
	"strings"
	"time"
)

// histogram is drawn as SVG and told as a table.
type histogram struct {
	Bars     []histBar
	Table    []histRow // bars that are not empty, newest first
	Max      int64
	Width    int // of the drawing, in its own units
	Height   int
	From, To time.Time
	Each     string // width of a bar, for people
	Total    int64
	Denied   int64
	Note     string
}

// histBar is one column: all records, and the refused ones below.
type histBar struct {
	X, W       int
	Y, H       int
	NoY, NoH   int
	Start, End time.Time
	Count      int64
	Denied     int64
}

type histRow struct {
	Start         time.Time
	Count, Denied int64
	Failed        int64
	URL           string
}

const (
	histHeight   = 100
	histBarWidth = 10
	maxHistBars  = 200
	maxHistRows  = 100
)

// histogram counts what the query text finds from since to until; a zero until
// is now. Of both only what the text does not say is added to it.
func (s *Server) histogram(ctx context.Context, scope Scope, text string, since, until time.Time) (*histogram, error) {
	q, err := s.ask(scope, text)
	if err != nil {
		return nil, err
	}
	if until.IsZero() {
		until = s.now()
	}
	var bounds []string
	if q.Filter.Since().IsZero() {
		bounds = append(bounds, term("since", since.UTC().Format(time.RFC3339Nano)))
	}
	if q.Filter.Until().IsZero() {
		bounds = append(bounds, term("until", until.UTC().Add(time.Second).Format(time.RFC3339)))
	}
	if q, err = s.ask(scope, append([]string{text}, bounds...)...); err != nil {
		return nil, err
	}
	width := widthFor(until.Sub(since))
	b, err := s.c.Store.Histogram(ctx, q, width)
	if err != nil {
		return nil, err
	}
	terms := withoutTimes(text)
	if len(b) > 1 {
		width = b[1].Start.Sub(b[0].Start) // the store may have chosen wider ones
	}
	if len(b) > maxHistBars {
		b = b[len(b)-maxHistBars:]
	}
	h := &histogram{Height: histHeight, Width: max(1, len(b)) * histBarWidth, Each: spell(width)}
	for _, x := range b {
		h.Max = max(h.Max, x.Count)
	}
	for i, x := range b {
		n, no := x.Count, x.Denied
		bar := histBar{X: i*histBarWidth + 1, W: histBarWidth - 2, Start: x.Start, End: x.Start.Add(width), Count: n, Denied: no}
		bar.H, bar.NoH = scale(n, h.Max), scale(no, h.Max)
		bar.Y, bar.NoY = histHeight-bar.H, histHeight-bar.NoH
		h.Bars = append(h.Bars, bar)
		h.Total += n
		h.Denied += no
		h.To = bar.End
	}
	if len(b) > 0 {
		h.From = b[0].Start
	}
	if since.After(h.From) {
		h.From = since
	}
	if h.To.After(until) {
		h.To = until
	}
	for i := len(b) - 1; i >= 0 && len(h.Table) < maxHistRows; i-- {
		if b[i].Count > 0 {
			h.Table = append(h.Table, histRow{b[i].Start, b[i].Count, b[i].Denied, b[i].Failed,
				searchURL(terms, term("since", b[i].Start.UTC().Format(time.RFC3339)), term("until", b[i].Start.Add(width).UTC().Format(time.RFC3339)))})
		}
	}
	return h, nil
}

// withoutTimes leaves since: and until: out of a query that is to get others. The
// last ones count, so that a query with quotes may keep its own.
func withoutTimes(text string) string {
	if strings.Contains(text, `"`) {
		return text
	}
	var l []string
	for t := range strings.FieldsSeq(text) {
		if k, _, _ := strings.Cut(strings.ToLower(t), ":"); k != "since" && k != "until" {
			l = append(l, t)
		}
	}
	return strings.Join(l, " ")
}

// scale gives the height of n; what is there is seen.
func scale(n, most int64) int {
	if n <= 0 || most <= 0 {
		return 0
	}
	return max(2, int(n*(histHeight-4)/most))
}

// spell is a length of time in whole units, where it has them.
func spell(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0:
		return plural(int(d/(24*time.Hour)), "day")
	case d%time.Hour == 0:
		return plural(int(d/time.Hour), "hour")
	case d%time.Minute == 0:
		return plural(int(d/time.Minute), "minute")
	default:
		return d.String()
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return count(n) + " " + what + "s"
}
