package policy

// Examined returns how many variants of rules a decision looks at.
func (s *Set) Examined(r *Request) int {
	q, refused := s.begin(r)
	if refused != "" {
		return 0
	}
	s.scan(&q)
	s.settle(&q)
	s.end(&q)
	return q.examined
}

// ParseTemplate compiles a template and reports which paths it matches.
func ParseTemplate(s string) (matches func(path string) bool, err error) {
	t, err := parseTemplate(s)
	if err != nil {
		return nil, err
	}
	n := &node{}
	n.leaf(t.segments)
	return func(path string) bool {
		walked := len(path) > 0 && path[0] == '/' && len(n.find(path[1:], true, nil)) > 0
		if walked != t.matches(path) {
			panic("index and template disagree about " + path + " and " + s)
		}
		return walked
	}, nil
}

// CanonicalPath exposes the comparison form of paths.
func CanonicalPath(s string) (string, bool) { return canonicalPath(s) }
