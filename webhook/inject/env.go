package inject

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/internal/trust"
)

// equip gives a container of the author's the CA bundle and its variables.
func (j *injection) equip(c object, name, path string, next *status) {
	mounts, _ := c["volumeMounts"].([]any)
	c["volumeMounts"] = ensure(mounts, object{"name": trustVolume, "mountPath": trustMount, "readOnly": true}, "name")

	env, _ := c["env"].([]any)
	at := map[string]int{} // the last one of a name wins
	for i, e := range env {
		if n, _ := e.(object)["name"].(string); j.names[n] {
			at[n] = i
		}
	}
	for _, v := range j.vars {
		i, there := at[v.Name]
		want := object{"name": v.Name, "value": v.Value}
		switch {
		case !there:
			env = append(env, want)
		case equal(env[i], want):
		case v.Options && addOptions(env[i].(object), v):
		case j.status.seen(name) && !j.status.kept(name, v.Name) && !v.Options:
			env[i] = want // changed since a round before
		default:
			next.Kept = append(next.Kept, name+"/"+v.Name)
			j.warnings.add(fmt.Sprintf("%s.env (%s): keeps your value, so programs that read it do not use the sidecar; remove it", path, v.Name))
		}
	}
	c["env"] = env
	next.Containers = append(next.Containers, name)
}

// addOptions adds our options to the author's, which come first. It leaves
// alone what is not literal, and what looks like a secret: a patch is logged,
// and must not repeat it.
func addOptions(e object, v trust.Variable) bool {
	old, ok := e["value"].(string)
	if !ok || e["valueFrom"] != nil || trust.Suspicious("", old) != "" {
		return false
	}
	if !strings.Contains(old, v.Value) {
		e["value"] = strings.TrimSpace(old + " " + v.Value)
	}
	return true
}

// setVariables makes those of every container of the author's.
func (j *injection) setVariables() {
	j.vars = slices.Clone(j.redirected)
	if j.mode == Explicit {
		j.vars = slices.Clone(j.explicit)
	}
	for _, u := range j.BaseURLs {
		j.vars = append(j.vars, trust.Variable{Name: u.Env, Value: escapeEnv(u.Scheme + "://" + u.Listen + u.Path)})
	}
	for _, v := range j.Variables {
		j.vars = append(j.vars, trust.Variable{Name: v.Name, Value: v.Value})
	}
	for _, p := range j.Placeholders {
		j.vars = append(j.vars, trust.Variable{Name: p.Env, Value: escapeEnv(j.placeholder(p))})
	}
	j.names = make(map[string]bool, len(j.vars))
	for _, v := range j.vars {
		j.names[v.Name] = true
	}
}

// placeholder is the value of p for this pod: known to the sidecar, worth
// nothing, and not the same in another pod.
func (j *injection) placeholder(p Placeholder) string {
	mac := hmac.New(sha256.New, []byte(j.placeholderFor))
	mac.Write([]byte(p.Env))
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(mac.Sum(nil)[:20])
	return p.Prefix + "attache" + strings.ToLower(text)
}
