package main

import "context"

// role is one duty of the control plane. A replica has some or all of them.
type role struct {
	name string
	// add makes the role and registers with the host what it runs and serves.
	// It is called once, before the caches are started.
	add func(context.Context, *host) error
}

// roles lists all duties, in the order in which they are added.
func roles() []role {
	return []role{
		{"webhook", addWebhook},
		{"issuer", addIssuer},
		{"xds", addXDS},
		{"broker", addBroker},
		{"relay", addRelay},
		{"collector", addCollector},
		{"ui", addUI},
	}
}

// defaultRoles are those of a control plane: they hold the authority's keys, and
// what keeps the records does not.
func defaultRoles() []string {
	return []string{"webhook", "issuer", "xds", "broker", "relay"}
}

func roleNames() []string {
	var names []string
	for _, r := range roles() {
		names = append(names, r.name)
	}
	return names
}
