package collector

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // what OTLP exporters may send
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/peer"
)

// PathLogs is OTLP's path of logs over HTTP.
const PathLogs = "/v1/logs"

// service is the LogsService; the Collector has methods of other meaning.
type service struct {
	collogs.UnimplementedLogsServiceServer
	c *Collector
}

// Register adds the LogsService to a gRPC server, whose TLS must demand client
// certificates of the trust domain.
func (c *Collector) Register(g grpc.ServiceRegistrar) {
	collogs.RegisterLogsServiceServer(g, service{c: c})
}

// ServerOptions bound what the gRPC server reads.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage)}
}

// Export implements collogs.LogsServiceServer.
func (s service) Export(ctx context.Context, req *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	pod, err := s.c.Peer(ctx)
	if err != nil {
		s.c.metrics.batches.WithLabelValues("unauthenticated").Inc()
		return nil, err
	}
	no, err := s.c.export(ctx, pod, req)
	var busy errBusy
	switch {
	case errors.As(err, &busy):
		st := status.New(codes.ResourceExhausted, err.Error())
		if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(busy.after)}); err == nil {
			st = with
		}
		return nil, st.Err()
	case errors.Is(err, errTooMany):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		s.c.Log.ErrorContext(ctx, "lines not stored, their producer keeps them", "producer", pod.UID, "cause", err)
		return nil, status.Error(codes.Unavailable, "the record store does not take lines now")
	}
	return answer(no), nil
}

func answer(no refused) *collogs.ExportLogsServiceResponse {
	out := &collogs.ExportLogsServiceResponse{}
	if no.lines > 0 {
		out.PartialSuccess = &collogs.ExportLogsPartialSuccess{RejectedLogRecords: int64(no.lines), ErrorMessage: no.why}
	}
	return out
}

var errTooMany = fmt.Errorf("the export has more than %d log records", maxLines)

// export takes one export of an authenticated pod.
func (c *Collector) export(ctx context.Context, pod peer.Pod, req *collogs.ExportLogsServiceRequest) (no refused, err error) {
	result := "stored"
	defer func() { c.metrics.batches.WithLabelValues(result).Inc() }()
	n := 0
	for _, r := range req.GetResourceLogs() {
		for _, s := range r.GetScopeLogs() {
			n += len(s.GetLogRecords())
		}
	}
	if n > maxLines {
		result = "refused"
		return no, errTooMany
	}
	p := c.producer(ctx, pod)
	if err := c.limited(p.ID, max(n, proto.Size(req)/perLine)); err != nil {
		result = "limited"
		return no, err
	}
	lines, bad, why := decode(req)
	if bad > 0 {
		no.add(bad, why.Error())
	}
	if len(lines) > 0 {
		more, err := c.take(ctx, p, lines)
		if errors.As(err, new(errBusy)) {
			result = "limited"
			return no, err
		}
		if err != nil {
			result = "failed"
			return no, err
		}
		no.add(more.lines, more.why)
	}
	if no.lines > 0 {
		result = "partial"
		c.metrics.lines.WithLabelValues("refused").Add(float64(no.lines))
	}
	return no, nil
}

// ControlPrefix begins the names of the control plane's replicas as
// producers; no pod's uid does.
const ControlPrefix = "control/"

// producer is how the store knows a pod. A replica of the control plane has
// its name where pods have their uid; only the authority, which the control
// plane is, can issue that. A pod's name is for people: nothing goes by it.
func (c *Collector) producer(ctx context.Context, pod peer.Pod) store.Producer {
	p := store.Producer{ID: pod.UID, Kind: audit.KindSidecar, Namespace: pod.Namespace, Workload: pod.ID.String()}
	if name, ok := strings.CutPrefix(pod.UID, ControlPrefix); ok && pod.Namespace == c.Namespace {
		p.Kind, p.Pod = audit.KindControl, name
	} else if c.PodName != nil {
		p.Pod = c.PodName(ctx, pod.Namespace, pod.UID)
	}
	return p
}

// Handler serves OTLP over HTTP, protobuf and JSON. Its server's TLS must
// demand client certificates of the trust domain.
func (c *Collector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathLogs, c.serveLogs)
	return mux
}

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"
)

func (c *Collector) serveLogs(w http.ResponseWriter, r *http.Request) {
	pod, err := peerOf(r.TLS, c.Now())
	if err != nil {
		c.metrics.batches.WithLabelValues("unauthenticated").Inc()
		fail(w, typeProtobuf, http.StatusUnauthorized, codes.Unauthenticated, err.Error())
		return
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != typeProtobuf && kind != typeJSON {
		fail(w, typeProtobuf, http.StatusUnsupportedMediaType, codes.InvalidArgument, "send "+typeProtobuf+" or "+typeJSON)
		return
	}
	req, code, err := readExport(w, r, kind)
	if err != nil {
		c.metrics.batches.WithLabelValues("refused").Inc()
		fail(w, kind, code, codes.InvalidArgument, err.Error())
		return
	}
	no, err := c.export(r.Context(), pod, req)
	var busy errBusy
	switch {
	case errors.As(err, &busy):
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(busy.after.Seconds()))))
		fail(w, kind, http.StatusTooManyRequests, codes.ResourceExhausted, err.Error())
	case errors.Is(err, errTooMany):
		fail(w, kind, http.StatusBadRequest, codes.InvalidArgument, err.Error())
	case err != nil:
		c.Log.ErrorContext(r.Context(), "lines not stored, their producer keeps them", "producer", pod.UID, "cause", err)
		fail(w, kind, http.StatusServiceUnavailable, codes.Unavailable, "the record store does not take lines now")
	default:
		write(w, kind, http.StatusOK, answer(no))
	}
}

// peerOf is the pod of a TLS connection that verified its certificate.
func peerOf(state *tls.ConnectionState, now time.Time) (peer.Pod, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return peer.Pod{}, fmt.Errorf("%w: no verified client certificate", peer.ErrNoPod)
	}
	return peer.FromCertificate(state.VerifiedChains[0][0], now)
}

// readExport reads a body of at most maxMessage bytes, decompressed.
func readExport(w http.ResponseWriter, r *http.Request, kind string) (*collogs.ExportLogsServiceRequest, int, error) {
	var body io.Reader = http.MaxBytesReader(w, r.Body, maxMessage)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, http.StatusBadRequest, errors.New("the body is not gzip")
		}
		body = z
	default:
		return nil, http.StatusUnsupportedMediaType, errors.New("send gzip or no content encoding")
	}
	data, err := io.ReadAll(io.LimitReader(body, maxMessage+1))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) || len(data) > maxMessage {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the export is larger than %d bytes", maxMessage)
	} else if err != nil {
		return nil, http.StatusBadRequest, errors.New("the body cannot be read")
	}
	req := &collogs.ExportLogsServiceRequest{}
	if kind == typeJSON {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, req)
	} else {
		err = proto.Unmarshal(data, req)
	}
	if err != nil {
		return nil, http.StatusBadRequest, errors.New("the body is no ExportLogsServiceRequest")
	}
	return req, 0, nil
}

// fail answers as OTLP wants it: with a Status in the encoding of the request.
func fail(w http.ResponseWriter, kind string, code int, grpcCode codes.Code, text string) {
	write(w, kind, code, status.New(grpcCode, text).Proto())
}

func write(w http.ResponseWriter, kind string, code int, m proto.Message) {
	var data []byte
	var err error
	if kind == typeJSON {
		data, err = protojson.Marshal(m)
	} else {
		data, err = proto.Marshal(m)
	}
	if err != nil {
		http.Error(w, "the answer cannot be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(code)
	_, _ = w.Write(data)
}

// ServerTLS is the configuration of the collector's ports: as that of the
// sidecars' (peer.ServerTLS), but nobody comes without a certificate.
func ServerTLS(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.NextProtos = []string{"h2", "http/1.1"}
	if of := base.GetConfigForClient; of != nil {
		c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			got, err := of(h)
			if err != nil {
				return nil, err
			}
			got = got.Clone()
			got.ClientAuth, got.NextProtos = tls.RequireAndVerifyClientCert, c.NextProtos
			return got, nil
		}
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c
}
