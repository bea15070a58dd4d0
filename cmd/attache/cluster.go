package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/run"
)

// clusterProgram does in a cluster what this program does on one machine. It is
// apart, because Kubernetes' client would make this one twice as large.
const clusterProgram = "attache-control"

// clusterFlag is accepted by the commands that both programs have. It only
// documents itself: see [forCluster].
const clusterFlag = "cluster"

// acceptsCluster says in a command's help that --cluster is for clusters.
func acceptsCluster(c *cobra.Command, what string) *cobra.Command {
	c.Flags().Bool(clusterFlag, false, what+": runs "+clusterProgram+" with the other arguments, which --cluster --help lists")
	return c
}

// forCluster returns the arguments for the cluster's program, if args are a
// command for it: status, issuer or revoke with --cluster. They are passed on as
// they are, for that program knows best what they mean.
func forCluster(args []string) ([]string, bool) {
	command := ""
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--":
			return nil, false
		case a == "--"+clusterFlag && slices.Contains([]string{"status", "issuer", "revoke"}, command):
			return slices.Delete(slices.Clone(args), i, i+1), true
		case slices.Contains([]string{"--state", "--output", "-o", "--log-level"}, a):
			i++ // its value
		case command == "" && !strings.HasPrefix(a, "-"):
			command = a
		}
	}
	return nil, false
}

// findProgram looks for the cluster's program beside this one, and in PATH.
func findProgram(self string) (string, error) {
	dirs := []string{filepath.Dir(self)}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, d := range dirs {
		at := filepath.Join(d, clusterProgram)
		if st, err := os.Stat(at); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return at, nil
		}
	}
	at, err := exec.LookPath(clusterProgram)
	if err == nil {
		return filepath.Abs(at)
	}
	why := "neither beside " + self + " nor in PATH"
	if errors.Is(err, exec.ErrDot) {
		why = "found in the current folder only, where it is not trusted"
	}
	return "", fmt.Errorf("%w: --cluster needs the program %s, which is %s; install it from the same release as attache, "+
		"or use it in the cluster: kubectl -n attache-system exec deployment/attache-control -- /%s status", run.ErrUsage, clusterProgram, why, clusterProgram)
}

// becomeCluster replaces this process by the cluster's program. It returns only
// when that fails.
func becomeCluster(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find %s: %w", clusterProgram, err)
	}
	at, err := findProgram(self)
	if err != nil {
		return err
	}
	if err := syscall.Exec(at, append([]string{clusterProgram}, args...), os.Environ()); err != nil { //nolint:gosec // the user's own words, to a program of ours
		return fmt.Errorf("start %s: %w", at, err)
	}
	return nil
}
