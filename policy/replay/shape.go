package replay

import "strings"

// Shape is a path with its ids left out, to group by: /orders/17 is
// /orders/{id}.
func Shape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if IsID(p) {
			parts[i] = "{id}"
		}
	}
	return strings.Join(parts, "/")
}

// IsID reports whether a segment of a path looks like the name of one thing
// among many: a number, a UUID, hexadecimal digits or a long random text.
func IsID(s string) bool {
	const minHex, minRandom = 8, 16
	digits, hex, letters := 0, true, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
			letters++
		case c >= 'g' && c <= 'z' || c >= 'G' && c <= 'Z':
			letters++
			hex = false
		case c == '-' || c == '_':
		default:
			return false
		}
	}
	switch {
	case digits == 0:
		return false
	case letters == 0:
		return true
	case hex && len(s) >= minHex:
		return true
	}
	return len(s) >= minRandom && digits >= 3
}
