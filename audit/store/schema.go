package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// schemaVersion is that of the tables and of what segments hold. A store of an
// older one is migrated when it is opened for writing; a newer one is refused.
// Each change of what segments hold has a version; those before were in no release.
const schemaVersion = 4

// oldest is the version from which stores are migrated.
const oldest = 4

// migrations[n] makes version oldest+n, the first of nothing. BLOB, INT and
// SERIAL are replaced by each engine's words.
func migrations() [][]string {
	return [][]string{{
		// One row an epoch: its chain as far as it is known.
		`CREATE TABLE epoch (
			id INT PRIMARY KEY, name TEXT NOT NULL UNIQUE, producer TEXT NOT NULL, owner BLOB NOT NULL,
			first INT NOT NULL, last INT NOT NULL, lines INT NOT NULL, chained INT NOT NULL, head BLOB NOT NULL,
			opened INT NOT NULL, seen INT NOT NULL, stored INT NOT NULL, closed INT NOT NULL, gaps BLOB NOT NULL)`,
		`CREATE INDEX epoch_producer ON epoch (producer, opened)`,
		// Lines, byte for byte. id is the day of arrival << 32 plus a number, and
		// ascends in the order of commits.
		`CREATE TABLE block (
			id INT NOT NULL PRIMARY KEY, epoch INT NOT NULL, first INT NOT NULL, last INT NOT NULL,
			low INT NOT NULL, high INT NOT NULL, raw INT NOT NULL, chained INT NOT NULL,
			chain BLOB NOT NULL, tail BLOB NOT NULL, data BLOB NOT NULL) PARTITION`,
		`CREATE INDEX block_epoch ON block (epoch, last)`,
		// The index: segments and their parts.
		`CREATE TABLE segment (
			id INT NOT NULL PRIMARY KEY, rows INT NOT NULL, shapes INT NOT NULL, buckets INT NOT NULL,
			low INT NOT NULL, high INT NOT NULL, blow INT NOT NULL, bhigh INT NOT NULL, packed INT NOT NULL, size INT NOT NULL)`,
		`CREATE TABLE part (segment INT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (segment, name)) PARTITION`,
		// Lines whose other half has not come.
		`CREATE TABLE half (
			epoch TEXT NOT NULL, sequence INT NOT NULL, ending INT NOT NULL, producer TEXT NOT NULL, time INT NOT NULL, namespaces TEXT NOT NULL,
			block INT NOT NULL, line INT NOT NULL, json BLOB NOT NULL, PRIMARY KEY (epoch, sequence, ending))`,
		`CREATE INDEX half_block ON half (block, line)`,
		`CREATE INDEX half_time ON half (time, block, line)`,
		`CREATE TABLE checkpoint (number INT PRIMARY KEY, time INT NOT NULL, note BLOB NOT NULL, heads BLOB NOT NULL)`,
		`CREATE TABLE removal (
			number INT PRIMARY KEY, epoch TEXT NOT NULL, first INT NOT NULL, last INT NOT NULL,
			chain BLOB NOT NULL, tail BLOB NOT NULL, time INT NOT NULL, reason TEXT NOT NULL)`,
		`CREATE TABLE document (
			number INT PRIMARY KEY, digest TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
			time INT NOT NULL, record TEXT NOT NULL, body BLOB NOT NULL)`,
		`CREATE UNIQUE INDEX document_record ON document (record)`,
		`CREATE INDEX document_name ON document (kind, namespace, name, time)`,
		`CREATE INDEX document_digest ON document (digest)`,
		`CREATE TABLE bundle (version TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (version, digest))`,
		`CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL)`,
	}}
}

// tables that PostgreSQL partitions by day of arrival, with the column that
// begins with it.
func partitioned() map[string]string { return map[string]string{"block": "id", "part": "segment"} }

func (e *engine) ddl(q string) string {
	table := strings.Fields(q)[2]
	if !e.postgres {
		q = strings.ReplaceAll(q, " PARTITION", "")
		return strings.ReplaceAll(q, " INT ", " INTEGER ")
	}
	q = strings.ReplaceAll(q, " INT ", " BIGINT ")
	q = strings.ReplaceAll(q, " BLOB", " BYTEA")
	return strings.ReplaceAll(q, " PARTITION", " PARTITION BY RANGE ("+partitioned()[table]+")")
}

// version returns the version of the tables; 0 if there are none.
func (e *engine) version(ctx context.Context, t *tx) (int, error) {
	there := "SELECT count(*) FROM sqlite_master WHERE name = 'meta'"
	if e.postgres {
		there = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'meta' AND table_schema = current_schema()"
	}
	var n, version int
	if _, err := t.one(ctx, there, nil, &n); err != nil || n == 0 {
		return 0, err
	}
	_, err := t.one(ctx, "SELECT version FROM meta", nil, &version)
	return version, err
}

// migrate brings the tables to schemaVersion.
func (e *engine) migrate(ctx context.Context) error {
	return e.writing(ctx, func(t *tx) error {
		v, err := e.version(ctx, t)
		if err != nil {
			return notADatabase(err)
		}
		switch {
		case v > schemaVersion:
			return newer(v)
		case v > 0 && v < oldest:
			return older(v)
		case v == 0:
			if _, err := t.exec(ctx, "CREATE TABLE meta (version INTEGER NOT NULL)"); err != nil {
				return err
			}
			if _, err := t.exec(ctx, "INSERT INTO meta VALUES (0)"); err != nil {
				return err
			}
		}
		for _, step := range migrations()[max(v-oldest+1, 0):] {
			for _, q := range step {
				if _, err := t.ExecContext(ctx, e.ddl(q)); err != nil {
					return fmt.Errorf("migrate the tables: %w", err)
				}
			}
		}
		if v == schemaVersion {
			return nil
		}
		if err := t.leavePacked(ctx); err != nil {
			return err
		}
		_, err = t.exec(ctx, "UPDATE meta SET version = ?", schemaVersion)
		return err
	})
}

// leavePacked keeps PostgreSQL from trying to compress what is packed already.
func (t *tx) leavePacked(ctx context.Context) error {
	if !t.e.postgres {
		return nil
	}
	for table := range partitioned() {
		if _, err := t.ExecContext(ctx, "ALTER TABLE "+table+" ALTER COLUMN data SET STORAGE EXTERNAL"); err != nil {
			return fmt.Errorf("migrate the tables: %w", err)
		}
	}
	return nil
}

func older(v int) error {
	return fmt.Errorf("its tables have version %d, %w; this one reads %d and later: begin a new store (attache audit import takes what the spools still have)", v, ErrOlder, oldest)
}

func newer(v int) error {
	return fmt.Errorf("its tables have version %d, this program knows %d: use a newer one", v, schemaVersion)
}

// dayBits is how far the day stands to the left in the ids of blocks and
// segments.
const dayBits = 32

func dayOf(id int64) int64 { return id >> dayBits }

// makeDay makes PostgreSQL's partitions of a day.
func (t *tx) makeDay(ctx context.Context, day int64) error {
	if !t.e.postgres {
		return nil
	}
	for table := range partitioned() {
		part := dayTable(table, day)
		var there int
		if _, err := t.one(ctx, "SELECT count(*) FROM pg_inherits WHERE inhrelid = to_regclass(?) AND inhparent = to_regclass(?)", []any{part, table}, &there); err != nil {
			return fmt.Errorf("make the partition of day %d: %w", day, err)
		}
		if there > 0 {
			continue
		}
		for _, q := range []string{
			"CREATE TABLE IF NOT EXISTS " + part + " (LIKE " + table + " INCLUDING ALL)",
			// PARTITION OF would wait for whoever reads another day, and let all others wait.
			"ALTER TABLE " + table + " ATTACH PARTITION " + part + " FOR VALUES FROM (" + strconv.FormatInt(day<<dayBits, 10) + ") TO (" + strconv.FormatInt((day+1)<<dayBits, 10) + ")",
		} {
			if _, err := t.ExecContext(ctx, q); err != nil {
				return fmt.Errorf("make the partition of day %d: %w", day, err)
			}
		}
	}
	return nil
}

func dayTable(table string, day int64) string { return table + "_" + strconv.FormatInt(day, 10) }
