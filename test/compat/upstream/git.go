package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const maxPush = 64 << 20

// git serves one repository by git's own smart HTTP server, for reading and
// writing.
func (s *Set) git(ctx context.Context) (http.Handler, error) {
	root, work := filepath.Join(s.dir, "repos"), filepath.Join(s.dir, "seed")
	for _, args := range [][]string{
		{"init", "-q", "--bare", "-b", "main", filepath.Join(root, "project.git")},
		{"-C", filepath.Join(root, "project.git"), "config", "http.receivepack", "true"},
		{"init", "-q", "-b", "main", work},
		{"-C", work, "commit", "-q", "--allow-empty", "-m", "a commit from the server"},
		{"-C", work, "push", "-q", filepath.Join(root, "project.git"), "main"},
	} {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=compat", "GIT_AUTHOR_EMAIL=compat@example", "GIT_COMMITTER_NAME=compat", "GIT_COMMITTER_EMAIL=compat@example"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	path, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("git --exec-path: %w", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Dir:  root,
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=" + Workload, "HOME=" + s.dir},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// git sends a push that is larger than its buffer in chunks, which CGI
		// (RFC 3875 section 4.1.2) cannot express.
		if r.ContentLength < 0 {
			b, err := io.ReadAll(io.LimitReader(r.Body, maxPush))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		}
		backend.ServeHTTP(w, r)
	}), nil
}
