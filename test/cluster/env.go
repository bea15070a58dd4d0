package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

// User is a configuration that calls as this user, by a client certificate.
// Rights are given as always, by RBAC to the name or the groups.
func (e *Env) User(name string, groups ...string) (*rest.Config, error) {
	p, err := e.ca.client(name, groups...)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host: e.url,
		// No limit of the client's own: a test that waits for one says nothing.
		QPS:             -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: e.ca.PEM(), CertData: p.cert, KeyData: p.key},
	}, nil
}

// ServiceAccount is a configuration that calls with the token of a service
// account; nothing checks that the account exists before the first call.
func (e *Env) ServiceAccount(token string) *rest.Config {
	return &rest.Config{Host: e.url, QPS: -1, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: e.ca.PEM()}}
}

// CA is the certificate, in PEM, that the API server's own chains to.
func (e *Env) CA() []byte { return e.ca.PEM() }

// Program is the path of a program: of those that build.sh built, or as it
// stands when it is a path itself.
func (e *Env) Program(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(e.bin, name)
}

// WriteKubeconfig writes a file with which programs call as config does, and
// returns its path.
func (e *Env) WriteKubeconfig(name string, config *rest.Config) (string, error) {
	return e.writeKubeconfig(name, config)
}

func (e *Env) writeKubeconfig(name string, c *rest.Config) (string, error) {
	file := filepath.Join(e.Dir, name)
	k := clientapi.NewConfig()
	k.Clusters["test"] = &clientapi.Cluster{Server: c.Host, CertificateAuthorityData: c.CAData}
	k.AuthInfos["user"] = &clientapi.AuthInfo{ClientCertificateData: c.CertData, ClientKeyData: c.KeyData, Token: c.BearerToken}
	k.Contexts["test"] = &clientapi.Context{Cluster: "test", AuthInfo: "user"}
	k.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*k, file); err != nil {
		return "", fmt.Errorf("write %s: %w", file, err)
	}
	return file, nil
}

// Kubectl runs kubectl as the administrator with input on its standard input
// and returns what it printed. Its error holds what it complained of.
func (e *Env) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return e.Run(ctx, input, "kubectl", args...)
}

// KubectlAs is Kubectl as another user, see User.
func (e *Env) KubectlAs(ctx context.Context, config *rest.Config, input string, args ...string) (string, error) {
	file, err := e.writeKubeconfig(fmt.Sprintf("user-%d.kubeconfig", e.users.Add(1)), config)
	if err != nil {
		return "", err
	}
	return e.run(ctx, file, input, "kubectl", args...)
}

// Run runs one of the programs (kubectl, helm, helm3) as the administrator.
func (e *Env) Run(ctx context.Context, input, program string, args ...string) (string, error) {
	return e.run(ctx, e.Kubeconfig, input, program, args...)
}

func (e *Env) run(ctx context.Context, kubeconfig, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, e.Program(program), args...)
	home := filepath.Join(e.Dir, "home") // its caches: never those of who runs the test
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+home,
		"HELM_CACHE_HOME="+home+"/helm", "HELM_CONFIG_HOME="+home+"/helm", "HELM_DATA_HOME="+home+"/helm")
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// chartFolder from the project's root.
const chartFolder = "charts/attache"

// InstallChart installs or upgrades the chart as release "attache" in
// namespace, with values (YAML). It does not wait for pods: where no node is,
// they never start.
func (e *Env) InstallChart(ctx context.Context, namespace, values string, args ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	_, err = e.Run(ctx, values, "helm", append([]string{
		"upgrade", "--install", "attache", filepath.Join(root, chartFolder),
		"--namespace", namespace, "--create-namespace", "--values", "-",
	}, args...)...)
	return err
}
