package main

import (
	"slices"
	"strings"
	"testing"
)

// TestEachDoorOrAReason holds that no client is left out at a door in silence.
func TestEachDoorOrAReason(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range clients(false) {
		if seen[c.name] {
			t.Errorf("%s is there twice", c.name)
		}
		seen[c.name] = true
		for _, d := range allDoors {
			runs, reason := slices.ContainsFunc(c.doors, isDoor(d)), c.reasons[d]
			if runs == (reason != "") {
				t.Errorf("%s at %s: runs %v, reason %q; want one of them", c.name, d, runs, reason)
			}
			if strings.Contains(reason, tunnel) && !slices.ContainsFunc(c.doors, isDoor(tunnel)) {
				t.Errorf("%s at %s: the reason names the row %q, which is not there", c.name, d, tunnel)
			}
		}
		for _, d := range c.doors {
			if d.works == "" || d.denied == "" || d.sees == "" || len(d.wants) == 0 || slices.Contains(d.wants, "") {
				t.Errorf("%s at %s checks nothing", c.name, d.name)
			}
		}
	}
}

// TestClientsOfTheMatrix holds that none disappears.
func TestClientsOfTheMatrix(t *testing.T) {
	var names []string
	for _, c := range clients(false) {
		names = append(names, c.name)
	}
	for _, want := range []string{
		"curl", "git", "wget", "python3 requests", "python3 urllib", "python3 httpx", "python3 aiohttp", "python3 grpcio", "node 22 fetch", "undici", "axios",
		"@anthropic-ai/sdk", "openai", "@modelcontextprotocol/sdk", "Go net/http", "grpc-go interop (14 cases)", "ws (WebSocket)", "node 22 WebSocket",
		"Java HttpURLConnection", "Java HttpClient", "ruby net/http", "deno fetch", "pip", "npm", "cargo",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("the matrix lacks %s", want)
		}
	}
}
