package iampolicy

import (
	"encoding/json"
	"strings"
)

// Allows describes, for people, what a session policy opens: for each Allow
// statement its actions, a space, and its resources. Lists are joined by commas,
// and those that name what is left out begin with "not". Conditions and Deny
// statements, which only narrow it, are left out. What is no policy opens
// nothing.
func Allows(policy string) []string {
	var p struct {
		Statement []struct {
			Effect                                   string
			Action, NotAction, Resource, NotResource names
		}
	}
	if json.Unmarshal([]byte(policy), &p) != nil {
		return nil
	}
	var list []string
	for _, s := range p.Statement {
		if s.Effect == "Allow" {
			list = append(list, either(s.Action, s.NotAction)+" "+either(s.Resource, s.NotResource))
		}
	}
	return list
}

func either(these, not names) string {
	if len(not) > 0 {
		return "not " + strings.Join(not, ",")
	}
	return strings.Join(these, ",")
}

// names is one name, or a list of them.
type names []string

// UnmarshalJSON implements [json.Unmarshaler].
func (n *names) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*n = names{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(n))
}
