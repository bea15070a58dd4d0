package store

import (
	"context"
)

// ImportSpool stores what is new in a spool's folder since the last import.
func (d *DB) ImportSpool(ctx context.Context, dir string) (Imported, error) {
	return Imported{}, nil
}
