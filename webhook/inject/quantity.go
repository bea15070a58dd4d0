package inject

import (
	"encoding/json"

	amount "github.com/attache-dev/attache/internal/quantity"
)

// quantity is an amount in thousandths: of a core, of a byte.
type quantity int64

// parseQuantity reads Kubernetes' notation. Parts of a thousandth are rounded up.
func parseQuantity(s string) (quantity, error) {
	n, err := amount.Parse(s)
	return quantity(n), err
}

// anyQuantity reads a quantity of a pod, which may be a plain number.
func anyQuantity(v any) (quantity, error) {
	switch v := v.(type) {
	case string:
		return parseQuantity(v)
	case json.Number:
		return parseQuantity(v.String())
	}
	return 0, amount.Err
}

// String writes the canonical form: otherwise the pod comes back different from
// what we built.
func (q quantity) String() string { return amount.Format(int64(q)) }
