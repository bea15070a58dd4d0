package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // database/sql driver "pgx"
	_ "modernc.org/sqlite"             // database/sql driver "sqlite"
)

// engine is where SQLite and PostgreSQL differ.
type engine struct {
	postgres bool
	write    *sql.DB // SQLite: one connection, whose transactions begin as writers
	read     *sql.DB
	aside    *sql.DB // reads parts, beside the snapshot of a question
	path     string  // SQLite: the file
	writes   statements
	reads    statements
	asides   statements
}

// sqlitePragmas of every connection. A commit is synced before it is
// acknowledged (synchronous FULL in WAL mode); pages are large because parts and
// blocks are.
const sqlitePragmas = "_pragma=busy_timeout(15000)&_pragma=foreign_keys(0)&_pragma=cache_size(-32000)&_pragma=temp_store(2)&_pragma=mmap_size(0)"

func openEngine(ctx context.Context, where string, readOnly bool) (*engine, error) {
	scheme, rest, _ := strings.Cut(where, ":")
	switch scheme {
	case "sqlite":
		return openSQLite(ctx, rest, readOnly)
	case "postgres", "postgresql":
		return openPostgres(ctx, where, readOnly)
	default:
		return nil, fmt.Errorf("audit store %q: must be sqlite:PATH or postgres://USER@HOST/DATABASE", redact(where))
	}
}

// redact takes a password off a URL.
func redact(where string) string {
	u, err := url.Parse(where)
	if err != nil {
		scheme, _, _ := strings.Cut(where, ":")
		return scheme + ":…"
	}
	return u.Redacted()
}

func openSQLite(ctx context.Context, path string, readOnly bool) (*engine, error) {
	path = strings.TrimPrefix(path, "//")
	if path == "" {
		return nil, errors.New("audit store sqlite: names no file; write sqlite:PATH")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("audit store: %w", err)
	}
	_, err = os.Stat(path)
	if readOnly && err != nil {
		return nil, fmt.Errorf("audit store: %w", err)
	}
	if !readOnly {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("audit store: %w", err)
		}
		// The file is made here because SQLite would let others read it.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator's path
		if err != nil {
			return nil, fmt.Errorf("audit store: %w", err)
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("audit store: %w", err)
		}
	}
	e := &engine{path: path}
	file := (&url.URL{Scheme: "file", Path: path}).String()
	if !readOnly {
		e.write, err = sql.Open("sqlite", file+"?"+sqlitePragmas+"&_txlock=immediate&_pragma=synchronous(FULL)")
		if err != nil {
			return nil, fmt.Errorf("audit store %s: %w", path, err)
		}
		e.write.SetMaxOpenConns(1)
		// Both are kept in the file. The page size counts before anything is written
		// only, and the driver sets the journal's mode before other pragmas.
		for _, q := range []string{"PRAGMA page_size = 16384", "PRAGMA journal_mode = WAL"} {
			if _, err := e.write.ExecContext(ctx, q); err != nil {
				return nil, errors.Join(fmt.Errorf("audit store %s: %w", path, notADatabase(err)), e.close())
			}
		}
	}
	e.read, err = sql.Open("sqlite", file+"?"+sqlitePragmas+"&mode=ro&_pragma=query_only(1)")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit store %s: %w", path, err), e.close())
	}
	e.read.SetMaxOpenConns(8)
	e.read.SetMaxIdleConns(8)
	// Its cache is small: a part is read once.
	e.aside, err = sql.Open("sqlite", file+"?"+strings.Replace(sqlitePragmas, "cache_size(-32000)", "cache_size(-2000)", 1)+"&mode=ro&_pragma=query_only(1)")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit store %s: %w", path, err), e.close())
	}
	e.aside.SetMaxOpenConns(8)
	e.aside.SetMaxIdleConns(8)
	return e, nil
}

// notADatabase names the cause when a file is something else.
func notADatabase(err error) error {
	if err != nil && (strings.Contains(err.Error(), "not a database") || strings.Contains(err.Error(), "malformed")) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func openPostgres(ctx context.Context, where string, readOnly bool) (*engine, error) {
	db, err := sql.Open("pgx", where)
	if err != nil {
		return nil, fmt.Errorf("audit store %s: %w", redact(where), err)
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(8)
	db.SetConnMaxIdleTime(5 * time.Minute)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("audit store %s: %w", redact(where), err), db.Close())
	}
	aside, err := sql.Open("pgx", where)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit store %s: %w", redact(where), err), db.Close())
	}
	aside.SetMaxOpenConns(4)
	aside.SetMaxIdleConns(4)
	aside.SetConnMaxIdleTime(5 * time.Minute)
	e := &engine{postgres: true, write: db, read: db, aside: aside}
	if readOnly {
		e.write = nil
	}
	return e, nil
}

func (e *engine) close() error {
	var errs []error
	if e.read != nil {
		errs = append(errs, e.read.Close())
	}
	if e.aside != nil {
		errs = append(errs, e.aside.Close())
	}
	if e.write != nil && e.write != e.read {
		errs = append(errs, e.write.Close())
	}
	return errors.Join(errs...)
}

// tx is a transaction that takes ? for parameters on both engines.
type tx struct {
	*sql.Tx
	e        *engine
	prepared *statements          // nil: none are kept
	mine     map[string]*sql.Stmt // those of prepared, of this transaction
	fetching sync.Mutex           // held by fetch
}

// statement returns a prepared statement of this transaction; nil if there is
// none.
func (t *tx) statement(ctx context.Context, q string) *sql.Stmt {
	if t.prepared == nil {
		return nil
	}
	if p := t.mine[q]; p != nil {
		return p
	}
	p := t.prepared.get(q)
	if p == nil {
		return nil
	}
	if t.mine == nil {
		t.mine = map[string]*sql.Stmt{}
	}
	t.mine[q] = t.StmtContext(ctx, p)
	return t.mine[q]
}

func (t *tx) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	if p := t.statement(ctx, q); p != nil {
		return p.QueryContext(ctx, args...)
	}
	return t.QueryContext(ctx, t.e.text(q), args...)
}

// text turns ? into $1, $2 … for PostgreSQL. No statement has a ? in a literal.
func (e *engine) text(q string) string {
	if !e.postgres {
		return q
	}
	var b strings.Builder
	n := 0
	for i := range len(q) {
		if q[i] == '?' {
			n++
			b.WriteString("$" + strconv.Itoa(n))
		} else {
			b.WriteByte(q[i])
		}
	}
	return b.String()
}

func (t *tx) exec(ctx context.Context, q string, args ...any) (int64, error) {
	var res sql.Result
	var err error
	if p := t.statement(ctx, q); p != nil {
		res, err = p.ExecContext(ctx, args...)
	} else {
		res, err = t.ExecContext(ctx, t.e.text(q), args...)
	}
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// insertBytes is about how much one statement inserts.
const insertBytes = 4 << 20

// insert adds rows, whose values are int, int64, string or []byte. PostgreSQL gets
// many at once, as arrays: each statement is a way to go.
func (t *tx) insert(ctx context.Context, into string, rows [][]any, suffix string) error {
	if !t.e.postgres {
		if len(rows) == 0 {
			return nil
		}
		q := into + " VALUES (?" + strings.Repeat(",?", len(rows[0])-1) + ") " + suffix
		for _, r := range rows {
			if _, err := t.exec(ctx, q, r...); err != nil {
				return err
			}
		}
		return nil
	}
	for len(rows) > 0 {
		n, size := 0, 0
		for n < len(rows) && size < insertBytes {
			for _, v := range rows[n] {
				if b, ok := v.([]byte); ok {
					size += len(b)
				}
			}
			n++
		}
		args, types := arrays(rows[:n])
		if _, err := t.exec(ctx, into+" SELECT * FROM unnest("+strings.Join(types, ",")+") "+suffix, args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// arrays turns rows into columns, and gives a parameter of the type of each.
func arrays(rows [][]any) (columns []any, params []string) {
	for i := range rows[0] {
		switch rows[0][i].(type) {
		case int, int64:
			l := make([]int64, len(rows))
			for n, r := range rows {
				if v, ok := r[i].(int); ok {
					l[n] = int64(v)
				} else {
					l[n], _ = r[i].(int64)
				}
			}
			columns, params = append(columns, l), append(params, "?::bigint[]")
		case string:
			columns, params = append(columns, columnOf[string](rows, i)), append(params, "?::text[]")
		default:
			columns, params = append(columns, columnOf[[]byte](rows, i)), append(params, "?::bytea[]")
		}
	}
	return columns, params
}

func columnOf[T any](rows [][]any, i int) []T {
	l := make([]T, len(rows))
	for n, r := range rows {
		l[n], _ = r[i].(T)
	}
	return l
}

// each calls fn for every row of a query.
func (t *tx) each(ctx context.Context, fn func(scan func(...any) error) error, q string, args ...any) error {
	rows, err := t.query(ctx, q, args...)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err says it
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// one scans the first row of a query; false: there is none.
func (t *tx) one(ctx context.Context, q string, args []any, dest ...any) (bool, error) {
	rows, err := t.query(ctx, q, args...)
	if err != nil {
		return false, err
	}
	defer rows.Close() //nolint:errcheck // Err says it
	if !rows.Next() {
		return false, rows.Err()
	}
	if err := rows.Scan(dest...); err != nil {
		return false, err
	}
	return true, rows.Close()
}

// writing runs fn in a transaction that no other writer runs beside, in any
// process: commits have an order.
func (e *engine) writing(ctx context.Context, fn func(*tx) error) error {
	if e.write == nil {
		return ErrReadOnly
	}
	kept := e.keeps(ctx, e.write, &e.writes)
	t, err := e.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	x := &tx{Tx: t, e: e, prepared: kept}
	if e.postgres {
		_, err = x.exec(ctx, "SELECT pg_advisory_xact_lock(?)", writerLock)
	}
	if err == nil {
		err = fn(x)
	}
	if err != nil {
		return errors.Join(err, ignoreDone(t.Rollback()))
	}
	return t.Commit()
}

// writerLock is the key of PostgreSQL's advisory lock: "attache" in ASCII.
const writerLock = 0x61747461636865

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// reading runs fn on a snapshot.
func (e *engine) reading(ctx context.Context, fn func(*tx) error) error {
	o := &sql.TxOptions{ReadOnly: true}
	if e.postgres {
		o.Isolation = sql.LevelRepeatableRead
	}
	kept := e.keeps(ctx, e.read, &e.reads)
	e.keeps(ctx, e.aside, &e.asides)
	t, err := e.read.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	err = fn(&tx{Tx: t, e: e, prepared: kept})
	return errors.Join(err, ignoreDone(t.Rollback()))
}
