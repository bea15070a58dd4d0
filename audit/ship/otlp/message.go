package otlp

import (
	"math"
	"slices"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ecs"
	"github.com/attache-dev/attache/audit/ship"
)

// Attributes of each log record.
const (
	attrEpoch    = "attache.epoch"
	attrSequence = "attache.sequence"
	attrChain    = "attache.chain"
	attrType     = "attache.type"
	attrID       = "attache.id"
	// attrEvident is false on records that were sent past attache-control: the
	// receiver can find what is missing by the chain, and no checkpoint outside
	// of it says what there was.
	attrEvident = "attache.tamper_evident"
)

const scopeName = "github.com/attache-dev/attache/audit"

func (s *Sink) request(b ship.Batch) *collogs.ExportLogsServiceRequest {
	records := make([]*logs.LogRecord, len(b.Lines))
	now := uint64(max(time.Now().UnixNano(), 0)) //nolint:gosec // not negative
	for i, l := range b.Lines {
		records[i] = s.record(l, now)
	}
	return &collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource:  s.resource(b.Producer),
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: scopeName, Version: audit.SchemaVersion}, LogRecords: records}},
	}}}
}

func (s *Sink) resource(producer string) *resource.Resource {
	r := &resource.Resource{Attributes: []*common.KeyValue{text("service.name", s.c.Service), text("service.instance.id", producer)}}
	if s.c.Version != "" {
		r.Attributes = append(r.Attributes, text("service.version", s.c.Version))
	}
	keys := make([]string, 0, len(s.c.Resource))
	for k := range s.c.Resource {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		r.Attributes = append(r.Attributes, text(k, s.c.Resource[k]))
	}
	return r
}

// record is a line: its body is the exact text, which the chain is over.
func (s *Sink) record(l audit.Line, now uint64) *logs.LogRecord {
	typ, id, at := l.Head()
	r := &logs.LogRecord{
		ObservedTimeUnixNano: now, EventName: eventName(typ),
		Body:       &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(l.JSON)}},
		Attributes: []*common.KeyValue{text(attrEpoch, l.Epoch), number(attrSequence, int64(min(l.Sequence, math.MaxInt64)))}, //nolint:gosec // bounded
	}
	if n := at.UnixNano(); n > 0 {
		r.TimeUnixNano = uint64(n)
	}
	if l.Chained {
		r.Attributes = append(r.Attributes, text(attrChain, l.Chain.String()))
	}
	if s.c.Control { // it reads the body
		return r
	}
	r.Attributes = append(r.Attributes, text(attrType, typ), text(attrID, id),
		&common.KeyValue{Key: attrEvident, Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: false}}})
	rec, err := l.Record()
	if err != nil {
		return r // of a newer producer: the body has it all the same
	}
	r.SeverityNumber, r.SeverityText = severity(&rec)
	for _, a := range ecs.Attributes(&rec) {
		r.Attributes = append(r.Attributes, &common.KeyValue{Key: a.Key, Value: value(a.Value)})
	}
	return r
}

func eventName(typ string) string {
	switch typ {
	case audit.TypeBegin, audit.TypeEnd:
		return "attache.request"
	case audit.TypeEvent:
		return "attache.event"
	}
	return "attache.producer"
}

// severity of a record: what a person should look at is not INFO.
func severity(r *audit.Record) (logs.SeverityNumber, string) {
	if r.Result == nil {
		return logs.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO"
	}
	switch r.Result.Outcome {
	case audit.OutcomeError, audit.OutcomeLeak:
		return logs.SeverityNumber_SEVERITY_NUMBER_ERROR, "ERROR"
	case audit.OutcomeDenied, audit.OutcomeRevoked, audit.OutcomeUnknown:
		return logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	return logs.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO"
}

func text(k, v string) *common.KeyValue {
	return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}}
}

func number(k string, n int64) *common.KeyValue {
	return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: n}}}
}

func value(v any) *common.AnyValue {
	switch v := v.(type) {
	case string:
		return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}
	case int64:
		return &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: v}}
	case bool:
		return &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: v}}
	case []string:
		l := &common.ArrayValue{}
		for _, s := range v {
			l.Values = append(l.Values, value(s))
		}
		return &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: l}}
	}
	return &common.AnyValue{}
}
