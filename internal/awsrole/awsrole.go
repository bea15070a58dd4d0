// Package awsrole reads ARNs of IAM roles and the templates that stand for
// them: text with variables of the attested workload, its task and the human
// behind it.
//
// A variable is ${workload.name} (the last segment of the SPIFFE ID),
// ${workload.namespace}, ${workload.serviceAccount}, ${workload.labels.KEY},
// ${task.purpose}, ${human.subject} or ${human.email}. What a workload or a
// task says is data: a value that could change the meaning of the text around
// it is an error, never escaped or cut. ${task.purpose} is a claim of whoever
// opened the task; the others are verified.
package awsrole

import (
	"fmt"
	"strings"

	"github.com/attache-dev/attache/identity"
)

// maxTemplate bounds a template and what it becomes: an ARN has at most 2048
// characters (IAM API reference, data type arnType).
const maxTemplate = 2048

const labels = "workload.labels."

// variables are the names that stand in ${…}, beside workload.labels.KEY.
var variables = map[string]func(*identity.Workload, *identity.Task) string{
	"workload.name":           name,
	"workload.namespace":      func(w *identity.Workload, _ *identity.Task) string { return w.Namespace },
	"workload.serviceAccount": func(w *identity.Workload, _ *identity.Task) string { return w.ServiceAccount },
	"task.purpose":            func(_ *identity.Workload, t *identity.Task) string { return t.Purpose },
	"human.subject":           func(_ *identity.Workload, t *identity.Task) string { return t.Human.Subject },
	"human.email":             func(_ *identity.Workload, t *identity.Task) string { return t.Human.Email },
}

func name(w *identity.Workload, _ *identity.Task) string {
	p := w.ID.Path()
	return p[strings.LastIndexByte(p, '/')+1:]
}

// Expand puts the values of w and t in place of template's variables and
// parses the result: it is the ARN of a role. A value may hold letters, digits
// and _+=,.@- only, so that it stays within its part of the ARN.
func Expand(template string, w *identity.Workload, t *identity.Task) (string, error) {
	arn, err := Text(template, w, t, inName)
	if err != nil {
		return "", err
	}
	if _, err := Parse(arn); err != nil {
		return "", err
	}
	return arn, nil
}

// Text is [Expand] for text that is no ARN, such as a session tag; legal says
// which characters a value may hold.
func Text(template string, w *identity.Workload, t *identity.Task, legal func(rune) bool) (string, error) {
	return walk(template, func(v string) (string, error) {
		s, err := value(v, w, t)
		if err != nil {
			return "", err
		}
		for _, r := range s {
			if !legal(r) {
				return "", fmt.Errorf("${%s}: its value %q has a character that may not stand there", v, s)
			}
		}
		return s, nil
	})
}

// Check reports what no workload and task could make right: an unknown
// variable, an unfinished one, or text around them that is no role's ARN.
func Check(template string) error {
	arn, err := walk(template, sample)
	if err != nil {
		return err
	}
	_, err = Parse(arn)
	return err
}

// CheckText is [Check] for text that is no ARN.
func CheckText(template string) error {
	_, err := walk(template, sample)
	return err
}

// sample stands for any value; digits, so that it may be an account too.
func sample(v string) (string, error) {
	if !known(v) {
		return "", unknown(v)
	}
	return "000000000000", nil
}

// HasVariables reports whether template depends on the workload or task.
func HasVariables(template string) bool { return strings.Contains(template, "${") }

// walk replaces each ${variable} of template by what f says.
func walk(template string, f func(variable string) (string, error)) (string, error) {
	if len(template) > maxTemplate {
		return "", fmt.Errorf("has %d bytes; at most %d are possible", len(template), maxTemplate)
	}
	var b strings.Builder
	for rest := template; ; {
		before, after, found := strings.Cut(rest, "${")
		b.WriteString(before)
		if !found {
			break
		}
		v, after, closed := strings.Cut(after, "}")
		if !closed {
			return "", fmt.Errorf("%q has a ${ without its }", template)
		}
		s, err := f(v)
		if err != nil {
			return "", err
		}
		b.WriteString(s)
		rest = after
	}
	if b.Len() > maxTemplate {
		return "", fmt.Errorf("has %d bytes with its variables; at most %d are possible", b.Len(), maxTemplate)
	}
	return b.String(), nil
}

func known(v string) bool {
	if key, ok := strings.CutPrefix(v, labels); ok {
		return key != "" && !strings.ContainsAny(key, "${}")
	}
	_, ok := variables[v]
	return ok
}

func unknown(v string) error {
	return fmt.Errorf("has the unknown variable ${%s}; there are ${workload.name}, ${workload.namespace}, ${workload.serviceAccount}, ${workload.labels.KEY}, ${task.purpose}, ${human.subject} and ${human.email}", v)
}

// value of one variable; empty is an error, for a template with a hole in it
// names another role.
func value(v string, w *identity.Workload, t *identity.Task) (string, error) {
	if !known(v) {
		return "", unknown(v)
	}
	var s string
	switch {
	case strings.HasPrefix(v, "workload.") && w == nil:
		return "", fmt.Errorf("${%s}: there is no attested workload", v)
	case strings.HasPrefix(v, labels):
		s = w.Labels[v[len(labels):]]
	case strings.HasPrefix(v, "task.") && t == nil:
		return "", fmt.Errorf("${%s}: the call belongs to no task", v)
	case strings.HasPrefix(v, "human.") && (t == nil || t.Human == nil):
		return "", fmt.Errorf("${%s}: the call's task runs for no human", v)
	default:
		s = variables[v](w, t)
	}
	if s == "" {
		return "", fmt.Errorf("${%s}: is empty", v)
	}
	return s, nil
}

// inName is the alphabet of an IAM role's name (IAM API reference, roleNameType).
func inName(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+=,.@-", r)
}
