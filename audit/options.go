package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// What becomes of calls when the spool has reached its bound.
const (
	OnFullRefuse    = "refuse"    // Begin answers ErrFull: no record, no call
	OnFullOverwrite = "overwrite" // the oldest closed segment is deleted and its loss recorded
)

// Defaults of [Options].
const (
	DefaultMaxBytes     = 1 << 30
	DefaultSegmentBytes = 64 << 20
	DefaultSyncEvery    = 25 * time.Millisecond // begin to disk stays below 50 ms
	DefaultHeartbeat    = 30 * time.Second
	DefaultEndDelay     = 2 * time.Millisecond
)

const (
	minSegmentBytes = 8 << 10
	minMaxBytes     = 64 << 10
	// endReserve is the space that a begin keeps free for its end line.
	endReserve = 4 << 10
	// systemReserve is kept below MaxBytes for what the spool itself must be
	// able to say: epoch.close, dropped segments, a torn tail.
	systemReserve = 16 << 10
)

// Options of [Open]. Only Dir is required; zero values mean the defaults.
type Options struct {
	Dir          string
	SegmentBytes int64  // a segment is closed when it would exceed this
	MaxBytes     int64  // of all segments together, reserved space included
	OnFull       string // OnFullRefuse (default) or OnFullOverwrite
	Durability   v1alpha1.Durability
	// SyncEvery bounds how long a line waits for its fdatasync.
	SyncEvery time.Duration
	Heartbeat time.Duration
	// EndDelay bounds how long the end of a request may wait to be written
	// together with the next line: half the system calls under load. Its begin
	// is in the kernel, so that a process killed meanwhile leaves a record whose
	// outcome is unknown. Zero writes each end at once.
	EndDelay time.Duration
	// Collector says that somebody ships the lines and calls Spool.Answer, so
	// that v1alpha1.DurabilityCollector can be had.
	Collector bool
	// CollectorWait bounds how long a begin waits for that.
	CollectorWait time.Duration
	// Keep and KeepBytes say how long, and as how many bytes of the whole spool,
	// segments stay after SetShipped, if there is room. Zero: not at all.
	Keep      time.Duration
	KeepBytes int64
	// Redact says which secrets are taken out of records; see [Redactor].
	Redact v1alpha1.AuditRedact
	// Producer is who writes: a pod's UID, control/POD. Empty: the spool's own
	// id, kept in the directory.
	Producer string
	Kind     string // KindSidecar, KindRun or KindControl
	// Signer signs the end of the epoch; nil: nobody. It is called once, by
	// Close.
	Signer  func(text []byte) (Signature, error)
	Version string            // of the producer, for the epoch's first record
	Config  map[string]string // further facts for the epoch's first record
	Logger  *slog.Logger      // nil discards

	// fault, if set, is asked before each operation on a file; tests use it to
	// stand for a disk that fails. For "write" it says how many of n bytes are
	// written before err.
	fault func(op string, n int) (int, error)
}

// FromConfig returns the options of an AttacheConfig's audit section.
func FromConfig(c v1alpha1.AuditConfig) Options {
	return Options{
		Dir: c.Dir, SegmentBytes: c.SegmentBytes, MaxBytes: c.MaxBytes, OnFull: c.OnFull,
		Durability: c.Durability, Heartbeat: c.Heartbeat.D(), EndDelay: DefaultEndDelay,
		CollectorWait: c.CollectorWait.D(), Keep: c.Keep.D(), KeepBytes: c.KeepBytes,
		Redact: c.Redact,
	}
}

// withDefaults fills zero fields and refuses values that cannot work.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("audit: no directory given; set audit.dir")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxBytes < minMaxBytes {
		return o, fmt.Errorf("audit.maxBytes: is %d; must be at least %d", o.MaxBytes, minMaxBytes)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = max(min(DefaultSegmentBytes, o.MaxBytes/4), minSegmentBytes)
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > o.MaxBytes/2 {
		return o, fmt.Errorf("audit.segmentBytes: is %d; must be between %d and half of maxBytes (%d)",
			o.SegmentBytes, minSegmentBytes, o.MaxBytes/2)
	}
	switch o.OnFull {
	case "":
		o.OnFull = OnFullRefuse
	case OnFullRefuse, OnFullOverwrite:
	default:
		return o, fmt.Errorf("audit.onFull: is %q; must be one of refuse, overwrite", o.OnFull)
	}
	switch o.Durability {
	case "":
		o.Durability = v1alpha1.DurabilityProcess
	case v1alpha1.DurabilityProcess, v1alpha1.DurabilityPower, v1alpha1.DurabilityCollector:
	default:
		return o, fmt.Errorf("audit.durability: is %q; must be one of process, power, collector", o.Durability)
	}
	if o.CollectorWait <= 0 {
		o.CollectorWait = DefaultCollectorWait
	}
	if o.SyncEvery <= 0 {
		o.SyncEvery = DefaultSyncEvery
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
