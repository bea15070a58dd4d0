// Package sidecar is attache-sidecar proxy: the data path of one pod, with the
// pod's identity and policy from the control plane, and with doors that only
// the pod's own containers reach.
package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/internal/podspool"
)

// Modes, as package webhook/inject names them.
const (
	Explicit    = "explicit"
	Transparent = "transparent"
)

// Variables that injection sets.
const (
	envControl      = "ATTACHE_CONTROL"
	envControlCA    = "ATTACHE_CONTROL_CA"
	envTokenFile    = "ATTACHE_TOKEN_FILE"
	envCertificate  = "ATTACHE_POD_CERTIFICATE"
	envTrustDir     = "ATTACHE_TRUST_DIR"
	envPodUID       = "ATTACHE_POD_UID"
	envAudit        = "ATTACHE_AUDIT"
	envPlaceholders = "ATTACHE_PLACEHOLDERS"
	envBaseURLs     = "ATTACHE_BASE_URLS"
	envSpoolBytes   = "ATTACHE_SPOOL_BYTES"
)

// Options of [Run]. What injection says by flags and variables is filled in by
// [Options.FromEnv].
type Options struct {
	Mode         string // explicit or transparent
	Listen       string // of the proxy in explicit mode; loopback
	RedirectPort uint16 // of the listeners on 127.0.0.1 and [::1] in transparent mode
	Health       string // of probes and metrics

	TrustDir string // read by all containers of the pod
	StateDir string // in memory, the sidecar's alone
	SpoolDir string // the sidecar's alone
	// SpoolBytes is what the records may take. The volume has more, of which sinks
	// need some for what they refused; the kubelet evicts pods that fill it.
	SpoolBytes int64

	Control   string // HOST:PORT of the control plane
	ControlCA string // its roots, PEM
	TokenFile string // the pod's projected token
	// Certificate is the file of the pod's certificate, instead of TokenFile.
	Certificate string
	PodUID      string
	Audit       string // HOST:PORT of the control plane's collector of records; empty: there is none

	Config      string // folder of documents, instead of a control plane
	Name        string // of the workload, with Config
	Nameservers []netip.Addr

	Placeholders []placeholder.Known
	BaseURLs     []BaseURL

	Version string
	Log     *slog.Logger

	opened func(name string, at net.Addr) // told of listeners, in tests
}

// BaseURL is a provider's base URL as the agent's variables have it.
type BaseURL struct {
	Provider string `json:"provider"`
	v1alpha1.BaseURL
}

// ErrUsage is matched by mistakes of whoever called: nothing was started.
var ErrUsage = errors.New("usage")

// FromEnv fills in what injection says by variables, through getenv.
func (o *Options) FromEnv(getenv func(string) string) error {
	for _, v := range []struct {
		field *string
		name  string
	}{
		{&o.Control, envControl}, {&o.ControlCA, envControlCA}, {&o.TokenFile, envTokenFile}, {&o.Certificate, envCertificate},
		{&o.TrustDir, envTrustDir}, {&o.PodUID, envPodUID}, {&o.Audit, envAudit},
	} {
		if *v.field == "" {
			*v.field = getenv(v.name)
		}
	}
	if s := getenv(envSpoolBytes); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < podspool.MinSpool || n > podspool.MaxSpool {
			return fmt.Errorf("%w: %s: is %.40q; must be a number of bytes, %d to %d", ErrUsage, envSpoolBytes, s, podspool.MinSpool, int64(podspool.MaxSpool))
		}
		o.SpoolBytes = n
	}
	var list []struct {
		Env      string `json:"env"`
		Prefix   string `json:"prefix"`
		Provider string `json:"provider"`
		Value    string `json:"value"`
	}
	if s := getenv(envPlaceholders); s != "" {
		if err := strict(s, &list); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUsage, envPlaceholders, err)
		}
	}
	for _, p := range list {
		o.Placeholders = append(o.Placeholders, placeholder.Known{Spec: placeholder.Spec{Env: p.Env, Prefix: p.Prefix, Provider: p.Provider}, Value: p.Value})
	}
	if s := getenv(envBaseURLs); s != "" {
		if err := strict(s, &o.BaseURLs); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUsage, envBaseURLs, err)
		}
	}
	return nil
}

func strict(text string, into any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// Check says what is missing or wrong, all of it; errors match [ErrUsage].
func (o *Options) Check() error {
	if o.SpoolBytes == 0 {
		o.SpoolBytes = podspool.DefaultSpool
	}
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Contains([]string{Explicit, Transparent}, o.Mode) {
		wrong("--mode is %q; must be %s or %s", o.Mode, Explicit, Transparent)
	}
	for _, d := range []struct{ value, name string }{
		{o.TrustDir, "--trust-dir or $" + envTrustDir}, {o.StateDir, "--state-dir"}, {o.SpoolDir, "--spool-dir"}, {o.Health, "--health"},
	} {
		if d.value == "" {
			wrong("%s is not given", d.name)
		}
	}
	switch {
	case o.Config != "" && o.Control != "":
		wrong("--config and $%s exclude each other", envControl)
	case o.Config == "":
		for _, v := range []struct{ value, name string }{
			{o.Control, envControl}, {o.ControlCA, envControlCA}, {o.TokenFile + o.Certificate, envTokenFile + " or $" + envCertificate}, {o.PodUID, envPodUID},
		} {
			if v.value == "" {
				wrong("$%s is not set; admission sets it, or give --config DIR to go without a control plane", v.name)
			}
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrUsage, errors.Join(errs...))
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.opened == nil {
		o.opened = func(string, net.Addr) {}
	}
	return nil
}
