package dataplane

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// OpenTracing starts the export of traces; without an endpoint it returns a
// nil tracer, and the data path spends nothing on spans.
func OpenTracing(ctx context.Context, c v1alpha1.TracingConfig, version string) (stop func(), t trace.Tracer, err error) {
	if c.OTLPEndpoint == "" {
		return func() {}, nil, nil
	}
	exp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(c.OTLPEndpoint))
	if err != nil {
		return nil, nil, fmt.Errorf("spec.tracing.otlpEndpoint: %w", err)
	}
	ratio := 0.01
	if c.SampleRatio != nil {
		ratio = *c.SampleRatio
	}
	tp := sdk.NewTracerProvider(sdk.WithBatcher(exp), sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(ratio))),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "attache"), attribute.String("service.version", version))))
	stop = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tp.Shutdown(ctx) // traces are a convenience; records are elsewhere
	}
	return stop, tp.Tracer("github.com/attache-dev/attache"), nil
}
