package dataplane

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/proxy/awsdoor"
	"github.com/attache-dev/attache/proxy/destination"
)

// Variables by which AWS SDKs find their credentials.
const (
	envContainerURI   = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
	envContainerToken = "AWS_CONTAINER_AUTHORIZATION_TOKEN"
	envIMDS           = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
	envRole           = "AWS_ROLE_ARN"
	envRoleSession    = "AWS_ROLE_SESSION_NAME"
	envTokenFile      = "AWS_WEB_IDENTITY_TOKEN_FILE"
)

// Placeholders that stand in no variable: SDKs get them from a door.
const (
	hiddenSessionToken = "AWS_SESSION_TOKEN"
	hiddenWebIdentity  = "AWS_WEB_IDENTITY_TOKEN"
)

// awsDoors are the doors of the one provider whose keys SDKs fetch. The zero
// value has none.
type awsDoors struct {
	provider *v1alpha1.CredentialProvider
	list     []string
	door     *awsdoor.Door
	addr     string // of the local port, once it is open
}

func (a *awsDoors) has(door string) bool { return slices.Contains(a.list, door) }

// local says that a port is needed.
func (a *awsDoors) local() bool { return a.has(api.DoorContainer) || a.has(api.DoorIMDS) }

// findAWSDoors finds the provider that opens doors; package api sees to it
// that there is at most one.
func findAWSDoors(b *api.Bundle) awsDoors {
	for i := range b.Providers {
		p := &b.Providers[i]
		if p.Spec.AWS != nil && slices.ContainsFunc(p.Spec.AWS.Doors, func(d string) bool { return d != api.DoorEnv }) {
			return awsDoors{provider: p, list: p.Spec.AWS.Doors}
		}
	}
	return awsDoors{}
}

// specs are the placeholders that the doors need beside the provider's own.
func (a *awsDoors) specs() []placeholder.Spec {
	if a.provider == nil {
		return nil
	}
	var out []placeholder.Spec
	for _, env := range []string{hiddenSessionToken, envContainerToken, hiddenWebIdentity} {
		out = append(out, placeholder.Spec{Env: env, Provider: a.provider.Metadata.Name})
	}
	return out
}

// open makes the doors of workload w.
func (a *awsDoors) open(holders *placeholder.Set, w *identity.Workload) error {
	if a.provider == nil {
		return nil
	}
	s, ph := a.provider.Spec.AWS, a.provider.Spec.Placeholders // the access key id and the secret key
	var others []string
	if u, err := url.Parse(s.Endpoint); err == nil && u.Host != "" {
		if d, err := destination.FromURL(u); err == nil {
			others = append(others, d.HostPort())
		}
	}
	var err error
	a.door, err = awsdoor.New(awsdoor.Config{
		Provider: a.provider.Metadata.Name, RoleARN: doorRole(a.provider, w), Region: s.Region,
		Keys: awsdoor.Keys{
			AccessKeyID: holders.Value(ph[0].Env), SecretAccessKey: holders.Value(ph[1].Env), SessionToken: holders.Value(hiddenSessionToken),
			Authorization: holders.Value(envContainerToken), WebIdentity: holders.Value(hiddenWebIdentity),
		},
		Container: a.has(api.DoorContainer), IMDS: a.has(api.DoorIMDS), WebIdentity: a.has(api.DoorWebIdentity),
		STS: others, Now: time.Now,
	})
	return err
}

// doorRole is the role that SDKs are told. A template that wants a task or a
// human is not known at the start, and no SDK asks which role it is.
func doorRole(p *v1alpha1.CredentialProvider, w *identity.Workload) string {
	if arn, err := awsrole.Expand(p.Spec.AWS.RoleARN, w, nil); err == nil {
		return arn
	}
	name := p.Metadata.Name
	return "arn:aws:iam::000000000000:role/" + name[:min(len(name), 64)]
}

// NeedsAWSPort says that a bundle opens doors at which AWS SDKs fetch
// placeholder keys over a local port.
func NeedsAWSPort(b *api.Bundle) bool {
	a := findAWSDoors(b)
	return a.local()
}

// DoorPlaceholders are the placeholders that a bundle's AWS doors need beside
// those that stand in the agent's environment.
func DoorPlaceholders(b *api.Bundle) []placeholder.Spec {
	a := findAWSDoors(b)
	if a.provider == nil {
		return nil
	}
	specs := a.specs()
	for _, ph := range a.provider.Spec.Placeholders { // none in the environment unless that is a door
		specs = append(specs, placeholder.Spec{Env: ph.Env, Prefix: ph.Prefix, Provider: a.provider.Metadata.Name})
	}
	return specs
}

// AWSDoors names the provider whose placeholder keys AWS SDKs find, and its
// doors; provider is empty if there is none.
func (p *Plane) AWSDoors() (provider string, doors []string) {
	if p.aws.provider != nil {
		provider = p.aws.provider.Metadata.Name
	}
	return provider, p.aws.list
}

// Placeholders are the agent's placeholders, and others the further variables
// by which AWS SDKs find theirs. What they read from files is written into
// trustDir.
func (p *Plane) Placeholders(trustDir string) (placeholders, others []string, err error) {
	return p.aws.env(p.holders.Env(), trustDir, p.cfg.Workload.RunID)
}

// AWSMetadata says that the instance metadata service is one of the doors.
func (p *Plane) AWSMetadata() bool { return p.aws.has(api.DoorIMDS) }

// env are the agent's variables: how its SDKs find the doors. exported are the
// placeholders as the set lists them; those that only doors hand out are left
// out.
func (a *awsDoors) env(exported []string, trustDir, runID string) (placeholders, others []string, err error) {
	hide := []string{hiddenSessionToken, hiddenWebIdentity}
	if !a.has(api.DoorContainer) {
		hide = append(hide, envContainerToken)
	}
	if a.provider != nil && !a.has(api.DoorEnv) { // SDKs would prefer them
		hide = append(hide, a.provider.Spec.Placeholders[0].Env, a.provider.Spec.Placeholders[1].Env)
	}
	placeholders = slices.DeleteFunc(exported, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return a.provider != nil && slices.Contains(hide, name)
	})
	if a.has(api.DoorContainer) {
		others = append(others, envContainerURI+"=http://"+a.addr+awsdoor.ContainerPath)
	}
	if a.has(api.DoorIMDS) {
		others = append(others, envIMDS+"=http://"+a.addr+"/")
	}
	if a.has(api.DoorWebIdentity) {
		file := filepath.Join(trustDir, "web-identity-token")
		if err := os.WriteFile(file, []byte(a.door.WebIdentity()), 0o644); err != nil { //nolint:gosec // a placeholder; the child may run as another user
			return nil, nil, fmt.Errorf("write the placeholder token: %w", err)
		}
		others = append(others, envRole+"="+a.door.RoleARN(), envTokenFile+"="+file, envRoleSession+"=attache-"+runID[:min(len(runID), 16)])
	}
	return placeholders, others, nil
}
