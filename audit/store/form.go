package store

import (
	"context"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// The form of a text is the text with its numbers and ids taken out. Texts that
// have values of their own have few forms, and most patterns are decided by the
// form: path:*refund* is asked of some hundred forms in place of millions of
// paths.
const (
	formNumber = '\x01' // stands for some digits
	formAny    = '\x02' // stands for some text
	// anyForm stands in place of a list of forms that says nothing; no list is
	// spelled so.
	anyForm = "\xff"
	// maxForms bounds the forms of one segment: they multiply the shapes.
	maxForms = 512
	// maxFormed is how long a text may be to have a form of its own, in bytes.
	maxFormed = 2 << 10
	// maxWord is how long a word of letters may be: a longer one is an id.
	maxWord = 24
	// maxMixed is how long a word of letters and digits may be that is taken for a
	// name (v1, s3) and not for an id.
	maxMixed = 3
	// maxCompared bounds the work on one pattern and one form, in their bytes
	// multiplied; beyond, the texts decide.
	maxCompared = 16 << 10
)

const formPrefix = "~"

func isForm(key string) bool { return strings.HasPrefix(key, formPrefix) }

// formOf returns the list of forms of a list of texts.
func formOf(list string) string { return string(appendList(nil, forms(parseList(list)))) }

// forms returns the form of each text.
func forms(texts []string) []string {
	l := make([]string, len(texts))
	for i, v := range texts {
		l[i] = form(v)
	}
	return l
}

// form returns the form of a text in lower case.
func form(text string) string {
	if len(text) > maxFormed || strings.ContainsAny(text, string(formNumber)+string(formAny)) {
		return string(formAny)
	}
	var b strings.Builder
	b.Grow(len(text))
	for i := 0; i < len(text); {
		if !alphanumeric(text[i]) {
			b.WriteByte(text[i])
			i++
			continue
		}
		from, digits := i, 0
		for ; i < len(text) && alphanumeric(text[i]); i++ {
			if digit(text[i]) {
				digits++
			}
		}
		switch word := text[from:i]; {
		case digits == len(word):
			b.WriteByte(formNumber)
		case digits == 0 && len(word) <= maxWord, digits > 0 && len(word) <= maxMixed && !digit(word[0]):
			b.WriteString(word)
		default:
			b.WriteByte(formAny)
		}
	}
	return b.String()
}

func digit(c byte) bool        { return c >= '0' && c <= '9' }
func alphanumeric(c byte) bool { return digit(c) || c >= 'a' && c <= 'z' }

// verdict of a form: whether texts of it match.
type formMatch byte

const (
	formNo formMatch = iota
	formMaybe
	formYes
)

// matchForms is audit.Term.MatchValues of texts of which only the forms are
// known.
func matchForms(t *audit.Term, forms []string) formMatch {
	best := formNo
	for _, f := range forms {
		for _, pattern := range t.Values {
			best = max(best, matchForm(pattern, f))
		}
	}
	if t.Not {
		return formYes - best
	}
	return best
}

func matchForm(pattern, form string) formMatch {
	one := audit.Term{Key: "form", Values: []string{pattern}}
	if one.MatchValues([]string{form}) && !strings.ContainsAny(pattern, string(formNumber)+string(formAny)) {
		return formYes // a star took each number and id, whatever it is
	}
	if len(pattern)*len(form) > maxCompared || mayMatch(pattern, form) {
		return formMaybe
	}
	return formNo
}

// mayMatch reports whether some text of a form matches a pattern: whether two
// patterns have a text in common.
func mayMatch(pattern, form string) bool {
	// State i*width+j*2: the pattern's first i bytes and the form's first j are
	// used up; odd: the form's byte j stands for text of which some is used up.
	width := 2 * (len(form) + 1)
	seen := make([]bool, (len(pattern)+1)*width)
	todo := []int{0}
	reach := func(i, j int, inside bool) {
		n := i*width + 2*j
		if inside {
			n++
		}
		if !seen[n] {
			seen[n] = true
			todo = append(todo, n)
		}
	}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		i, j, inside := n/width, n%width/2, n%2 == 1
		if i == len(pattern) && j == len(form) {
			return true
		}
		star := i < len(pattern) && pattern[i] == '*'
		if star {
			reach(i+1, j, inside)
		}
		if j == len(form) {
			continue
		}
		open := form[j] == formNumber || form[j] == formAny
		if inside {
			reach(i, j+1, false)
		}
		switch {
		case star && open:
			reach(i, j, true)
		case star:
			reach(i, j+1, false)
		case i == len(pattern):
		case open && (form[j] == formAny || digit(pattern[i])):
			reach(i+1, j, true)
		case pattern[i] == form[j]:
			reach(i+1, j+1, false)
		}
	}
	return false
}

// formVerdicts says of each list of forms whether texts of it match.
func formVerdicts(ctx context.Context, t *audit.Term, lists []string) ([]formMatch, error) {
	l := make([]formMatch, len(lists))
	for i, v := range lists {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if l[i] = formMaybe; v != anyForm {
			l[i] = matchForms(t, parseList(v))
		}
	}
	return l, nil
}
