package inject

import (
	"fmt"
	"slices"

	"github.com/attache-dev/attache/internal/trust"
)

// staticSecrets warns of each secret that the author set: the agent can read
// it, so it is one that Attaché was to make needless. No warning holds a value.
func (j *injection) staticSecrets() {
	for _, c := range j.containers {
		seen := j.status.seen(c.name)
		for i, e := range j.objects(c.object, "env", c.path+".env") {
			path := fmt.Sprintf("%s.env[%d]", c.path, i)
			name := j.text(e, "name", path+".name")
			if seen && j.names[name] && !j.status.kept(c.name, name) {
				continue // ours
			}
			if why := j.static(e, name, path); why != "" {
				j.warnings.add(fmt.Sprintf("%s (%.60s): %s, which the agent can read", path, name, why))
			}
		}
		for i, e := range j.objects(c.object, "envFrom", c.path+".envFrom") {
			path := fmt.Sprintf("%s.envFrom[%d].secretRef", c.path, i)
			if j.object(e, "secretRef", path) != nil {
				j.warnings.add(path + ": puts a Secret into variables, which the agent can read")
			}
		}
		for _, key := range []string{"command", "args"} {
			for i, s := range j.strings(c.object, key, c.path+"."+key) {
				if why := trust.Suspicious("", head(s)); why != "" {
					j.warnings.add(fmt.Sprintf("%s.%s[%d]: %s, which the agent can read", c.path, key, i, why))
				}
			}
		}
	}
	for _, v := range j.volumes {
		if !slices.Contains(ownVolumes, v.name) && j.holdsSecret(v) {
			j.warnings.add(v.path + ": holds a Secret, which containers that mount it can read")
		}
	}
}

func (j *injection) static(e object, name, path string) string {
	from := j.object(e, "valueFrom", path+".valueFrom")
	switch {
	case from == nil:
		return trust.Suspicious(name, head(j.text(e, "value", path+".value")))
	case from["secretKeyRef"] != nil:
		return "is read from a Secret"
	case from["configMapKeyRef"] != nil:
		return trust.Suspicious(name, "?")
	}
	return ""
}

func (j *injection) holdsSecret(v volume) bool {
	if j.object(v.object, "secret", v.path+".secret") != nil {
		return true
	}
	p := j.object(v.object, "projected", v.path+".projected")
	return slices.ContainsFunc(j.objects(p, "sources", v.path+".projected.sources"), func(s object) bool { return s["secret"] != nil })
}

// head is as much of a value as is looked at.
func head(s string) string { return s[:min(len(s), 4096)] }

// warnings are bounded: the API server cuts what is above 4096 bytes in all.
type warnings struct {
	lines []string
	more  int
}

const maxWarningSize = 200

func (w *warnings) add(line string) {
	if len(w.lines) == maxLines-1 {
		w.more++
		return
	}
	w.lines = append(w.lines, fmt.Sprintf("%.*s", maxWarningSize, line))
}

func (w *warnings) list() []string {
	if w.more == 0 {
		return w.lines
	}
	return append(slices.Clip(w.lines), fmt.Sprintf("and %d more", w.more))
}
