package ui

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// count writes 12,345.
func count(n any) string {
	s := fmt.Sprint(n)
	neg := ""
	if s != "" && s[0] == '-' {
		neg, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return neg + s
}

func byteCount(n int64) string {
	const k = 1024
	switch {
	case n < k:
		return strconv.FormatInt(n, 10) + " B"
	case n < k*k:
		return strconv.FormatFloat(float64(n)/k, 'f', 1, 64) + " KiB"
	case n < k*k*k:
		return strconv.FormatFloat(float64(n)/k/k, 'f', 1, 64) + " MiB"
	default:
		return strconv.FormatFloat(float64(n)/k/k/k, 'f', 1, 64) + " GiB"
	}
}

// ago is a length of time for people: 5 s, 3 min, 2 h, 4 d.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "in the future"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + " d"
	}
}

// cut shortens s to at most n characters.
func cut(n int, s string) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}
