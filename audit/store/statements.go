package store

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"sync"
)

// statements keeps SQLite's prepared statements: to parse one costs more than to
// run it. pgx keeps PostgreSQL's.
type statements struct {
	mu     sync.Mutex // guards what follows
	ready  map[string]*sql.Stmt
	wanted map[string]bool
}

// prepare prepares the statements that transactions wanted. It is called outside
// of transactions: SQLite's only writing connection cannot do both.
func (s *statements) prepare(ctx context.Context, db *sql.DB) {
	s.mu.Lock()
	l := slices.Collect(maps.Keys(s.wanted))
	s.wanted = nil
	s.mu.Unlock()
	for _, q := range l {
		p, err := db.PrepareContext(ctx, q)
		if err != nil {
			continue // who asks it will be told
		}
		s.mu.Lock()
		if s.ready == nil {
			s.ready = map[string]*sql.Stmt{}
		}
		if s.ready[q] == nil {
			s.ready[q], p = p, nil
		}
		s.mu.Unlock()
		if p != nil { // another one was as fast
			p.Close() //nolint:errcheck,gosec // nobody has it
		}
	}
}

// get returns a prepared statement; nil if there is none yet.
func (s *statements) get(q string) *sql.Stmt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ready[q]; p != nil {
		return p
	}
	if s.wanted == nil {
		s.wanted = map[string]bool{}
	}
	s.wanted[q] = true
	return nil
}

// keeps returns the statements that are kept of a database, if any are.
func (e *engine) keeps(ctx context.Context, db *sql.DB, s *statements) *statements {
	if e.postgres {
		return nil
	}
	s.prepare(ctx, db)
	return s
}
