package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The review page: people log in at the authorization server.
const (
	reviewHost   = "attache-audit." + nsControl + ".svc:8446"
	reviewURL    = "https://" + reviewHost
	reviewClient = "review"
	reviewSecret = "review-login"
)

// reviewValues are what an operator writes for the page.
func reviewValues() string {
	return `
  ui:
    enabled: true
    url: ` + reviewURL + `
    oidc: {issuer: "https://` + loginHost + `", clientID: ` + reviewClient + `, clientSecret: {secret: ` + reviewSecret + `, key: client-secret}}
    grants:
      - {role: viewer, namespaces: [` + nsAgents + `], groups: [agents-team]}
      - {role: auditor, namespaces: ["*"], groups: [security]}
  secrets: [` + reviewSecret + `]
  extraEnv:
    - {name: SSL_CERT_FILE, value: /etc/attache/secrets/` + reviewSecret + `/ca.pem}`
}

// reviewPeople are who may log in there.
func reviewPeople() map[string]map[string]any {
	return map[string]map[string]any{
		"vic": {"email": "vic@example.com", "email_verified": true, "groups": []string{"agents-team"}},
		"ada": {"email": "ada@example.com", "email_verified": true, "groups": []string{"security"}},
		"zoe": {"email": "zoe@example.com", "email_verified": true, "groups": []string{"kitchen"}},
	}
}

// reviewLogin is the page as a client of the authorization server.
func (w *world) reviewLogin() map[string]any {
	return map[string]any{"client_id": reviewClient, "client_secret": w.reviewKey, "redirect_uris": []string{reviewURL + "/login/finish"},
		"response_types": []string{"code"}, "grant_types": []string{"authorization_code"}, "token_endpoint_auth_method": "client_secret_basic"}
}

// reviewSecrets makes what the page's pod mounts.
func (r *run) reviewSecrets(ctx context.Context) error {
	data := map[string]string{"client-secret": r.world.reviewKey, "ca.pem": string(r.world.ca.PEM())}
	for k, v := range data {
		data[k] = base64.StdEncoding.EncodeToString([]byte(v))
	}
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return r.apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s}}\n---\n{apiVersion: v1, kind: Secret, metadata: {name: %[2]s, namespace: %[1]s}, data: %[3]s}\n", nsControl, reviewSecret, text))
}

// browser is a client with cookies, which reaches the page's pod under the name
// that people use.
func (r *run) browser(ctx context.Context) (*http.Client, error) {
	p, err := r.auditReady(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := r.kube.CoreV1().ConfigMaps(nsControl).Get(ctx, "attache-ca", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	roots := r.world.ca.Pool()
	if !roots.AppendCertsFromPEM([]byte(ca.Data["roots.pem"])) {
		return nil, errors.New("the control plane's ConfigMap has no roots")
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	return &http.Client{Jar: jar, Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == reviewHost {
				addr = net.JoinHostPort(p.Status.PodIP, "8446")
			}
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
		},
	}}, nil
}

// visit asks a browser for a page.
func visit(ctx context.Context, c *http.Client, method, address string, form url.Values) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	return res.StatusCode, string(b), err
}

// page asks for a page of the review, and says whether it has all of want and
// none of the others.
func page(ctx context.Context, c *http.Client, path string, status int, want, not []string) (string, error) {
	got, body, err := visit(ctx, c, http.MethodGet, reviewURL+path, nil)
	if err != nil {
		return "", err
	}
	if got != status {
		return "", fmt.Errorf("%s: %d, want %d: %s", path, got, status, words(body))
	}
	for _, text := range want {
		if !strings.Contains(body, text) {
			return "", fmt.Errorf("%s does not show %q: %s", path, text, words(body))
		}
	}
	for _, text := range not {
		if strings.Contains(body, text) {
			return "", fmt.Errorf("%s shows %q", path, text)
		}
	}
	return body, nil
}

var (
	marks       = regexp.MustCompile(`<[^>]*>|\s+`)
	interaction = regexp.MustCompile(`href="(/interaction/[^"?]+)`)
	formToken   = regexp.MustCompile(`name="form_token" value="([^"]+)"`)
)

// words are a page's text, for people.
func words(body string) string {
	text := strings.Join(strings.Fields(marks.ReplaceAllString(body, " ")), " ")
	return text[:min(len(text), 600)]
}

// logIn goes by the authorization server, where who clicks on their name.
func logIn(ctx context.Context, c *http.Client, who, to string) (status int, body string, err error) {
	status, body, err = visit(ctx, c, http.MethodGet, reviewURL+"/login?go=1&to="+url.QueryEscape(to), nil)
	if err != nil {
		return 0, "", err
	}
	m := interaction.FindStringSubmatch(body)
	if m == nil {
		return 0, "", fmt.Errorf("the authorization server shows no log-in: %d %s", status, words(body))
	}
	return visit(ctx, c, http.MethodGet, "https://"+loginHost+m[1]+"?as="+who, nil)
}

// review: people of one namespace see its records and rules on the page, and
// nothing of another's; a log-out ends what the browser holds.
func review(ctx context.Context, r *run) error {
	ids := map[string]string{}
	for _, ns := range []string{nsAgents, nsTransparent} {
		path := "/v1/review-" + ns
		a := app{name: "review", image: imageClients, command: []string{"sh", "-c", "curl -fsS -m 30 " + at(reportsHost, path) + " && ! curl -fsS -m 30 -X DELETE " + at(reportsHost, path)}}
		if err := r.apply(ctx, a.job(ns)); err != nil {
			return err
		}
		if err := r.jobDone(ctx, ns, a.name); err != nil {
			return err
		}
		if err := until(ctx, "both records arrive", func() (bool, string) {
			for _, verdict := range []string{"inject", "deny"} {
				rows, err := r.search(ctx, "path:"+path+" verdict:"+verdict)
				if err != nil || len(rows) != 1 {
					return false, fmt.Sprint(verdict, len(rows), err)
				}
				ids[ns+" "+verdict] = rows[0].ID
			}
			return true, ""
		}); err != nil {
			return fmt.Errorf("%w; %s", err, r.appLog(ctx, ns, a.name))
		}
	}
	vic, err := r.browser(ctx)
	if err != nil {
		return err
	}
	if _, err := page(ctx, vic, "/", http.StatusUnauthorized, []string{"Log in"}, []string{"/v1/review"}); err != nil {
		return err
	}
	status, body, err := logIn(ctx, vic, "vic", "/search?q="+url.QueryEscape("path:/v1/review-*"))
	if err != nil {
		return err
	}
	if status != http.StatusOK || !strings.Contains(body, "vic@example.com") || !strings.Contains(body, "/v1/review-"+nsAgents) || strings.Contains(body, "/v1/review-"+nsTransparent) {
		return fmt.Errorf("vic sees after the log-in: %d %s", status, words(body))
	}
	agent := func(ns string) string { return "/agent?p=1h&id=" + url.QueryEscape(spiffeID(ns)) }
	for _, p := range []struct {
		path      string
		status    int
		want, not []string
	}{
		{"/record/" + ids[nsAgents+" inject"], http.StatusOK, []string{"/v1/review-" + nsAgents, "minted", "hash holds"}, nil},
		{"/record/" + ids[nsTransparent+" inject"], http.StatusNotFound, nil, []string{"/v1/review"}},
		// What the agent may do is read from the cluster.
		{agent(nsAgents), http.StatusOK, []string{"cluster:agents/reports", "cluster:agents/open", notesHost}, nil},
		{agent(nsTransparent), http.StatusNotFound, nil, []string{"cluster:agents"}},
		{"/denied?id=" + ids[nsAgents+" deny"], http.StatusOK, []string{"How it is decided", "To allow just this", "kind: AccessPolicy", "provider: reports"}, nil},
		{"/denied?id=" + ids[nsTransparent+" deny"], http.StatusNotFound, nil, []string{"/v1/review"}},
		{"/export?format=csv&q=", http.StatusForbidden, nil, []string{"/v1/review"}},
	} {
		if _, err = page(ctx, vic, p.path, p.status, p.want, p.not); err != nil {
			return fmt.Errorf("vic: %w", err)
		}
	}
	return errors.Join(r.logOut(ctx, vic), r.others(ctx))
}

// logOut ends a session; its cookie, kept, is worth nothing.
func (r *run) logOut(ctx context.Context, c *http.Client) error {
	body, err := page(ctx, c, "/", http.StatusOK, nil, nil)
	if err != nil {
		return err
	}
	home, err := url.Parse(reviewURL)
	if err != nil {
		return err
	}
	before := c.Jar.Cookies(home)
	m := formToken.FindStringSubmatch(body)
	if m == nil || len(before) == 0 {
		return fmt.Errorf("the page has no button to log out, or no cookie (%d): %s", len(before), words(body))
	}
	status, body, err := visit(ctx, c, http.MethodPost, reviewURL+"/logout", url.Values{"form_token": {m[1]}})
	if err != nil || status != http.StatusOK || !strings.Contains(body, "Logged out") {
		return fmt.Errorf("log out: %d %s, %w", status, words(body), err)
	}
	if left := c.Jar.Cookies(home); len(left) != 0 {
		return fmt.Errorf("%d cookies are left", len(left))
	}
	for _, k := range before {
		k.Path, k.Secure = "/", true
	}
	c.Jar.SetCookies(home, before)
	_, err = page(ctx, c, "/", http.StatusUnauthorized, []string{"Log in"}, []string{"/v1/review"})
	return err
}

// others: somebody without a role sees nothing, an auditor everything; and that
// they were there is recorded.
func (r *run) others(ctx context.Context) error {
	zoe, err := r.browser(ctx)
	if err != nil {
		return err
	}
	if status, body, err := logIn(ctx, zoe, "zoe", "/"); err != nil || status != http.StatusForbidden || !strings.Contains(body, "No access") {
		return fmt.Errorf("zoe: %d %s, %w", status, words(body), err)
	}
	ada, err := r.browser(ctx)
	if err != nil {
		return err
	}
	if _, _, err := logIn(ctx, ada, "ada", "/"); err != nil {
		return err
	}
	if _, err := page(ctx, ada, "/export?format=csv&q="+url.QueryEscape("path:/v1/review-*"), http.StatusOK, []string{"/v1/review-" + nsAgents, "/v1/review-" + nsTransparent}, nil); err != nil {
		return fmt.Errorf("ada: %w", err)
	}
	return until(ctx, "log-ins, log-outs and exports are recorded", func() (bool, string) {
		for _, query := range []string{"event:login.ok vic@example.com", "event:logout vic@example.com", "event:access.rejected zoe@example.com", "event:audit.export ada@example.com"} {
			rows, err := r.search(ctx, query)
			if err != nil || len(rows) == 0 {
				return false, fmt.Sprint(query, err)
			}
		}
		return true, ""
	})
}
