//go:build race

package store_test

// raced says that the race detector is on: SQLite, which is Go here, is then
// ten times slower.
const raced = true
