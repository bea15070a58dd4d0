package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long the folder must be quiet before it is read again: an
// editor's save and kubelet's swap are several events.
const settle = 150 * time.Millisecond

// Watcher reloads a folder when it changes. Bundles are applied one at a time
// and the last one that was accepted stays until a better one comes.
type Watcher struct {
	// Dir is what [Load] reads: a folder or one file.
	Dir string
	Log *slog.Logger
	// Apply takes over a new bundle or rejects it (policy that does not
	// compile). Problems in its error need only a Ref.
	Apply func(*Bundle) error
	// Rejected, if set, is told of each rejected change: [Problems] or
	// another error; and nil once the documents are good again.
	Rejected func(error)
}

// Watch runs a [Watcher] until ctx is done.
func Watch(ctx context.Context, dir string, log *slog.Logger, apply func(*Bundle) error) error {
	return (&Watcher{Dir: dir, Log: log, Apply: apply}).Run(ctx)
}

// Run applies the documents as they stand now and again after every change,
// until ctx is done; then it returns nil. The first Apply makes sure that no
// change between the caller's own Load and Run is lost. An error means that
// the folder cannot be watched at all.
func (w *Watcher) Run(ctx context.Context) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.Dir, err)
	}
	defer func() { _ = events.Close() }()
	r := reload{Watcher: w, events: events}
	if err := r.watch(); err != nil {
		return fmt.Errorf("watch %s: %w", w.Dir, err)
	}
	r.load(ctx)
	quiet := time.NewTimer(settle)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events.Events:
			if !ok {
				return nil
			}
			// Any event counts: what a name means is for Load to say.
			quiet.Reset(settle)
		case err, ok := <-events.Errors:
			if !ok {
				return nil
			}
			w.Log.WarnContext(ctx, "watching configuration", "error", err)
			quiet.Reset(settle) // an overflow may have lost events
		case <-quiet.C:
			if err := r.watch(); err != nil {
				w.Log.WarnContext(ctx, "watching configuration", "error", err)
			}
			r.load(ctx)
		}
	}
}

// reload is the state of one Run.
type reload struct {
	*Watcher
	events  *fsnotify.Watcher
	good    string // version last applied
	bad     string // text of the error last reported
	pending []string
}

// watch names the folders whose events matter: the documents', the one above
// (the folder itself may be replaced) and those of certificate files. It is
// repeated after each change, since a replaced folder is a new one.
func (r *reload) watch() error {
	folders := append([]string{r.Dir, filepath.Dir(filepath.Clean(r.Dir))}, r.pending...)
	watched := 0
	var first error
	for _, f := range folders {
		if err := r.events.Add(f); err != nil {
			if first == nil && !errors.Is(err, os.ErrNotExist) {
				first = err
			}
			continue
		}
		watched++
	}
	if watched == 0 {
		return errors.Join(errors.New("neither the folder nor the one above it can be watched"), first)
	}
	return nil
}

func (r *reload) load(ctx context.Context) {
	b, err := Load(r.Dir)
	if err == nil {
		r.pending = nil
		for _, f := range b.files {
			r.pending = append(r.pending, filepath.Dir(f))
		}
		if err := r.watch(); err != nil {
			r.Log.WarnContext(ctx, "watching configuration", "error", err)
		}
		if b.Version == r.good {
			r.accept(ctx, b, false)
			return
		}
		if err = r.Apply(b); err == nil {
			r.accept(ctx, b, true)
			return
		}
		err = b.Located(err)
	}
	if r.bad == err.Error() {
		return // the same mistake again: the file was touched
	}
	r.bad = err.Error()
	r.Log.ErrorContext(ctx, "configuration rejected, the last good one stays", "dir", r.Dir, "version", short(r.good), "error", err)
	if r.Rejected != nil {
		r.Rejected(err)
	}
}

func (r *reload) accept(ctx context.Context, b *Bundle, changed bool) {
	if changed || r.bad != "" {
		r.Log.InfoContext(ctx, "configuration applied", "dir", r.Dir, "version", short(b.Version), "providers", len(b.Providers), "policies", len(b.Policies))
	}
	if r.Rejected != nil && r.bad != "" {
		r.Rejected(nil)
	}
	r.good, r.bad = b.Version, ""
}

// short is enough of a version to tell two apart in a log.
func short(version string) string { return version[:min(12, len(version))] }
