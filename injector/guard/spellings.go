package guard

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// spellings lists the ways in which one unit of a family may be written.
func spellings(k class) []string {
	c := k.c
	switch k.kind {
	case 'p':
		return escapes(c)
	case 'h':
		return []string{strings.ToLower(string(rune(c))), strings.ToUpper(string(rune(c)))}
	case 'b', 'w':
		var out []string
		for _, v := range alphabets(c) {
			if isAlnum(v) { // no encoder escapes a letter of base64
				out = append(out, string(rune(v)))
			} else {
				out = append(out, escapes(v)...)
			}
		}
		if k.kind == 'b' {
			return out
		}
		for _, nl := range []string{"\n", "\r\n", `\n`, `\r\n`} {
			for _, v := range alphabets(c) {
				out = append(out, nl+string(rune(v)))
			}
		}
		return out
	default:
		return []string{string([]byte{c})}
	}
}

// alphabets gives the standard and URL-safe digit (RFC 4648 sections 4 and 5).
func alphabets(c byte) []byte {
	switch c {
	case '+':
		return []byte("+-")
	case '/':
		return []byte("/_")
	}
	return []byte{c}
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// escapes lists the escaped forms of one byte: percent (RFC 3986 section 2.1)
// once and twice, JSON (RFC 8259 section 7), the \x of JavaScript, and the
// character references of XML and HTML.
func escapes(c byte) []string {
	out := []string{string([]byte{c})}
	for _, h := range hexForms(c) {
		out = append(out, "%"+h, "%25"+h, `\u00`+h, `\x`+h)
		for zeros := range maxZeros + 1 {
			t := strings.Repeat("0", zeros) + strings.TrimLeft(h, "0")
			out = append(out, references("x"+t)...)
			out = append(out, references("X"+t)...)
		}
	}
	for zeros := range maxZeros + 1 {
		out = append(out, references(strings.Repeat("0", zeros)+strconv.Itoa(int(c)))...)
	}
	switch c {
	case '/', '"', '\\':
		out = append(out, `\`+string(rune(c)))
	case ' ':
		out = append(out, "+")
	}
	for _, n := range xmlNames(c) {
		out = append(out, "&"+n+";")
		if n != "apos" { // the others are older than the rule about the semicolon
			out = append(out, "&"+n)
		}
	}
	return out
}

// maxZeros is how many zeros may lead the number of a character reference. HTML
// allows any number; a bound keeps a match, and what waits for it, finite.
const maxZeros = 5

// references writes a numeric character reference as XML does and as HTML's
// parser forgives it, without the semicolon (HTML, section 13.2.5.80).
func references(number string) []string {
	return []string{"&#" + number + ";", "&#" + number}
}

func xmlNames(c byte) []string {
	switch c {
	case '&':
		return []string{"amp", "AMP"}
	case '<':
		return []string{"lt", "LT"}
	case '>':
		return []string{"gt", "GT"}
	case '"':
		return []string{"quot", "QUOT"}
	case '\'':
		return []string{"apos"}
	}
	return nil
}

// hexForms gives the two digits in every mixture of case.
func hexForms(c byte) []string {
	h := fmt.Sprintf("%02x", c)
	seen := map[string]bool{}
	var out []string
	for _, a := range []string{h[:1], strings.ToUpper(h[:1])} {
		for _, b := range []string{h[1:], strings.ToUpper(h[1:])} {
			if !seen[a+b] {
				seen[a+b] = true
				out = append(out, a+b)
			}
		}
	}
	return out
}

func hexDigits(s string) string { return hex.EncodeToString([]byte(s)) }

// base64Core returns the digits that s determines alone when off bytes stand
// before it in the encoded text: the digits at its edges depend on the
// neighbours as well and are left out.
func base64Core(s string, off int) string {
	enc := base64.RawStdEncoding.EncodeToString(append(make([]byte, off), s...))
	from := (8*off + 5) / 6
	to := 8 * (off + len(s)) / 6
	return enc[from:to]
}
