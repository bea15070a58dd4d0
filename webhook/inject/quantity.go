package inject

import (
	"encoding/json"
	"strconv"

	amount "github.com/attache-dev/attache/internal/quantity"
)

// quantity is an amount in thousandths: of a core, of a byte.
type quantity int64

var (
	binary  = []string{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	decimal = []string{"k", "M", "G", "T", "P", "E"}
)

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

// String writes the canonical form, which the API server would make of it:
// otherwise the pod comes back different from what we built.
func (q quantity) String() string {
	if q%1000 != 0 {
		return strconv.FormatInt(int64(q), 10) + "m"
	}
	n := int64(q) / 1000
	base, suffixes := int64(1000), decimal
	if n != 0 && n%1024 == 0 {
		base, suffixes = 1024, binary
	}
	suffix := ""
	for _, s := range suffixes {
		if n == 0 || n%base != 0 {
			break
		}
		n, suffix = n/base, s
	}
	return strconv.FormatInt(n, 10) + suffix
}
