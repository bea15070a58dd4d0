// Package doctor finds out which of this machine's runtimes work through
// Attaché: it lets each of them fetch one https URL in the environment that
// attache run would give them, and says why one does not.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is what became of a command.
type Result struct {
	Code   int    // exit status; -1 if it did not start or was killed
	Output string // standard output and error together
	Err    error  // it did not start, or ran out of time
}

// Probe runs a command with an environment, as confined as the caller likes.
// It must honour ctx and bound what it keeps of the output.
type Probe func(ctx context.Context, env, cmd []string) Result

// Status of a runtime.
type Status string

// The statuses.
const (
	Works   Status = "works"
	Fails   Status = "fails"
	Missing Status = "missing" // not on PATH, or not importable
)

// Finding is the verdict on one runtime.
type Finding struct {
	Client string `json:"client"`
	Status Status `json:"status"`
	Why    string `json:"why,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// Millis is how long the probe took.
	Millis int64 `json:"millis"`
}

// Options of [Run].
type Options struct {
	// Env is the child's environment, as trust.Env makes it.
	Env []string
	// URL is an https URL that answers GET through the proxy, best one whose
	// name only the proxy can resolve: then a success proves that the runtime
	// took the proxy.
	URL string
	// Dir receives the probe scripts; the child must be able to read it.
	Dir string
	// Probe runs a command; [Direct] runs it unconfined.
	Probe Probe
	// Seen, if set, counts the requests for URL that reached the proxy. A
	// probe that ends well without one has gone around the proxy.
	Seen func() int
	// Clients limits the run to those whose name begins with one of these.
	Clients []string
	// Timeout of one probe. Default 30s, and three times that for compilers.
	Timeout time.Duration
}

// Run probes every client, one after the other.
func Run(ctx context.Context, o Options) ([]Finding, error) {
	if o.Probe == nil || !strings.HasPrefix(o.URL, "https://") {
		return nil, fmt.Errorf("doctor needs a probe and an https URL, not %q", o.URL)
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	var findings []Finding
	for _, c := range clients() {
		if !wanted(c.name, o.Clients) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return findings, err
		}
		f, err := o.examine(ctx, c)
		if err != nil {
			return findings, err
		}
		findings = append(findings, f)
	}
	return findings, nil
}

func wanted(name string, prefixes []string) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func (o Options) examine(ctx context.Context, c client) (Finding, error) {
	f := Finding{Client: c.name}
	bin, ok := lookPath(o.Env, c.bin)
	if !ok {
		f.Status, f.Why = Missing, c.bin+" is not on PATH"
		return f, nil
	}
	vars := map[string]string{"{url}": o.URL, "{bin}": bin, "{dir}": o.Dir}
	if c.script != "" {
		path := filepath.Join(o.Dir, c.file)
		if err := os.WriteFile(path, []byte(c.script), 0o644); err != nil { //nolint:gosec // the child reads it
			return f, fmt.Errorf("write probe script: %w", err)
		}
		vars["{script}"] = path
	}
	cmd := make([]string, len(c.cmd))
	for i, arg := range c.cmd {
		for k, v := range vars {
			arg = strings.ReplaceAll(arg, k, v)
		}
		cmd[i] = arg
	}
	timeout := o.Timeout
	if c.compiles {
		timeout *= 3
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	before, start := o.seen(), time.Now()
	res := o.Probe(ctx, slices.Concat(o.Env, c.env, o.awsKeys(c)), cmd)
	f.Millis = time.Since(start).Milliseconds()
	o.judge(&f, c, res, o.seen()-before)
	return f, nil
}

// awsKeys are worthless keys for an SDK that finds none otherwise.
func (o Options) awsKeys(c client) []string {
	if !c.aws || slices.ContainsFunc(o.Env, func(kv string) bool {
		return strings.HasPrefix(kv, "AWS_ACCESS_KEY_ID=") || strings.HasPrefix(kv, "AWS_CONTAINER_CREDENTIALS_FULL_URI=")
	}) {
		return nil
	}
	return []string{"AWS_ACCESS_KEY_ID=probe", "AWS_SECRET_ACCESS_KEY=probe"}
}

func (o Options) seen() int {
	if o.Seen == nil {
		return 0
	}
	return o.Seen()
}

// judge trusts the proxy's own count first: exit codes differ by client, and
// several report an unfamiliar answer as a failure of their own.
func (o Options) judge(f *Finding, c client, res Result, seen int) {
	answered := res.Code == 0 || c.answered != nil && c.answered.MatchString(res.Output)
	switch {
	case strings.Contains(res.Output, notInstalled):
		f.Status, f.Why = Missing, "the module is not installed"
	case res.Err == nil && answered && (o.Seen == nil || seen > 0):
		f.Status = Works
	case res.Err == nil && answered:
		f.Status = Fails
		f.Why = "it got an answer, but not through the proxy"
		f.Hint = c.proxyHint
	default:
		f.Status = Fails
		f.Why, f.Hint = explain(c, res)
	}
	if f.Status == Fails && f.Hint == "" {
		f.Hint = "use a provider's base URL for it"
	}
}

const notInstalled = "attache-doctor: not installed"

// symptom maps what clients print to what is wrong. The first match counts.
type symptom struct {
	re   *regexp.Regexp
	why  string
	hint func(client) string
}

func symptoms() []symptom {
	proxy := func(c client) string { return c.proxyHint }
	trust := func(c client) string { return c.trustHint }
	return []symptom{
		{regexp.MustCompile(`(?i)\b407\b|proxy authentication required`), "it does not send the proxy's password", proxy},
		{regexp.MustCompile(`(?i)certificate|self[- ]signed|PKIX|unknown authority|SSL_ERROR|CERT_|ssl verify|UnknownIssuer|trust ?anchor`), "it does not trust the bundle", trust},
		{regexp.MustCompile(`(?i)ENOTFOUND|EAI_AGAIN|could not resolve|couldn't resolve|getaddrinfo|no such host|name or service not known|UnknownHost|name resolution|unable to resolve|failed to lookup|UnresolvedAddress|nodename nor servname|DNS resolution failed|dns error`), "it ignores the proxy variables", proxy},
		{regexp.MustCompile(`(?i)ECONNREFUSED|connection refused|failed to connect|couldn't connect`), "nothing answers at the proxy's address", nil},
		{regexp.MustCompile(`(?i)timed? ?out|ETIMEDOUT`), "it got no answer in time", proxy},
	}
}

// explain says why a probe failed, in words of ours; only when there are none
// it quotes the client.
func explain(c client, res Result) (why, hint string) {
	if res.Err != nil && (res.Output == "" || strings.Contains(res.Err.Error(), "deadline")) {
		return "the probe did not end well: " + res.Err.Error(), c.proxyHint
	}
	for _, s := range symptoms() {
		if s.re.MatchString(res.Output) {
			if s.hint != nil {
				hint = s.hint(c)
			}
			return s.why, hint
		}
	}
	return fmt.Sprintf("exit status %d: %s", res.Code, lastLine(res.Output)), ""
}

func lastLine(s string) string {
	const most = 160
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Table writes the findings for people.
func Table(w io.Writer, findings []Finding) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "CLIENT\tSTATUS\tWHY\tHINT") // the error shows in Flush
	for _, f := range findings {
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", f.Client, f.Status, f.Why, f.Hint)
	}
	return tw.Flush()
}

// lookPath finds a program on the child's PATH, which need not be ours.
func lookPath(env []string, bin string) (string, bool) {
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) { // the working folder is not searched
			continue
		}
		file := filepath.Join(dir, bin)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, true
		}
	}
	return "", false
}
