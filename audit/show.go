package audit

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Show writes the story of one record: what happened when, then each field with
// its trust.
func (p *Printer) Show(r Record) error {
	if p.json {
		return p.Print(r)
	}
	var b strings.Builder
	if r.Event != nil {
		b.WriteString(p.eventLine(&r) + "\n")
	} else {
		b.WriteString(p.paint(bold, Safe(first(target(r.Request), r.ID))) + "\n")
		for _, l := range p.story(&r) {
			b.WriteString("  " + l + "\n")
		}
	}
	b.WriteString("\n")
	p.table(&b, reflect.ValueOf(r), "", FieldTrust())
	b.WriteString("\n")
	_, err := p.w.Write([]byte(b.String()))
	return err
}

// story tells attested → decided → begun → minted → used → answered → ended.
func (p *Printer) story(r *Record) []string {
	steps := r.Steps
	if steps == nil {
		steps = &Steps{}
	}
	var l []string
	add := func(us int64, word, text string, shown bool) {
		if !shown && us == 0 {
			return
		}
		when := strings.Repeat(" ", len("15:04:05.000000"))
		if us != 0 {
			when = r.Time.Add(time.Duration(us) * time.Microsecond).In(p.loc).Format("15:04:05.000000")
		}
		l = append(l, p.paint(dim, when)+"  "+p.paint(bold, fmt.Sprintf("%-9s", word))+" "+Safe(text))
	}
	attested := ""
	if r.Workload != nil {
		attested = r.Workload.ID
		if r.Process != nil && r.Process.Exe != "" {
			attested += fmt.Sprintf(", process %d (%s)", r.Process.PID, r.Process.Exe)
		}
	}
	if r.Human != nil {
		attested += ", for " + first(r.Human.Email, r.Human.Subject) + " of " + r.Human.Issuer
	}
	l = append(l, p.paint(dim, r.Time.In(p.loc).Format("15:04:05.000000"))+"  "+p.paint(bold, fmt.Sprintf("%-9s", "asked"))+" "+Safe(target(r.Request)))
	if steps.Attested != 0 { // at the connection, before the request
		attested += ", in " + micros(steps.Attested) + " when the connection was accepted"
	}
	add(0, "attested", attested, attested != "")
	add(steps.Decided, "decided", decided(r.Decision), r.Decision != nil)
	add(steps.Begun, "begun", "record "+r.ID, r.BeginSequence != 0 || r.Type == TypeBegin)
	minted, used := "no credential", ""
	if u := r.Credential; u != nil && u.Handle != "" {
		minted, used = "by "+u.Provider+", "+u.Kind, credential(u)
		if u.Cached {
			minted += ", from the cache"
		}
	}
	add(steps.Minted, "minted", minted, r.Credential != nil && r.Credential.Handle != "")
	add(steps.Injected, "used", used, used != "")
	answered := ""
	if r.Result != nil && r.Result.Status != 0 {
		answered = fmt.Sprintf("status %d", r.Result.Status)
	}
	add(steps.FirstByte, "answered", answered, answered != "")
	add(steps.Ended, "ended", ended(r.Result), true)
	return l
}

func decided(d *Decision) string {
	if d == nil {
		return ""
	}
	s := d.Verdict
	if n := ruleName(d); n != "" {
		s += " by " + n
	}
	if d.WouldDeny {
		s += " (would deny)"
	}
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	return s
}

func ended(res *Result) string {
	if res == nil {
		return OutcomeOpen
	}
	s := res.Outcome
	if res.ErrorKind != "" {
		s += " (" + res.ErrorKind + ")"
	}
	return fmt.Sprintf("%s, %d bytes up, %d down", s, res.BytesUp, res.BytesDown)
}

// table writes each field that is set: path, value, trust.
func (p *Printer) table(b *strings.Builder, v reflect.Value, prefix string, trust map[string]string) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if f.IsZero() {
			continue
		}
		if f.Kind() == reflect.Pointer {
			p.table(b, f.Elem(), prefix+name+".", trust)
			continue
		}
		if l, ok := f.Interface().([]Actor); ok {
			for j := range l {
				p.table(b, reflect.ValueOf(l[j]), fmt.Sprintf("%s%s[%d].", prefix, name, j), trust)
			}
			continue
		}
		word := trust[unindexed(prefix)+name]
		color := dim
		if word == Claimed {
			color = yellow
		}
		fmt.Fprintf(b, "  %-28s %s  %s\n", prefix+name, p.paint(color, fmt.Sprintf("%-8s", word)), Safe(valueText(f)))
	}
}

// unindexed is "actors." for "actors[0].".
func unindexed(prefix string) string {
	if i := strings.IndexByte(prefix, '['); i >= 0 {
		return prefix[:i] + prefix[strings.IndexByte(prefix, ']')+1:]
	}
	return prefix
}

func valueText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Time:
		return x.UTC().Format(time.RFC3339Nano)
	case []string:
		return strings.Join(x, ", ")
	case map[string]string:
		var l []string
		for _, k := range sortedKeys(x) {
			l = append(l, k+"="+x[k])
		}
		return strings.Join(l, ", ")
	default:
		return fmt.Sprint(x)
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
