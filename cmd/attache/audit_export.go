package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/export"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/reads"
)

func auditExport(g *global, pl *places) *cobra.Command {
	var format, file string
	c := &cobra.Command{
		Use: "export [QUERY]", Short: "Write records to a file: CSV, JSON, OCSF or ECS",
		Long: `Export writes every record that matches, however many: the same records in the same
formats as the review page, which ends at 100,000.

  csv   a table for spreadsheets; a cell that could be a formula has an apostrophe in front
  json  a record a line, as attache audit schema describes it
  ocsf  an event a line, Open Cybersecurity Schema 1.8.0; a mint is two
  ecs   a document a line, Elastic Common Schema

Records of a store come by time, the oldest first; those of spools one spool after the other,
in the order in which calls ended. The file appears when it is whole. That records were
exported is recorded: here, below the state folder, and in a pod of the control plane, in its
own records.`,
		Example: "  attache audit export since:24h verdict:deny -o denied.csv\n  attache audit export --store sqlite:records.db --format ocsf | gzip > records.ocsf.jsonl.gz",
		RunE: func(c *cobra.Command, args []string) error {
			format, err := exportFormat(format, file)
			if err != nil {
				return failure{err, 2}
			}
			if file == "-" { // standard output, as elsewhere
				file = ""
			}
			r, err := pl.read(c, args)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(c)
			defer stop()
			return r.export(ctx, c, format, file)
		},
	}
	c.Flags().StringVar(&format, "format", "", "one of "+strings.Join(export.Formats(), ", ")+" (default what the file's name ends in, else json)")
	c.Flags().StringVarP(&file, "output", "o", "", "file to write, mode 0600 (default standard output)")
	return unused(c, "log-level")
}

// exportFormat is what --format says, or the name of the file.
func exportFormat(format, file string) (string, error) {
	if slices.Contains(append(export.Formats(), "text"), file) {
		return "", fmt.Errorf("-o names the file here; write --format %s for the format, or -o ./%s", file, file)
	}
	if format != "" {
		if _, ok := export.Of(format); !ok {
			return "", fmt.Errorf("--format is %q; must be one of %s", format, strings.Join(export.Formats(), ", "))
		}
		return format, nil
	}
	for _, f := range []string{export.OCSF, export.ECS, export.CSV} {
		if x, _ := export.Of(f); strings.HasSuffix(file, "."+x.Extension) {
			return f, nil
		}
	}
	return export.JSON, nil
}

// States of an export, as its record says.
const (
	whole  = "whole"
	broken = "broken off"
)

// exported says of what ended an export whether its file is kept, and in which
// state.
func exported(err error) (keep bool, state string) {
	switch {
	case err == nil:
		return true, whole
	case errors.Is(err, audit.ErrDamaged):
		return true, "without damaged lines"
	case errors.Is(err, store.ErrOpen):
		return true, "without some open requests"
	default:
		return false, broken
	}
}

// export writes the file, and records that before it begins and at its end.
func (r *reading) export(ctx context.Context, c *cobra.Command, format, file string) error {
	r.event.Event, r.event.Format = audit.EventAuditExport, format
	record := func(ctx context.Context) error {
		if socket := os.Getenv(reads.Env); socket != "" {
			return reads.Tell(ctx, socket, r.event)
		}
		return recordHere(ctx, r.p.g, r.event)
	}
	if err := r.places(ctx); err != nil { // a mistake is no export
		return err
	}
	if err := record(ctx); err != nil {
		if os.Getenv(reads.Env) != "" {
			return unshown(err)
		}
		return fmt.Errorf("nothing is exported, since that cannot be recorded: %w; name a folder for it with --state", err)
	}
	to, err := openOutput(c.OutOrStdout(), file)
	if err != nil {
		return failure{err, 2}
	}
	n, err := r.write(ctx, format, to)
	keep, state := exported(err)
	switch {
	case keep:
		err = errors.Join(to.keep(), err)
	case ctx.Err() != nil:
		err = errors.Join(errors.New("interrupted: the export is not whole"), to.drop())
	default:
		err = errors.Join(err, to.drop())
	}
	if err != nil && state == whole {
		state = broken
	}
	r.event.Records, r.event.State = strconv.Itoa(n), state
	if e := record(context.WithoutCancel(ctx)); e != nil {
		err = errors.Join(err, fmt.Errorf("the end of the export is not recorded: %w", e))
	}
	if err == nil && n == 0 {
		return r.nothing(r.p.g, c)
	}
	if err == nil && file != "" {
		_, err = fmt.Fprintf(c.ErrOrStderr(), "attache: %s in %s (%s)\n", counted(n, "record"), file, format)
	}
	return err
}

// places refuses a store that cannot be opened.
func (r *reading) places(ctx context.Context) error {
	if r.p.store == "" {
		return nil
	}
	return r.p.withStore(ctx, func(*store.DB) error { return nil })
}

// write writes the records one by one; none is kept.
func (r *reading) write(ctx context.Context, format string, w io.Writer) (n int, err error) {
	e, err := export.New(format, w)
	if err != nil {
		return 0, err
	}
	add := func(x *audit.Record) error {
		n++
		return e.Write(x)
	}
	failed := r.each(ctx, add)
	if failed != nil && !errors.Is(failed, audit.ErrDamaged) {
		return n, failed
	}
	if err := e.Flush(); err != nil {
		return n, err
	}
	return n, failed
}

// output is where an export goes. A file appears under its name when it is
// whole.
type output struct {
	io.Writer

	tmp  *os.File // nil: what is written is there at once
	file string
}

func openOutput(stdout io.Writer, file string) (*output, error) {
	if file == "" {
		return &output{Writer: stdout}, nil
	}
	if fi, err := os.Stat(file); err == nil && !fi.Mode().IsRegular() {
		if fi.IsDir() {
			return nil, fmt.Errorf("-o %s: is a folder; name a file", file)
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0) //nolint:gosec // a pipe or a device that the caller names
		return &output{Writer: f}, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.partial") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("-o %s: %w", file, err)
	}
	return &output{Writer: tmp, tmp: tmp, file: file}, nil
}

// keep gives the file its name.
func (o *output) keep() error {
	if o.tmp == nil {
		return nil
	}
	err := errors.Join(o.tmp.Sync(), o.tmp.Close())
	if err == nil {
		err = os.Rename(o.tmp.Name(), o.file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(o.tmp.Name()))
	}
	return nil
}

// drop leaves nothing that looks whole.
func (o *output) drop() error {
	if o.tmp == nil {
		return nil
	}
	return errors.Join(o.tmp.Close(), os.Remove(o.tmp.Name()))
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
