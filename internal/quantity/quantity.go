// Package quantity reads Kubernetes' amounts without its libraries, which the
// programs that read our documents do not link.
package quantity

import (
	"errors"
	"math/big"
	"strconv"
	"strings"
)

// Err is what Parse returns for all that is no amount, or one below zero.
var Err = errors.New("is not a quantity such as 100m or 64Mi")

var (
	binary  = []string{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	decimal = []string{"k", "M", "G", "T", "P", "E"}
)

// Parse reads, in thousandths, Kubernetes' notation: a decimal number and a suffix,
// k8s.io/apimachinery/pkg/api/resource. Parts of a thousandth are rounded up.
func Parse(s string) (int64, error) {
	end := strings.LastIndexAny(s, "0123456789.") + 1
	num, suffix := s[:end], s[end:]
	var exponent string
	if i := strings.IndexAny(num, "eE"); i >= 0 && suffix == "" {
		num, exponent = num[:i], num[i+1:]
	}
	if len(num) > 32 || num == "" || strings.Trim(num, "0123456789.+") != "" || strings.LastIndex(num, "+") > 0 {
		return 0, Err // amounts below zero are none
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, Err
	}
	scale, ok := factor(suffix, exponent)
	if !ok {
		return 0, Err
	}
	r.Mul(r, scale)
	q, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	if !q.IsInt64() {
		return 0, Err
	}
	return q.Int64(), nil
}

// factor is how many thousandths a suffix or an exponent stands for.
func factor(suffix, exponent string) (*big.Rat, bool) {
	one := big.NewRat(1000, 1)
	power := func(base int64, n int) *big.Rat {
		p := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(n)), nil)
		return new(big.Rat).Mul(one, new(big.Rat).SetInt(p))
	}
	if exponent != "" {
		n, err := strconv.Atoi(exponent)
		if err != nil || n < -9 || n > 18 {
			return nil, false
		}
		if n < 0 {
			return new(big.Rat).Quo(big.NewRat(1000000, 1), power(10, -n)), true
		}
		return power(10, n), true
	}
	switch suffix {
	case "":
		return one, true
	case "m":
		return big.NewRat(1, 1), true
	case "u":
		return big.NewRat(1, 1000), true
	case "n":
		return big.NewRat(1, 1000000), true
	}
	for i := range binary {
		if suffix == binary[i] {
			return power(1024, i+1), true
		}
		if suffix == decimal[i] {
			return power(1000, i+1), true
		}
	}
	return nil, false
}

// Format writes an amount in thousandths, not below zero, in the canonical form,
// which the API server would make of it.
func Format(q int64) string {
	if q%1000 != 0 {
		return strconv.FormatInt(q, 10) + "m"
	}
	n := q / 1000
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
