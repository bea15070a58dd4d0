package ui

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// term is key:value of the query language. It has no escapes: a quote in a
// value becomes *, which matches it.
func term(key, value string) string {
	if value == "" {
		return ""
	}
	if strings.ContainsAny(value, "\" ,\t\r\n") {
		value = `"` + strings.ReplaceAll(value, `"`, "*") + `"`
	}
	return key + ":" + value
}

// query joins terms; empty ones are left out.
func query(terms ...string) string {
	return strings.Join(slices.DeleteFunc(terms, func(t string) bool { return t == "" }), " ")
}

func searchURL(terms ...string) string { return "/search?q=" + url.QueryEscape(query(terms...)) }

func agentURL(id, period string) string { return withPeriod("/agent?id="+url.QueryEscape(id), period) }

func humanURL(h *audit.Human) string {
	return "/human?id=" + url.QueryEscape(first(h.Email, h.Subject))
}

func withPeriod(u, period string) string {
	if period == "" {
		return u
	}
	return u + "&p=" + url.QueryEscape(period)
}

// policyURL leads to the history of the policy that a decision names:
// namespace/name, or cluster:name.
func policyURL(name string) string {
	if name == "" {
		return ""
	}
	v := url.Values{}
	if n, ok := strings.CutPrefix(name, "cluster:"); ok {
		v.Set("kind", "ClusterAccessPolicy")
		v.Set("name", n)
	} else {
		ns, n, ok := strings.Cut(name, "/")
		if !ok { // of one machine, which has no namespaces
			ns, n = "", name
		}
		v.Set("kind", "AccessPolicy")
		v.Set("namespace", ns)
		v.Set("name", n)
	}
	return "/document?" + v.Encode()
}

func queryEscape(s string) string { return url.QueryEscape(s) }

func pathEscape(s string) string { return url.PathEscape(s) }
