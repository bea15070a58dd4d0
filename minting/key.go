package minting

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"reflect"
	"slices"
	"sync/atomic"
)

// keyVersion separates the keys of one encoding from those of the next.
const keyVersion = "attache-mint-1"

// Type tags of the canonical encoding.
const (
	tagString = 's'
	tagInt    = 'i'
	tagBool   = 'b'
	tagList   = 'l'
)

// keyField is one field of a struct as the encoding sees it.
type keyField struct {
	index int
	name  string
	tag   byte
	set   bool // order and repetition mean nothing
}

// keyPlan is worked out once. A field of a kind that the encoding cannot tell
// apart by value (a pointer, a function, a map) panics here, at the start of
// every program and test, so that it cannot be added silently.
var keyPlan = planOf(reflect.TypeFor[Request]())

// planOf lists the fields of struct type t, or panics.
func planOf(t reflect.Type) []keyField {
	plan := make([]keyField, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		k := keyField{index: i, name: f.Name, set: f.Tag.Get("key") == "set"}
		switch {
		case f.Type.Kind() == reflect.String:
			k.tag = tagString
		case f.Type.Kind() == reflect.Bool:
			k.tag = tagBool
		case f.Type.Kind() >= reflect.Int && f.Type.Kind() <= reflect.Int64:
			k.tag = tagInt
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.String:
			k.tag = tagList
		default:
			panic("minting: field " + f.Name + " of kind " + f.Type.Kind().String() + " has no canonical form; use a string, a list of strings, an integer or a bool")
		}
		plan = append(plan, k)
	}
	return plan
}

// Key is the canonical hash of the whole request, hex: two requests have one
// key only if every field says the same. Each field is written with its name,
// a type tag and its length, so that no two requests collide by concatenation.
func (r Request) Key() string {
	var space [1024]byte // most requests fit, and then nothing is allocated
	b := appendCanonical(space[:0], keyPlan, reflect.ValueOf(&r).Elem())
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// appendCanonical appends the encoding of struct v.
func appendCanonical(b []byte, plan []keyField, v reflect.Value) []byte {
	b = appendText(b, keyVersion)
	for _, k := range plan {
		b = appendText(b, k.name)
		b = append(b, k.tag)
		f := v.Field(k.index)
		switch k.tag {
		case tagString:
			b = appendText(b, f.String())
		case tagInt:
			b = binary.BigEndian.AppendUint64(b, uint64(f.Int())) //nolint:gosec // a bijection is all that is asked
		case tagBool:
			if f.Bool() {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		case tagList:
			b = appendList(b, f, k.set)
		}
	}
	return b
}

// appendList appends the number of items and the items.
func appendList(b []byte, f reflect.Value, set bool) []byte {
	n := f.Len()
	if !set || n < 2 {
		b = binary.AppendUvarint(b, uint64(n)) //nolint:gosec // a length
		for i := range n {
			b = appendText(b, f.Index(i).String())
		}
		return b
	}
	items := make([]string, n)
	for i := range n {
		items[i] = f.Index(i).String()
	}
	slices.Sort(items)
	items = slices.Compact(items)
	b = binary.AppendUvarint(b, uint64(len(items)))
	for _, s := range items {
		b = appendText(b, s)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// keyMemo remembers the last key. An agent's calls in a row ask for the same
// credential, and to compare costs a tenth of a hash. The comparison walks the
// same plan as the hash, so it cannot forget a field either.
type keyMemo struct{ last atomic.Pointer[keyed] }

type keyed struct {
	r   Request
	key string
}

// of returns r's key.
func (m *keyMemo) of(r *Request) string {
	v := reflect.ValueOf(r).Elem()
	if l := m.last.Load(); l != nil && sameFields(keyPlan, v, reflect.ValueOf(&l.r).Elem()) {
		return l.key
	}
	l := &keyed{r: *r, key: r.Key()}
	c := reflect.ValueOf(&l.r).Elem()
	for _, k := range keyPlan {
		if k.tag == tagList { // the caller's own may change later
			f := c.Field(k.index)
			f.Set(reflect.AppendSlice(reflect.MakeSlice(f.Type(), 0, f.Len()), f))
		}
	}
	m.last.Store(l)
	return l.key
}

// sameFields reports whether two requests are equal, lists in the same order.
func sameFields(plan []keyField, a, b reflect.Value) bool {
	for _, k := range plan {
		fa, fb := a.Field(k.index), b.Field(k.index)
		switch k.tag {
		case tagString:
			if fa.String() != fb.String() {
				return false
			}
		case tagInt:
			if fa.Int() != fb.Int() {
				return false
			}
		case tagBool:
			if fa.Bool() != fb.Bool() {
				return false
			}
		case tagList:
			if fa.Len() != fb.Len() {
				return false
			}
			for i := range fa.Len() {
				if fa.Index(i).String() != fb.Index(i).String() {
					return false
				}
			}
		default:
			return false
		}
	}
	return true
}
