package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/crc32"
	"strconv"
)

// A line of the spool is
//
//	{json} TAB crc32c NEWLINE
//
// where crc32c is the CRC-32C (Castagnoli) of the JSON text, eight lower-case
// hex digits. JSON text never holds a raw TAB or NEWLINE, so that grep, cut -f1
// and jq work on segments, and a torn or altered line is known by itself.
const (
	crcDigits = 8
	trailer   = 1 + crcDigits + 1 // TAB, digits, NEWLINE
	// maxLine bounds what a reader accepts as one line. The longest line that
	// the bounds of Record allow is shorter.
	maxLine = 1 << 20
)

// errFrame is matched by every line that is not framed as written.
var errFrame = errors.New("line is damaged")

// checksum is CRC-32C, which hash/crc32 computes in hardware; the table is made
// once by that package.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// appendTrailer appends TAB, checksum and NEWLINE for the JSON in line[from:].
func appendTrailer(line []byte, from int) []byte {
	sum := checksum(line[from:])
	line = append(line, '\t')
	for shift := 28; shift >= 0; shift -= 4 {
		line = append(line, hexDigits[sum>>shift&0xf])
	}
	return append(line, '\n')
}

// unframe returns the JSON of a line (with its NEWLINE), or errFrame.
func unframe(line []byte) ([]byte, error) {
	n := len(line) - trailer
	if n < 2 || line[n] != '\t' || line[len(line)-1] != '\n' {
		return nil, errFrame
	}
	var sum uint32
	for _, c := range line[n+1 : n+1+crcDigits] {
		switch {
		case c >= '0' && c <= '9':
			sum = sum<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			sum = sum<<4 | uint32(c-'a'+10)
		default:
			return nil, errFrame
		}
	}
	if checksum(line[:n]) != sum {
		return nil, errFrame
	}
	return line[:n], nil
}

// head is what recovery and verification need of a line.
type head struct {
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
