package e2e

// agent is what this test binary does when it is started as an agent.
func agent(string, []string) int { return 64 }
