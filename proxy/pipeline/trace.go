package pipeline

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/attache-dev/attache/audit"
)

// span is the OpenTelemetry span of an exchange; the zero span does nothing.
type span struct{ s trace.Span }

// trace starts a span that joins the agent's traceparent and goes on upstream
// as its parent. Without a tracer the agent's own header passes unchanged.
func (p *Pipeline) trace(ctx context.Context, x *exchange) (context.Context, span) {
	if p.cfg.Tracer == nil {
		return ctx, span{}
	}
	var prop propagation.TraceContext
	ctx = prop.Extract(ctx, propagation.HeaderCarrier(x.req.Header))
	ctx, s := p.cfg.Tracer.Start(ctx, x.req.Method+" "+x.dest.Host, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(x.start))
	prop.Inject(ctx, propagation.HeaderCarrier(x.req.Header))
	x.rec.Request.TraceID = s.SpanContext().TraceID().String()
	return ctx, span{s}
}

// end closes the span with what the record says, and nothing else: no header,
// no query, no credential.
func (s span) end(x *exchange) {
	if s.s == nil {
		return
	}
	s.s.SetAttributes(
		attribute.String("http.request.method", x.req.Method),
		attribute.String("server.address", x.dest.Host),
		attribute.Int("server.port", x.dest.Port),
		attribute.String("attache.record", x.rec.ID),
		attribute.String("attache.verdict", x.decision.Verdict.String()),
		attribute.String("attache.rule", x.decision.Rule),
		attribute.String("attache.outcome", x.result.Outcome),
		attribute.Int("http.response.status_code", x.result.Status),
	)
	if x.result.Outcome != audit.OutcomeOK {
		s.s.SetStatus(codes.Error, x.result.ErrorKind)
	}
	s.s.End()
}
