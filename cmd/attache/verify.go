package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/term"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/storeurl"
)

// verifying is what `attache audit verify` was asked.
type verifying struct {
	store     storeurl.Flag
	keys      []string
	outside   []string
	origin    string
	newest    int
	skipIndex bool
}

func auditVerify(g *global, pl *places) *cobra.Command {
	var v verifying
	c := &cobra.Command{
		Use: "verify", Short: "Look for lines that are missing, doubled, altered or forged", Args: cobra.NoArgs,
		Long: `Verify reads every line. Without --store it looks at this machine's spools: it finds
gaps, damage and unfinished records, and lines that do not fit their hash chain.

With --store it compares a record store with checkpoints that are kept outside of it, where
whoever can write the store cannot rewrite them. It finds every deleted, changed, moved,
truncated or forged line that the newest of them covers, names it, and says what is not
covered. Give the key and the checkpoints from outside the store too:

  --key         the checkpoint key's public form, or a file that holds it; a second signer's too
  --checkpoint  a checkpoint's file, a folder of them, s3://BUCKET/PREFIX (Object Lock),
                or a second signer's address (https://…, with --origin)

With --output json: of a store an object, of spools a list, one element each. Exit status 1:
something is missing, doubled, altered or forged; 2: it could not be looked at.`,
		Example: `  attache audit verify && echo whole
  attache audit verify --store sqlite:records.db --key audit.pub --checkpoint s3://locked/attache/`,
		RunE: func(c *cobra.Command, _ []string) error {
			if v.store != "" && pl.dir != "" {
				return failure{errors.New("--store and --dir are two places; name one"), 2}
			}
			if v.store != "" {
				return verifyStore(c, g, &v)
			}
			if len(v.keys)+len(v.outside) > 0 {
				return failure{errors.New("--key and --checkpoint belong to a store; name it with --store"), 2}
			}
			return verifySpools(c, g, pl)
		},
	}
	f := c.Flags()
	f.Var(&v.store, "store", "record store, in place of spools: "+storeurl.Forms)
	f.StringArrayVar(&v.keys, "key", nil, "public key that must have signed the checkpoints (text or file; may be repeated)")
	f.StringArrayVar(&v.outside, "checkpoint", nil, "where checkpoints from outside are (may be repeated)")
	f.StringVar(&v.origin, "origin", "", "the store's origin, for a second signer's address")
	f.IntVar(&v.newest, "newest", 1500, "how many of a bucket's newest checkpoints are compared")
	f.BoolVar(&v.skipIndex, "skip-index", false, "leave out the comparison of what searches find with the lines")
	return unused(c, "log-level")
}

// verified is what --output json says of a spool.
type verified struct {
	Dir string `json:"dir"`
	audit.Report
}

func verifySpools(c *cobra.Command, g *global, pl *places) error {
	ds, err := pl.spools()
	if err != nil {
		return err
	}
	bad := false
	all := []verified{}
	for _, d := range ds {
		r, err := audit.Verify(d)
		if err != nil {
			return failure{err, 2} // 1 says that something was changed
		}
		bad = bad || len(r.Problems) > 0
		all = append(all, verified{d, r})
		if g.json() {
			continue
		}
		if err := printReport(c.OutOrStdout(), d, r); err != nil {
			return err
		}
	}
	if g.json() {
		if err := writeJSON(c.OutOrStdout(), all); err != nil {
			return err
		}
	}
	if bad {
		return exit(1)
	}
	return nil
}

func printReport(w io.Writer, dir string, r audit.Report) error {
	chained, signed := r.Chained()
	_, err := fmt.Fprintf(w, "%s: %d requests, %d finished (%d with outcome unknown), %d open, %d epochs (%d chained, %d with a signed end), %d problems\n",
		dir, r.Requests, r.Finished, r.Unknown, r.Open, len(r.Epochs), chained, signed, len(r.Problems))
	for _, p := range r.Problems {
		if _, err := fmt.Fprintln(w, "  "+p.String()); err != nil {
			return err
		}
	}
	return err
}

func verifyStore(c *cobra.Command, g *global, v *verifying) error {
	ctx, stop := interruptible(c)
	defer stop()
	var o checkpoint.Options
	for _, k := range v.keys {
		key, err := verifierKey(k)
		if err != nil {
			return failure{fmt.Errorf("--key: %w", err), 2}
		}
		o.Keys = append(o.Keys, key)
	}
	if len(v.outside) > 0 && len(o.Keys) == 0 {
		return failure{errors.New("--checkpoint needs --key: a checkpoint that anybody signed proves nothing"), 2}
	}
	for _, where := range v.outside {
		notes, err := fetchCheckpoints(ctx, where, v, o.Keys)
		if err != nil {
			return failure{fmt.Errorf("--checkpoint %s: %w", where, err), 2}
		}
		o.Outside = append(o.Outside, notes...)
	}
	if f, ok := c.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) && !g.json() { //nolint:gosec // a descriptor
		o.Progress = func(n uint64) { fmt.Fprintf(c.ErrOrStderr(), "\r%d lines read", n) }
	}
	db, err := store.Open(ctx, string(v.store), store.Options{ReadOnly: true})
	if err != nil {
		return failure{err, 2} // 1 says that something was changed
	}
	defer db.Close() //nolint:errcheck // read only
	if !v.skipIndex {
		o.Index = db.VerifyIndex
	}
	r, err := checkpoint.Verify(ctx, db, o)
	if o.Progress != nil {
		fmt.Fprint(c.ErrOrStderr(), "\r\x1b[K")
	}
	if err != nil {
		return failure{fmt.Errorf("not verified: %w", err), 2}
	}
	if g.json() {
		err = writeJSON(c.OutOrStdout(), r)
	} else {
		_, err = io.WriteString(c.OutOrStdout(), r.Text(time.Now()))
	}
	if err == nil && !r.OK() {
		err = exit(1)
	}
	return err
}

// verifierKey reads a public key: its text, NAME+HASH+KEY, or a file of it.
func verifierKey(s string) (note.Verifier, error) {
	if k, err := note.NewVerifier(s); err == nil {
		return k, nil
	}
	b, err := os.ReadFile(s) //nolint:gosec // the caller's own file
	if err != nil {
		return nil, fmt.Errorf("is no public key (NAME+HASH+KEY) and no file: %w", err)
	}
	k, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s holds no public key (NAME+HASH+KEY)", s)
	}
	return k, nil
}

// fetchCheckpoints reads the signed notes at a place outside the store.
func fetchCheckpoints(ctx context.Context, where string, v *verifying, keys []note.Verifier) ([][]byte, error) {
	switch {
	case strings.HasPrefix(where, "s3://"):
		bucket, prefix, err := checkpoint.ParseURL(where)
		if err != nil {
			return nil, err
		}
		client, err := s3Client(ctx)
		if err != nil {
			return nil, err
		}
		return checkpoint.ObjectLock{Client: client, Bucket: bucket, Prefix: prefix, Now: time.Now}.Newest(ctx, v.newest)
	case strings.HasPrefix(where, "https://"), strings.HasPrefix(where, "http://"):
		if v.origin == "" {
			return nil, errors.New("a second signer may serve several stores; give --origin")
		}
		w := checkpoint.Witnessed{URL: where, Key: keys[0], Client: &http.Client{Timeout: 30 * time.Second}}
		b, err := w.Latest(ctx, v.origin)
		return [][]byte{b}, err
	}
	return checkpoint.ReadFiles(where)
}

// s3Client takes its settings from where the AWS SDK does. A server of one's
// own (AWS_ENDPOINT_URL) has its buckets in the path.
func s3Client(ctx context.Context) (*s3.Client, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("AWS settings: %w", err)
	}
	own := cfg.BaseEndpoint != nil || slices.ContainsFunc([]string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}, func(k string) bool { return os.Getenv(k) != "" })
	return s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = own }), nil
}

// auditWitness serves as the second signer of checkpoints.
func auditWitness() *cobra.Command {
	var dir, listen, name, cert, key string
	var trust []string
	c := &cobra.Command{
		Use: "witness", Short: "Sign the checkpoints of a record store as a second signer", Args: cobra.NoArgs,
		Long: `Witness signs each checkpoint that follows the one that it signed before, and refuses every
other: a store that was rolled back or rewritten gets no signature, also from who holds its key.
Run it where the store's operators cannot reach it. Its own key is made at the first start and
kept in --dir; the public form, which --key of "attache audit verify" takes, is printed.`,
		Example: `  attache audit witness --dir /var/lib/witness --name witness.example.com --trust audit.pub --listen :8475 --tls-cert w.crt --tls-key w.key`,
		RunE: func(c *cobra.Command, _ []string) error {
			var known []note.Verifier
			for _, k := range trust {
				v, err := verifierKey(k)
				if err != nil {
					return failure{fmt.Errorf("--trust: %w", err), 2}
				}
				known = append(known, v)
			}
			if len(known) == 0 || dir == "" {
				return failure{errors.New("--dir (a folder for the key and what was signed) and --trust (the store's public key: checkpoint.pub of Secret attache-audit-key) are needed"), 2}
			}
			signer, public, err := checkpoint.KeyFile(filepath.Join(dir, "key"), name)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(c.OutOrStdout(), "public key: %s\n", public); err != nil {
				return err
			}
			ctx, stop := interruptible(c)
			defer stop()
			w := &checkpoint.Witness{Dir: dir, Signer: signer, Known: note.VerifierList(known...)}
			return serveWitness(ctx, c.OutOrStdout(), w, listen, cert, key)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "folder of the key and of what was signed last")
	f.StringVar(&name, "name", "witness", "name in the signatures, used when the key is made")
	f.StringArrayVar(&trust, "trust", nil, "public key of a store whose checkpoints are signed (text or file; may be repeated)")
	f.StringVar(&listen, "listen", "127.0.0.1:8475", "address to serve on")
	f.StringVar(&cert, "tls-cert", "", "certificate chain (PEM); with --tls-key")
	f.StringVar(&key, "tls-key", "", "its key (PEM)")
	c.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	return unused(c, "config", "store", "state", "output", "log-level")
}

func serveWitness(ctx context.Context, out io.Writer, w *checkpoint.Witness, listen, cert, key string) error {
	s := &http.Server{Addr: listen, Handler: w.Handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() {
		if cert != "" {
			failed <- s.ListenAndServeTLS(cert, key)
			return
		}
		failed <- s.ListenAndServe()
	}()
	if _, err := fmt.Fprintf(out, "serving on %s; stop with Ctrl-C\n", listen); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return s.Shutdown(late)
	}
}
