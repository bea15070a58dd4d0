package trust

import (
	"errors"
	"net/url"
)

// Variable is a variable of the environment.
type Variable struct {
	Name, Value string
	// Options says that the variable holds several options, so that Value is
	// added to the options that are there.
	Options bool
}

// Variables returns what [Env] sets in any environment, for those who make one
// elsewhere: a container of a pod. With an empty proxy, where connections are
// redirected, it is the trust alone. The bundle's files need not exist yet.
func Variables(b Bundle, proxy string, direct []string) ([]Variable, error) {
	n := newEnviron()
	java := joinJava(javaTrust(b))
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" {
			return nil, errors.New("proxy address is not http://host:port")
		}
		direct = noProxy(direct)
		proxySettings(n, proxy, direct)
		java = javaOptions(b, u, direct)
	}
	trustSettings(n, b)
	n.set(javaVariable, java)
	if proxy != "" {
		// The preload does nothing where Node is too old for it.
		n.set(nodeVariable, "--require="+quoteNode(b.Preload))
	}
	vars := make([]Variable, len(n.names))
	for i, name := range n.names {
		vars[i] = Variable{Name: name, Value: n.values[name], Options: name == javaVariable || name == nodeVariable}
	}
	return vars, nil
}

// Suspicious says why a variable is a credential or a way to one; "" if it
// looks like neither. The answer never holds the value.
func Suspicious(name, value string) string { return suspicious(name, value, nil) }
