// Package injector puts a credential on a request, takes the agent's own
// away, and guards the answer against the credential coming back.
package injector
