package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Text writes the report for people. With all, it lists every pod; otherwise
// those that are not current and ready.
func (r *Report) Text(w io.Writer, all bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) }

	line("Kubernetes %s", r.Kubernetes)
	for _, w := range r.Warnings {
		line("WARNING: %s", w)
	}
	line("\nTEMPLATE\tSTATE\tPODS\tSINCE\tIMAGE")
	for _, x := range r.Templates {
		state := "accepted"
		switch {
		case x.Retired:
			state = "retired"
		case x.Current:
			state = "current"
		}
		line("%s\t%s\t%d\t%s\t%s", x.Template, state, x.Pods, x.Since.UTC().Format(time.RFC3339), x.Image)
	}
	line("\nNAMESPACE\tMODE\tPODS\tCURRENT\tOLD\tUNINJECTED\tOTHER\tNOT READY")
	for _, n := range r.Namespaces {
		other := n.Pods - n.By[Current] - n.By[Old] - n.By[Uninjected]
		line("%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d", n.Name, or(n.Mode, "default"), n.Pods, n.By[Current], n.By[Old], n.By[Uninjected], other, n.NotReady)
	}
	r.podLines(line, all)
	line("\nOBJECT\tACCEPTED\tRESOLVED\tPROGRAMMED\tREJECTED\tMESSAGE")
	for _, o := range r.Objects {
		programmed, rejected := o.Programmed, "-"
		if o.Sidecars != nil {
			programmed, rejected = o.Sidecars.Summary, fmt.Sprint(o.Sidecars.Rejected)
		}
		line("%s %s\t%s\t%s\t%s\t%s\t%s", o.Kind, strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"), o.Accepted, o.Resolved, programmed, rejected, short(o.Message))
	}
	return t.Flush()
}

func (r *Report) podLines(line func(string, ...any), all bool) {
	pods := r.Pods
	if !all {
		pods = slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return p.State == OptedOut || p.State == Current && p.Ready })
	}
	if len(pods) == 0 {
		return
	}
	line("\nPOD\tSTATE\tREADY\tATTESTED\tMODE\tTEMPLATE\tWHY")
	for _, p := range pods {
		line("%s/%s\t%s\t%t\t%t\t%s\t%.12s\t%s", p.Namespace, p.Name, p.State, p.Ready, p.Attested, or(p.Mode, "-"), or(p.Template, "-"), short(p.Why))
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// short is one line of a terminal.
func short(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	const most = 120
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
