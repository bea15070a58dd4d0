package collector

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// Attributes of a log record that carry what frames the line in its body.
const (
	attrEpoch    = "attache.epoch"
	attrSequence = "attache.sequence"
	attrChain    = "attache.chain"
)

// head is what of a line's JSON the collector understands. A line of a newer
// schema has these members too: a field is only ever added.
type head struct {
	Schema   string `json:"schema"`
	Type     string `json:"type"`
	Epoch    string `json:"epoch"`
	Sequence uint64 `json:"sequence"`
	Time     string `json:"time"`
	Workload *struct {
		ID        string `json:"id"`
		Namespace string `json:"namespace"`
	} `json:"workload"`
	Change *struct{} `json:"change"`
	Event  *struct {
		Name   string            `json:"name"`
		Fields map[string]string `json:"fields"`
	} `json:"event"`
}

// line is a line with its head.
type line struct {
	audit.Line
	head head
}

// Mistakes of a line that never become right by sending it again.
var (
	errBody      = errors.New("the body is no text")
	errTooLong   = fmt.Errorf("the line is longer than %d bytes", maxLine)
	errJSON      = errors.New("the line is no JSON object of an audit record")
	errAttribute = errors.New("the attributes " + attrEpoch + ", " + attrSequence + " or " + attrChain + " are not those of the line")
)

// decode takes the lines out of an export, in their order. What is no line is
// counted, with the first reason.
func decode(req *collogs.ExportLogsServiceRequest) (lines []line, bad int, why error) {
	for _, r := range req.GetResourceLogs() {
		for _, s := range r.GetScopeLogs() {
			for _, l := range s.GetLogRecords() {
				got, err := decodeLine(l)
				if err != nil {
					bad++
					if why == nil {
						why = err
					}
					continue
				}
				lines = append(lines, got)
			}
		}
	}
	return lines, bad, why
}

func decodeLine(l *logs.LogRecord) (line, error) {
	body, ok := l.GetBody().GetValue().(*common.AnyValue_StringValue)
	if !ok {
		return line{}, errBody
	}
	if len(body.StringValue) > maxLine {
		return line{}, errTooLong
	}
	out := line{Line: audit.Line{JSON: []byte(body.StringValue)}}
	if bytes.ContainsAny(out.JSON, "\n\t\x00") { // would break the frame of a spool
		return line{}, errJSON
	}
	var err error
	if out.head, err = headOf(out.JSON); err != nil {
		return line{}, err
	}
	for _, a := range l.GetAttributes() {
		if err := out.attribute(a); err != nil {
			return line{}, err
		}
	}
	if out.Epoch != out.head.Epoch || out.Sequence != out.head.Sequence {
		return line{}, errAttribute
	}
	return out, nil
}

// headOf reads a line's head.
func headOf(text []byte) (head, error) {
	var h head
	if err := json.Unmarshal(text, &h); err != nil || h.Epoch == "" || h.Sequence == 0 || len(h.Epoch) > maxEpoch {
		return head{}, errJSON
	}
	return h, nil
}

func (l *line) attribute(a *common.KeyValue) error {
	v := a.GetValue()
	switch a.GetKey() {
	case attrEpoch:
		l.Epoch = v.GetStringValue()
	case attrSequence:
		n, ok := v.GetValue().(*common.AnyValue_IntValue)
		if !ok || n.IntValue < 1 {
			return errAttribute
		}
		l.Sequence = uint64(n.IntValue)
	case attrChain:
		if v.GetStringValue() == "" {
			return nil
		}
		h, err := chain.ParseHash(v.GetStringValue())
		if err != nil {
			return errAttribute
		}
		l.Chain, l.Chained = h, true
	}
	return nil
}
