package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/crc32"
	"strconv"

	"github.com/attache-dev/attache/audit/chain"
)

// A line of the spool is
//
//	{json} TAB crc32c TAB chain NEWLINE
//
// where crc32c is the CRC-32C (Castagnoli) of the JSON text, eight lower-case
// hex digits, and chain the hash over the JSON text and all lines of the epoch
// before it, in base64url without padding (package chain). Lines of before the
// chain end with the checksum. JSON text never holds a raw TAB or NEWLINE, so
// that grep, cut -f1 and jq work on segments, and a torn or altered line is
// known by itself.
const (
	crcDigits    = 8
	checkTrailer = 1 + crcDigits                         // TAB, digits
	trailer      = checkTrailer + 1 + chain.TextSize + 1 // and TAB, chain, NEWLINE
	// maxLine bounds what a reader accepts as one line. The longest line that
	// the bounds of Record allow is shorter.
	maxLine = 1 << 20
)

// errFrame is matched by every line that is not framed as written.
var errFrame = errors.New("line is damaged")

// checksum is CRC-32C, which hash/crc32 computes in hardware; the table is made
// once by that package.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// appendChained appends TAB, checksum, TAB, chain and NEWLINE for the JSON in
// line[from:].
func appendChained(line []byte, from int, c chain.Hash) []byte {
	line = append(appendChecksum(line, from), '\t')
	return append(c.Append(line), '\n')
}

// appendTrailer is appendChained of before the chain.
func appendTrailer(line []byte, from int) []byte {
	return append(appendChecksum(line, from), '\n')
}

// appendChecksum appends TAB and checksum for the JSON in line[from:].
func appendChecksum(line []byte, from int) []byte {
	sum := checksum(line[from:])
	line = append(line, '\t')
	for shift := 28; shift >= 0; shift -= 4 {
		line = append(line, hexDigits[sum>>shift&0xf])
	}
	return line
}

// framed is a line taken apart.
type framed struct {
	json    []byte
	chain   chain.Hash
	chained bool // it has one
}

// unframe takes a line (with its NEWLINE) apart, or answers errFrame.
func unframe(line []byte) (framed, error) {
	var f framed
	n := len(line) - 1
	if n < 0 || line[n] != '\n' {
		return f, errFrame
	}
	line = line[:n]
	if n := len(line) - 1 - chain.TextSize; n > checkTrailer && line[n] == '\t' && line[n-checkTrailer] == '\t' {
		c, err := chain.ParseHash(line[n+1:])
		if err != nil {
			return f, errFrame
		}
		f.chain, f.chained, line = c, true, line[:n]
	}
	n = len(line) - checkTrailer
	if n < 2 || line[n] != '\t' {
		return f, errFrame
	}
	var sum uint32
	for _, c := range line[n+1:] {
		switch {
		case c >= '0' && c <= '9':
			sum = sum<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			sum = sum<<4 | uint32(c-'a'+10)
		default:
			return f, errFrame
		}
	}
	if checksum(line[:n]) != sum {
		return f, errFrame
	}
	f.json = line[:n]
	return f, nil
}

// head is what recovery and verification need of a line.
type head struct {
	Schema        string `json:"schema"`
	Type          string `json:"type"`
	ID            string `json:"id"`
	Epoch         string `json:"epoch"`
	Sequence      uint64 `json:"sequence"`
	BeginEpoch    string `json:"begin_epoch"`
	BeginSequence uint64 `json:"begin_sequence"`
}

// parseHead reads the head of a line's JSON. Lines written by this package take
// the fast way; any other JSON object is parsed.
func parseHead(b []byte) (head, error) {
	if h, ok := fastHead(b); ok {
		return h, nil
	}
	var h head
	if err := json.Unmarshal(b, &h); err != nil {
		return head{}, errFrame
	}
	return h, nil
}

func fastHead(b []byte) (h head, ok bool) {
	if b, ok = bytes.CutPrefix(b, []byte(`{"schema":"`+SchemaVersion+`","type":"`)); !ok {
		return h, false
	}
	h.Schema = SchemaVersion
	if h.Type, b, ok = until(b, `","id":"`); !ok {
		return h, false
	}
	if h.ID, b, ok = until(b, `","epoch":"`); !ok {
		return h, false
	}
	if h.Epoch, b, ok = until(b, `","sequence":`); !ok {
		return h, false
	}
	if h.Sequence, b, ok = number(b); !ok {
		return h, false
	}
	if rest, has := bytes.CutPrefix(b, []byte(`,"begin_epoch":"`)); has {
		if h.BeginEpoch, b, ok = until(rest, `"`); !ok {
			return h, false
		}
	}
	if rest, has := bytes.CutPrefix(b, []byte(`,"begin_sequence":`)); has {
		if h.BeginSequence, b, ok = number(rest); !ok {
			return h, false
		}
	}
	return h, bytes.HasPrefix(b, []byte(`,"time":`))
}

// until returns the text before sep if it is short and plain.
func until(b []byte, sep string) (string, []byte, bool) {
	i := bytes.Index(b[:min(len(b), maxWord+len(sep))], []byte(sep))
	if i < 0 || bytes.IndexByte(b[:i], '\\') >= 0 || bytes.IndexByte(b[:i], '"') >= 0 {
		return "", nil, false
	}
	return string(b[:i]), b[i+len(sep):], true
}

func number(b []byte) (uint64, []byte, bool) {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(b[:n]), 10, 64)
	return v, b[n:], err == nil
}

// decode parses a line's JSON into a Record.
func decode(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, errFrame
	}
	return r, nil
}
