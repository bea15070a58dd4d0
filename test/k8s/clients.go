package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// client is a real program that makes one call to $URL and fails unless it is
// answered with 200.
type client struct{ name, script string }

func clients() []client {
	return []client{
		{"curl", `curl -fsS -m 30 "$URL"`},
		{"python-urllib", `/usr/bin/python3 -c 'import os, urllib.request; print(urllib.request.urlopen(os.environ["URL"], timeout=30).read())'`},
		{"python-requests", `/usr/bin/python3 -c 'import os, requests; r = requests.get(os.environ["URL"], timeout=30); r.raise_for_status(); print(r.text)'`},
		{"node-fetch", `node -e 'fetch(process.env.URL).then(async (r) => { console.log(await r.text()); process.exit(r.ok ? 0 : 1); }, (e) => { console.error(e.cause ?? e); process.exit(1); })'`},
		{"node-https", `node -e 'require("https").get(process.env.URL, (r) => { r.resume(); r.on("end", () => process.exit(r.statusCode === 200 ? 0 : 1)); }).on("error", (e) => { console.error(e); process.exit(1); })'`},
		{"java", `java -cp /opt/agent Http 0 "$URL" | grep '"status":200'`},
		{"git", `GIT_CURL_VERBOSE=1 git ls-remote "$URL" >/tmp/git.log 2>&1; grep -q 'HTTP/[12.]* 200' /tmp/git.log || { cat /tmp/git.log; false; }`},
	}
}

func clientsExplicit(ctx context.Context, r *run) error {
	return r.runClients(ctx, nsAgents, "")
}

func clientsTransparent(ctx context.Context, r *run) error {
	// No variable of a proxy may be there: programs that ignore them are what
	// this mode is for.
	err := r.runClients(ctx, nsTransparent, `if env | grep -iE '^(https?|all)_proxy='; then echo "a proxy is in the environment"; exit 1; fi`)
	if err != nil {
		return err
	}
	a := app{name: "go-transparent", args: []string{"get", at(reportsHost, "/v1/go-transparent")}}
	if err := r.apply(ctx, a.job(nsTransparent)); err != nil {
		return err
	}
	if err := r.jobDone(ctx, nsTransparent, a.name); err != nil {
		return err
	}
	return r.world.verified(ctx, reportsHost, "/v1/go-transparent", spiffeID(nsTransparent))
}

// runClients runs every client in one pod, one after another; each calls a
// path of its own.
func (r *run) runClients(ctx context.Context, ns, first string) error {
	name := "clients"
	script := first + "\nstatus=0\n"
	for _, c := range clients() {
		script += fmt.Sprintf("export URL=%s\nif out=$( { %s; } 2>&1 ); then echo \"ok %s\"; else echo \"FAIL %s: $out\"; status=1; fi\n", at(reportsHost, "/v1/clients-"+ns+"/"+c.name), c.script, c.name, c.name)
	}
	a := app{name: name, image: imageClients, command: []string{"sh", "-c", script + "exit $status"}}
	if err := r.apply(ctx, a.job(ns)); err != nil {
		return err
	}
	if err := r.jobEnded(ctx, ns, name); err != nil {
		return err
	}
	var errs []error
	for _, c := range clients() {
		calls := r.world.seen(reportsHost, "/v1/clients-"+ns+"/"+c.name)
		if len(calls) == 0 || calls[0].Status != 200 || calls[0].Who != spiffeID(ns) {
			errs = append(errs, fmt.Errorf("%s: %d calls arrived", c.name, len(calls)))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w; %s", errors.Join(errs...), r.appLog(ctx, ns, name))
	}
	log := r.appLog(ctx, ns, name)
	if strings.Contains(log, "FAIL") {
		return errors.New(log)
	}
	return nil
}

// jobEnded waits until the job completed or failed.
func (r *run) jobEnded(ctx context.Context, ns, name string) error {
	return until(ctx, "job "+name+" ends", func() (bool, string) {
		out, err := r.node.Kubectl(ctx, "", "-n", ns, "get", "job", name, "-o", "jsonpath={.status.succeeded}{.status.failed}")
		if err != nil {
			return false, err.Error()
		}
		return out != "" && out != "0", r.appLog(ctx, ns, name)
	})
}
