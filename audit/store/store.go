// Package store keeps audit records in SQLite or PostgreSQL and answers
// questions about them. Lines are kept byte for byte in compressed blocks;
// beside them stand columns made from the records, which every answer is read
// from and which can be made anew from the lines.
package store

import (
	"errors"
	"log/slog"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Errors that callers tell apart.
var (
	// ErrForged is matched by Append when a line is not the one that the store
	// has under its epoch and sequence, or does not follow from the line before
	// it. Nothing of the batch is stored; it is never right to try again.
	ErrForged = errors.New("audit line is forged")
	// ErrBadLine is matched by Append when a line is no audit record. Nothing of
	// the batch is stored; it is never right to try again.
	ErrBadLine = errors.New("is no audit line")
	// ErrNotFound is matched by Get, Checkpoint and Document.
	ErrNotFound = errors.New("not in the audit store")
	// ErrReadOnly is matched by every write to a store opened with
	// Options.ReadOnly.
	ErrReadOnly = errors.New("audit store was opened to read only")
	// ErrCursor is matched when a cursor is none that this store gave.
	ErrCursor = errors.New("is no cursor of the audit store")
	// ErrOlder is matched by Open when a store was written before the first release.
	ErrOlder = errors.New("of a program before the first release")
	// ErrOpen is matched by the end of Pages when more requests are open than one
	// question looks at: those that came first were left out.
	ErrOpen = errors.New("more requests are open than one question looks at")
	// ErrCorrupt is matched when what the database holds is not what was
	// written to it.
	ErrCorrupt = errors.New("audit store is damaged")
)

// Options of [Open]. The zero Options works.
type Options struct {
	ReadOnly bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// QueryTimeout bounds each question; 0 means 10 s.
	QueryTimeout time.Duration
	// MaxReads bounds the records that one question reads because no index tells
	// whether they match; the answer is then partial. 0 means 100,000. Half of
	// QueryTimeout bounds it too.
	MaxReads int
	Logger   *slog.Logger // nil discards
}

// Producer is who wrote a spool, as the caller authenticated it.
type Producer struct {
	ID        string `json:"id"`                  // pod uid, id of a laptop's spool, control/<pod>
	Kind      string `json:"kind"`                // sidecar, run or control
	Namespace string `json:"namespace,omitempty"` // Kubernetes namespace, or local
	Pod       string `json:"pod,omitempty"`
	Node      string `json:"node,omitempty"`
	Workload  string `json:"workload,omitempty"` // SPIFFE ID
}

// Ack says what became of a batch. All of it is durable: a crash of the store's
// machine does not lose it.
type Ack struct {
	Stored     int   // lines
	Duplicates int   // lines that the store had, byte for byte
	Gaps       []Gap // sequences that are missing before or within this batch
}

// Gap is a run of sequences that an epoch does not have.
type Gap struct {
	Epoch string `json:"epoch"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
}

// Ref names one line.
type Ref struct {
	Epoch    string `json:"epoch"`
	Sequence uint64 `json:"sequence"`
}

// Cursor is a place in an answer, opaque to callers and safe in a URL. The
// empty Cursor is the beginning.
type Cursor string

// Query asks for records. The zero Query matches every request and event.
type Query struct {
	Filter audit.Filter // of audit.ParseFilter
	// Namespaces, if not nil, limits the answer to workloads (and control
	// events) of these Kubernetes namespaces: what the reader may see.
	Namespaces []string
	Limit      int    // rows of a page; 0 means 50, at most MaxLimit
	After      Cursor // continue behind this row; of Page.Next
	Oldest     bool   // oldest first; otherwise newest first
}

// MaxLimit bounds Query.Limit.
const MaxLimit = 1000

// Row is one record of an answer: a request, joined from its lines, or an
// event. A request without an end has type begin and outcome open or unknown.
type Row struct {
	audit.Record
	Cursor   Cursor // its place; continue behind it
	Producer string
}

// Page is a part of an answer.
type Page struct {
	Rows []Row
	Next Cursor // empty: there are no more
	// Partial says that the bound on work was reached before the page was full, or
	// that there are more open requests than one question looks at: until: reaches
	// those. Next goes on from there; Until is the time up to which was looked.
	Partial bool
	Until   time.Time
}

// Count is how often something was, and when.
type Count struct {
	Count  int64     `json:"count"`
	Denied int64     `json:"denied"` // verdict deny
	Failed int64     `json:"failed"` // outcome neither ok nor denied
	Bytes  int64     `json:"bytes"`  // up and down
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
}

// FacetValue is one value of a key and how often it was.
type FacetValue struct {
	Value string `json:"value"`
	Count
}

// Facet is the most frequent values of a key.
type Facet struct {
	Key    string       `json:"key"` // of the query language
	Values []FacetValue `json:"values"`
	Others int64        `json:"others"` // records with values that are not listed
	More   int          `json:"more"`   // values that are not listed
}

// Bucket is one bar of a histogram.
type Bucket struct {
	Start  time.Time `json:"start"`
	Count  int64     `json:"count"`
	Denied int64     `json:"denied"`
	Failed int64     `json:"failed"`
}

// Group is one combination of values.
type Group struct {
	Values []string `json:"values"` // in the order of the keys asked for
	Count
}

// Facets is an answer to [DB.Facets].
type Facets struct {
	Total   Count   `json:"total"`
	Facets  []Facet `json:"facets"`
	Partial bool    `json:"partial"` // the bound on work was reached: the newest records are counted
}

// Head is the state of one epoch: what a checkpoint covers.
type Head struct {
	Producer Producer  `json:"producer"`
	Epoch    string    `json:"epoch"`
	First    uint64    `json:"first"` // lowest sequence that was ever stored
	Last     uint64    `json:"last"`  // highest
	Lines    uint64    `json:"lines"`
	Chained  bool      `json:"chained"`
	Hash     Hash      `json:"hash"` // chain value of Last
	Opened   time.Time `json:"opened"`
	Seen     time.Time `json:"seen"`   // time of the last line
	Stored   time.Time `json:"stored"` // when the store got it
	Closed   bool      `json:"closed"` // epoch.close is there
	Gaps     []Gap     `json:"gaps,omitempty"`
}

// Checkpoint is one row of the checkpoint log, opaque to the store but for its
// number, which goes up by one.
type Checkpoint struct {
	Number uint64
	Time   time.Time
	Note   []byte // the signed note, as published
	Heads  []byte // what its leaves were, in the maker's own encoding
}

// Removal is what retention took: verify explains missing lines with it.
type Removal struct {
	Ref           // first line that was removed
	Last   uint64 // last line
	Before Hash   // chain value of the first line; zero where lines are not chained
	After  Hash   // chain value of the last line
	Time   time.Time
	Reason string
}

// DocumentVersion is one version of a policy, a provider or a configuration.
type DocumentVersion struct {
	Digest    string    `json:"digest"`
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	Operation string    `json:"operation"`
	Event     string    `json:"event"`              // change.requested: somebody asked; policy.changed and so on: it came to be
	Previous  string    `json:"previous,omitempty"` // digest
	Text      string    `json:"text,omitempty"`
	Diff      string    `json:"diff,omitempty"`
	Author    string    `json:"author,omitempty"`
	Groups    []string  `json:"groups,omitempty"`
	Time      time.Time `json:"time"`
	Record    string    `json:"record"` // id of the record that says so
}

// DocumentQuery chooses document versions; empty fields match all.
type DocumentQuery struct {
	Digest, Kind, Namespace, Name string
	// Version is decision.version of a record: the documents of that set.
	Version string
	Limit   int
}

// Batch is lines of one producer as they were stored together.
type Batch struct {
	ID       int64 // ascending in the order of commits
	Producer Producer
	Lines    []audit.Line
}

// Retention says what may be removed. Zero fields do not limit.
type Retention struct {
	Keep     time.Duration
	MaxBytes int64
}
