package inject

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// choose reads what namespace and pod choose within the operator's bounds.
func (j *injection) choose() {
	j.knownAnnotations()
	j.readStatus()
	j.placeholderFor = j.Nonce
	if j.status != nil {
		j.placeholderFor = j.status.Nonce
	}
	j.chooseMode()
	j.chooseOwner()
	j.chooseLogLevel()
	j.chooseExclusions()
	j.chooseResources()
}

func (j *injection) knownAnnotations() {
	known := append([]string{
		annotationStatus, annotationMode, annotationOwner, annotationLogLevel, annotationExcludeCIDRs, annotationExcludePorts, annotationSpool,
	}, resourceAnnotations...)
	for _, k := range sortedKeys(j.annotations) {
		if strings.HasPrefix(k, prefix) && !slices.Contains(known, k) {
			j.deny(annotation(k), "is reserved and unknown", "use one of "+strings.Join(known[1:], ", "))
		}
	}
}

// asks returns the value of an annotation.
func (j *injection) asks(name string) (value string, ok bool) {
	if j.annotations[name] == nil {
		return "", false
	}
	return strings.TrimSpace(j.text(j.annotations, name, annotation(name))), true
}

func (j *injection) chooseMode() {
	j.mode = j.Mode
	check := func(value, field string) {
		if !slices.Contains(j.Modes, Mode(value)) {
			j.deny(field, fmt.Sprintf("is %.40q, which the operator does not allow", value), fmt.Sprintf("choose one of %q or remove it", j.Modes))
			return
		}
		j.mode = Mode(value)
	}
	if j.nsLabels[labelMode] != nil {
		field := "namespace." + label(labelMode)
		check(j.text(j.nsLabels, labelMode, field), field)
	}
	if v, ok := j.asks(annotationMode); ok {
		check(v, annotation(annotationMode))
	}
}

func (j *injection) chooseOwner() {
	if v, ok := j.asks(annotationOwner); ok && !slices.Contains(j.Owners, v) {
		j.deny(annotation(annotationOwner), "is none of this namespace's owners", "ask the operator to add the owner, or remove it")
	}
}

func (j *injection) chooseLogLevel() {
	j.logLevel = "info"
	if v, ok := j.asks(annotationLogLevel); ok {
		levels := []string{"debug", "info", "warn", "error"}
		if !slices.Contains(levels, v) {
			j.deny(annotation(annotationLogLevel), fmt.Sprintf("is %.40q", v), fmt.Sprintf("choose one of %q", levels))
			return
		}
		j.logLevel = v
	}
}

// maxExclusions bounds each of the lists: every first packet passes a rule for
// each, and the redirect takes 64 in all.
const maxExclusions = 16

// chooseExclusions takes destinations that bypass the sidecar: only those that
// the operator allows, however the author writes them.
func (j *injection) chooseExclusions() {
	for _, a := range []struct {
		name  string
		parse func(string) (string, bool)
		to    *[]string
	}{{annotationExcludeCIDRs, j.allowedCIDR, &j.cidrs}, {annotationExcludePorts, j.allowedPort, &j.ports}} {
		text, ok := j.asks(a.name)
		if !ok {
			continue
		}
		if j.mode != Transparent {
			j.deny(annotation(a.name), "excludes destinations from the redirect, which "+string(j.mode)+" mode has not", "remove it")
			continue
		}
		items := strings.Split(text, ",")
		if len(items) > maxExclusions {
			j.deny(annotation(a.name), fmt.Sprintf("lists %d destinations", len(items)), fmt.Sprintf("list at most %d, or wider ones", maxExclusions))
			continue
		}
		for _, item := range items {
			item = strings.TrimSpace(item)
			norm, ok := a.parse(item)
			if !ok {
				j.deny(annotation(a.name), fmt.Sprintf("%.60q is not within what the operator allows", item), "remove it, or ask the operator")
				continue
			}
			*a.to = append(*a.to, norm)
		}
		slices.Sort(*a.to)
		*a.to = slices.Compact(*a.to)
	}
}

func (j *injection) allowedCIDR(s string) (string, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return "", false
	}
	p = p.Masked()
	for _, allowed := range j.Bounds.ExcludeCIDRs {
		if allowed.Bits() <= p.Bits() && allowed.Contains(p.Addr()) {
			return p.String(), true
		}
	}
	return "", false
}

func (j *injection) allowedPort(s string) (string, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || !slices.Contains(j.Bounds.ExcludePorts, int(n)) {
		return "", false
	}
	return strconv.FormatUint(n, 10), true
}

// chooseResources takes the pod's own resources for the sidecar, not less than
// the default (a starved sidecar denies every call) nor above the ceiling.
func (j *injection) chooseResources() {
	j.asked = map[string]quantity{}
	for i, name := range resourceAnnotations {
		text, ok := j.asks(name)
		if !ok {
			continue
		}
		b := j.cpu
		if i >= 2 {
			b = j.memory
		}
		least := b.request
		if i%2 == 1 {
			least = b.limit
		}
		q, err := parseQuantity(text)
		switch {
		case err != nil:
			j.deny(annotation(name), err.Error(), "correct it")
		case q < least || q > b.ceiling:
			j.deny(annotation(name), "is "+q.String(), "choose "+least.String()+" to "+b.ceiling.String()+", which the operator allows")
		default:
			j.asked[name] = q
		}
	}
	text, ok := j.asks(annotationSpool)
	if !ok {
		return
	}
	least := ofBytes(j.spool.Spool)
	switch q, err := parseQuantity(text); {
	case err != nil:
		j.deny(annotation(annotationSpool), err.Error(), "correct it")
	case q < least || q > j.disk.ceiling:
		j.deny(annotation(annotationSpool), "is "+q.String(), "choose "+least.String()+" to "+j.disk.ceiling.String()+", which the operator allows")
	default:
		j.asked[annotationSpool] = q
	}
}
