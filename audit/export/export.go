// Package export writes records to files: the review page and the command line
// give the same ones.
package export

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ecs"
	"github.com/attache-dev/attache/audit/ocsf"
)

// Formats of a file.
const (
	CSV  = "csv"  // a table for spreadsheets
	JSON = "json" // a record a line, begin and end joined
	OCSF = "ocsf" // an event a line; the minting of a credential is two
	ECS  = "ecs"  // a document a line
)

// Formats lists them.
func Formats() []string { return []string{CSV, JSON, OCSF, ECS} }

// Format is how a file of one kind is told to others.
type Format struct {
	MIME      string
	Extension string // of its name, without a dot
}

// Of returns what is to say about a format, and whether it is one.
func Of(format string) (Format, bool) {
	switch format {
	case CSV:
		return Format{"text/csv; charset=utf-8; header=present", "csv"}, true
	case JSON:
		return Format{"application/jsonl; charset=utf-8", "jsonl"}, true
	case OCSF, ECS:
		return Format{"application/jsonl; charset=utf-8", format + ".jsonl"}, true
	}
	return Format{}, false
}

// Writer writes records in one format. It keeps none of them, whatever their
// number, and is not safe for concurrent use.
type Writer interface {
	// Write appends a record.
	Write(r *audit.Record) error
	// Flush writes what is buffered. The file is whole then.
	Flush() error
}

// New returns a Writer to w. The error names the formats.
func New(format string, w io.Writer) (Writer, error) {
	switch format {
	case CSV:
		return newTable(w)
	case JSON:
		return &lines{w: bufio.NewWriter(w), form: func(b []byte, r *audit.Record) ([]byte, error) { return append(r.AppendJSON(b), '\n'), nil }}, nil
	case OCSF:
		return &lines{w: bufio.NewWriter(w), form: ocsf.AppendJSON}, nil
	case ECS:
		return &lines{w: bufio.NewWriter(w), form: document}, nil
	}
	return nil, fmt.Errorf("format is %q; must be one of %s", format, strings.Join(Formats(), ", "))
}

// lines writes JSON.
type lines struct {
	w    *bufio.Writer
	buf  []byte
	form func([]byte, *audit.Record) ([]byte, error)
}

// Write implements Writer.
func (l *lines) Write(r *audit.Record) (err error) {
	if l.buf, err = l.form(l.buf[:0], r); err != nil {
		return err
	}
	_, err = l.w.Write(l.buf)
	return err
}

// Flush implements Writer.
func (l *lines) Flush() error { return l.w.Flush() }

func document(b []byte, r *audit.Record) ([]byte, error) {
	text, err := json.Marshal(ecs.Document(r))
	if err != nil {
		return b, fmt.Errorf("ecs: record %s: %w", r.ID, err)
	}
	return append(append(b, text...), '\n'), nil
}
