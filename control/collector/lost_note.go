package collector

import (
	"context"
	"encoding/json"
	"time"

	"github.com/attache-dev/attache/audit/store"
)

// lostNote is what was recorded of an epoch; it is kept in the store.
type lostNote struct {
	Producer store.Producer `json:"producer"`
	Epoch    string         `json:"epoch,omitempty"`
	Last     uint64         `json:"last"`
	Time     time.Time      `json:"time"`
}

// noteName is the store's name of what was recorded.
func noteName(of string) string { return "lost/" + of }

func (l *Lost) note(ctx context.Context, of string) (lostNote, bool, error) {
	var n lostNote
	text, err := l.Store.State(ctx, noteName(of))
	if err != nil || len(text) == 0 {
		return n, false, err
	}
	return n, json.Unmarshal(text, &n) == nil, nil
}

// keep makes the store remember what was recorded.
func (l *Lost) keep(ctx context.Context, key string, n lostNote) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return l.Store.PutState(ctx, noteName(key), text)
}
