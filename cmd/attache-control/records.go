package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/internal/storeurl"
	"github.com/attache-dev/attache/internal/version"
)

// recordOptions are the flags of records: those of this replica, and those of
// the roles that keep everybody's.
type recordOptions struct {
	auditDir, auditOnFull, auditTo string
	auditMaxBytes                  int64
	auditCert, auditKey            string // Secrets: that the issuer hands out, and of checkpoints

	auditEvents string // token file of the API server's audit webhook

	auditConfig, auditCertDir string
	store                     storeurl.Flag
	storeFile                 string // the same as --store=@FILE

	collectorListen, collectorHTTPListen, uiListen string
}

func (o *recordOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.auditDir, "audit-dir", "", "folder of this replica's own records, on a disk of the pod; empty: what the control plane does is logged, and not recorded")
	f.StringVar(&o.auditOnFull, "audit-on-full", audit.OnFullRefuse, "when the folder is full: refuse identities, mints and changes, or overwrite the oldest records")
	f.Int64Var(&o.auditMaxBytes, "audit-max-bytes", 512<<20, "size of the folder")
	f.StringVar(&o.auditTo, "audit-to", "", "HOST:PORT of the collector, for this replica's records and for those of sidecars; a replica with the role collector takes its own in-process")
	f.StringVar(&o.auditCert, "audit-cert-secret", "", "Secret in which the issuer keeps a serving certificate for the host of --audit-to; a collector without the authority's keys reads it")
	f.StringVar(&o.auditKey, "audit-key-secret", "", "Secret with the key that signs checkpoints, made if it is empty; without one the key is a file beside --audit-dir")
	f.StringVar(&o.auditEvents, "kubernetes-audit-token", "", "file with the bearer token that the API server's audit webhook backend shows at /k8s-audit of the webhook's port: what guards refuse is recorded then (role webhook)")
	f.StringVar(&o.auditConfig, "audit-config", "", "file with retention, sinks, checkpoints and the review page's log-in (roles collector and ui)")
	f.StringVar(&o.auditCertDir, "audit-cert-dir", "", "folder with that Secret, for a replica without the role issuer")
	f.Var(&o.store, "store", "record store: "+storeurl.Forms)
	f.StringVar(&o.storeFile, "store-file", "", "file with the URL of the record store; the same as --store=@FILE")
	f.StringVar(&o.collectorListen, "collector-listen", ":8445", "records by OTLP over gRPC")
	f.StringVar(&o.collectorHTTPListen, "collector-http-listen", ":4318", "records by OTLP over HTTP")
	f.StringVar(&o.uiListen, "ui-listen", ":8446", "review page")
}

// storeURL is where the store is.
func (o *recordOptions) storeURL() (string, error) {
	if o.storeFile == "" {
		return string(o.store), nil
	}
	url, err := storeurl.Read(o.storeFile)
	if err != nil {
		return "", fmt.Errorf("--store-file: %w", err)
	}
	return url, nil
}

func (o *recordOptions) check(has func(string) bool) error {
	bad := func(flag, format string, args ...any) error {
		return fmt.Errorf("%w: --%s %s", errUsage, flag, fmt.Sprintf(format, args...))
	}
	if o.auditOnFull != audit.OnFullRefuse && o.auditOnFull != audit.OnFullOverwrite {
		return bad("audit-on-full", "is %q; must be refuse or overwrite", o.auditOnFull)
	}
	if o.auditTo != "" {
		if _, _, err := net.SplitHostPort(o.auditTo); err != nil {
			return bad("audit-to", "is %q; must be HOST:PORT", o.auditTo)
		}
	}
	if !has("collector") && !has("ui") {
		return nil
	}
	if (o.store == "") == (o.storeFile == "") {
		return bad("store", "or --store-file must be given for the roles collector and ui, and not both")
	}
	if o.auditDir == "" {
		return bad("audit-dir", "is missing; what the collector finds, and who looks at the page, is recorded too")
	}
	for _, l := range []struct{ flag, addr string }{
		{"collector-listen", o.collectorListen}, {"collector-http-listen", o.collectorHTTPListen}, {"ui-listen", o.uiListen},
	} {
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			return bad(l.flag, "is %q; must be HOST:PORT or :PORT", l.addr)
		}
	}
	return nil
}

// recordParts are what roles share of records.
type recordParts struct {
	trail       *trail.Trail // nil: nothing is recorded
	recordsIn   *store.DB
	collectorOf *collector.Collector
}

// replicaName is the pod's: in the node's network the host's is another.
func replicaName() (string, error) {
	if n := os.Getenv("POD_NAME"); n != "" {
		return n, nil
	}
	return os.Hostname()
}

// serviceAccount of the control plane, as the chart names it.
const serviceAccount = "attache-control"

// redaction is what the operator's AttacheConfig takes out of records, as the
// chart has it: this program has no other when it begins to record. The rest of
// the file is the leader's to judge, whose errors stop no replica.
func (o *options) redaction() (v1alpha1.AuditRedact, error) {
	var c struct {
		Spec struct {
			Audit struct {
				Redact v1alpha1.AuditRedact `json:"redact"`
			} `json:"audit"`
		} `json:"spec"`
	}
	if o.defaults == "" {
		return c.Spec.Audit.Redact, nil
	}
	text, err := os.ReadFile(o.defaults)
	if err == nil {
		err = yaml.Unmarshal(text, &c)
	}
	if err != nil {
		return c.Spec.Audit.Redact, fmt.Errorf("--defaults %s: %w", o.defaults, err)
	}
	return c.Spec.Audit.Redact, nil
}

// openTrail opens this replica's records.
func (h *host) openTrail(ctx context.Context) error {
	if h.auditDir == "" {
		return nil
	}
	replica, err := replicaName()
	if err != nil {
		return err
	}
	redact, err := h.redaction()
	if err != nil {
		return err
	}
	o := trail.Options{
		Dir: h.auditDir, MaxBytes: h.auditMaxBytes, OnFull: h.auditOnFull, Replica: replica, Redact: redact,
		Version: version.Get().Version, Registry: h.registry, Log: h.log,
	}
	if h.holdsKeys() {
		o.Signer = func(text []byte) (audit.Signature, error) {
			self, err := h.self(ctx)
			if err != nil {
				return audit.Signature{}, err
			}
			return self.Sign(text)
		}
	}
	h.trail, err = trail.Open(o)
	return err
}

// holdsKeys reports whether this replica has the authority's keys: those whose
// roles are records alone do not.
func (h *host) holdsKeys() bool {
	for _, r := range defaultRoles() {
		if h.has(r) {
			return true
		}
	}
	return false
}

// self is this replica as a client of the collector.
func (h *host) self(ctx context.Context) (*issuer.Self, error) {
	k, err := h.keys(ctx)
	if err != nil {
		return nil, err
	}
	h.once.Lock()
	defer h.once.Unlock()
	if h.selfOf == nil {
		name, err := replicaName()
		if err != nil {
			return nil, err
		}
		h.selfOf = &issuer.Self{Keys: k, ServiceAccount: serviceAccount, ID: collector.ControlPrefix + name}
	}
	return h.selfOf, nil
}

// inProcess is the sink of a replica that is the collector itself.
type inProcess struct {
	to *collector.Collector
	as store.Producer
}

// Name implements ship.Sink.
func (inProcess) Name() string { return "collector" }

// Send implements ship.Sink.
func (s inProcess) Send(ctx context.Context, b ship.Batch) error {
	err := s.to.Deliver(ctx, s.as, b.Lines)
	if no := (*collector.RefusedError)(nil); errors.As(err, &no) {
		return &ship.RejectedError{Count: no.Lines, Reason: no.Reason}
	}
	return err
}

// shipRecords carries this replica's records to the collector, until the
// function that it returns is called: that ends the epoch, and waits a while
// for what is left.
func (h *host) shipRecords(ctx context.Context) (stop func(), err error) {
	if h.trail == nil {
		return func() {}, nil
	}
	var sinks []ship.Sink
	switch {
	case h.collectorOf != nil:
		name, err := replicaName()
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, inProcess{h.collectorOf, store.Producer{ID: collector.ControlPrefix + name, Kind: audit.KindControl, Namespace: h.namespace, Pod: name}})
	case h.auditTo != "":
		s, err := h.collectorSink(ctx)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, s)
	}
	g, err := ship.Start(h.trail.Spool(), sinks, ship.Options{Log: h.log})
	if err != nil {
		return nil, fmt.Errorf("ship records: %w", err)
	}
	return func() {
		if err := h.trail.Close(); err != nil {
			h.log.Error("the end of the records is not written", "cause", err)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout/2)
		defer cancel()
		if err := g.Close(ctx); err != nil {
			h.log.Warn("records are not delivered", "cause", err)
		}
	}, nil
}

// collectorSink reaches the collector as this replica.
func (h *host) collectorSink(ctx context.Context) (ship.Sink, error) {
	self, err := h.self(ctx)
	if err != nil {
		return nil, err
	}
	to, _, err := net.SplitHostPort(h.auditTo)
	if err != nil {
		return nil, err
	}
	return otlp.New(otlp.Config{
		Name: "collector", Protocol: otlp.GRPC, Endpoint: h.auditTo, TLS: self.TLS(to), Control: true, Gzip: true,
		Timeout: 30 * time.Second, Service: "attache-control", Version: version.Get().Version,
	})
}

// handOut keeps the collector's certificate, in a replica that issues.
func (h *host) handOut(ctx context.Context) error {
	if h.auditCert == "" {
		return nil
	}
	k, err := h.keys(ctx)
	if err != nil {
		return err
	}
	to, _, err := net.SplitHostPort(h.auditTo)
	if err != nil {
		return fmt.Errorf("%w: --audit-cert-secret needs --audit-to", errUsage)
	}
	name, _, _ := strings.Cut(to, ".")
	n := name + "." + h.namespace
	return h.mgr.Add(&issuer.Handout{Keys: k, Secret: h.auditCert, Hosts: unique(to, name, n, n+".svc", n+".svc.cluster.local", "localhost")})
}
