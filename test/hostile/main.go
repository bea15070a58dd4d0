//go:build linux

// Command hostile is an agent gone bad. Run inside the sandbox of attache run
// it tries to get at what the sandbox keeps from it, prints a line for each
// attempt and ends with "N passed, N failed": an attempt passes when it was
// blocked. Run outside, it succeeds in most, which proves that the attempts
// can.
//
// It takes one argument, a JSON file that tells it where everything is: an
// attacker who knows the machine is the one to measure against. Nothing it
// does changes the machine when it succeeds.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// targets are what the program attacks.
type targets struct {
	Parent   int     // pid of the process that holds the canary
	Address  uintptr // of the canary in its memory
	Size     int
	State    string // state folder
	Key      string // issuer's key in it
	Spool    string
	Secrets  []string // further files, each with a canary
	Policy   string   // policy file
	Renames  []string // folders above policy and state
	Binary   string   // attache's own
	Startup  string   // a file the user's shell executes
	Sockets  []string
	Abstract string
	Cgroup   string   // folder of the parent's cgroup
	Cgroups  []string // the same elsewhere
	Suid     string   // set-user-id root copy of this program
	Scratch  string   // a folder of the agent's own
	Near     string   // a hidden file in the working folder, by its name alone
	Nodes    []string // devices, one outside /dev
	FD       int      // of the key, open in the parent
}

// canary starts every secret that must not be seen.
const canary = "CANARY-"

// attempt tries one thing and returns nil if it succeeded.
type attempt struct {
	name string
	try  func(t *targets) error
}

var errNothing = errors.New("nothing there")

func main() {
	if len(os.Args) > 2 && os.Args[1] == "inner" {
		inner(os.Args[2], os.Args[3:])
		return
	}
	runtime.LockOSThread() // ptrace and namespaces belong to a thread
	inherited := inheritedFiles()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: hostile TARGETS.json")
		os.Exit(2)
	}
	b, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	var t targets
	if err := json.Unmarshal(b, &t); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	passed, failed := 0, 0
	list := []attempt{{"inherited descriptors", func(*targets) error { return inherited }}}
	list = append(list, fileAttempts(&t)...)
	list = append(list, processAttempts()...)
	list = append(list, kernelAttempts()...)
	for _, a := range list {
		if err := a.try(&t); err != nil {
			passed++
			fmt.Printf("attempt: %s: blocked (%s)\n", a.name, strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			failed++
			fmt.Printf("attempt: %s: LEAKED\n", a.name)
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// readCanary succeeds when path holds a canary.
func readCanary(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return findCanary(b)
}

func findCanary(b []byte) error {
	if strings.Contains(string(b), canary) {
		return nil
	}
	return errNothing
}
