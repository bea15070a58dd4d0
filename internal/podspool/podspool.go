// Package podspool says how much of its node's disk a pod's records may take:
// one rule for the documents' check, for injection and for the sidecar.
package podspool

import (
	"fmt"

	"github.com/attache-dev/attache/internal/quantity"
)

const mi = 1 << 20

// Bounds and defaults, in bytes.
const (
	DefaultSpool = 192 * mi
	MinSpool     = 16 * mi
	MaxSpool     = 16 << 10 * mi

	// Aside is what the volume must have beyond the spool: as many sinks as there
	// can be set aside so much of what they refused, each with its cursor.
	Aside = 40 * mi
	// logs is what the kubelet keeps of a container's output by its defaults (five
	// files of 10 MiB), and some more. It counts as ephemeral storage too.
	logs = 64 * mi
)

// Sizes are those of one pod, in bytes. Spool < Volume < Ephemeral, or Ephemeral
// is 0: then the pod asks for none.
type Sizes struct {
	Spool     int64 // of the records; full, calls are refused
	Volume    int64 // sizeLimit of the emptyDir; above it the kubelet evicts
	Ephemeral int64 // the sidecar's ephemeral-storage
}

// FieldError is about one of the three texts of [Parse].
type FieldError struct {
	Field, Value string // spool, spoolVolume or ephemeralStorage
	Text         string // what is wrong with the value
}

// Error names field, value and rule.
func (e *FieldError) Error() string { return fmt.Sprintf("%s: is %q; %s", e.Field, e.Value, e.Text) }

// Of are the sizes around a spool.
func Of(spool int64) Sizes {
	volume := whole(spool + max(64*mi, spool/8))
	return Sizes{spool, volume, volume + logs}
}

// Within are the sizes of a pod of which a container may have so many bytes of
// ephemeral storage; false if that is too little.
func Within(ephemeral int64) (Sizes, bool) {
	s := Sizes{Spool: ephemeral - logs - 64*mi, Volume: ephemeral - logs, Ephemeral: ephemeral}
	return s, s.Spool >= MinSpool
}

// whole rounds up to a MiB.
func whole(n int64) int64 { return (n + mi - 1) / mi * mi }

// Parse reads quantities; an empty one follows from the others. The error is a
// [*FieldError].
func Parse(spool, volume, ephemeral string) (Sizes, error) {
	n, given, err := read("spool", spool)
	if err != nil {
		return Sizes{}, err
	}
	if !given {
		n = DefaultSpool
	}
	if n < MinSpool || n > MaxSpool {
		return Sizes{}, &FieldError{"spool", spool, "must be 16Mi to 16Gi"}
	}
	s := Of(n)
	v, given, err := read("spoolVolume", volume)
	if err != nil {
		return Sizes{}, err
	}
	if given {
		if v < s.Spool+Aside {
			return Sizes{}, &FieldError{"spoolVolume", volume, fmt.Sprintf("must be at least %dMi: the spool (%dMi) and what sinks set aside, or the kubelet evicts a pod whose spool is full", whole(s.Spool+Aside)/mi, whole(s.Spool)/mi)}
		}
		s.Volume, s.Ephemeral = v, v+logs
	}
	e, given, err := read("ephemeralStorage", ephemeral)
	switch {
	case err != nil:
		return Sizes{}, err
	case !given:
	case e == 0:
		s.Ephemeral = 0
	case e <= s.Volume:
		return Sizes{}, &FieldError{"ephemeralStorage", ephemeral, fmt.Sprintf("must be above the spool's volume (%dMi), since the container's output counts too; 0 asks for none", whole(s.Volume)/mi)}
	default:
		s.Ephemeral = e
	}
	return s, nil
}

// read reads whole bytes.
func read(field, text string) (int64, bool, error) {
	if text == "" {
		return 0, false, nil
	}
	n, err := quantity.Parse(text)
	if err != nil {
		return 0, false, &FieldError{field, text, "must be a quantity such as 256Mi"}
	}
	return n/1000 + min(n%1000, 1), true, nil
}
