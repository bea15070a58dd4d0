package store

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

const (
	// blockLines and blockBytes bound a block: what is unpacked to show one line.
	blockLines = 128
	blockBytes = 128 << 10
	// maxLine is the spool's own bound of a line.
	maxLine = 1 << 20
)

// block is successive lines of one epoch.
type block struct {
	id      int64
	epoch   string
	first   uint64
	lines   [][]byte
	chained bool
	chain   chain.Hash // of the first line
	tail    chain.Hash // of the last line
	low, hi int64      // times, microseconds
}

func (b *block) last() uint64 { return b.first + uint64(len(b.lines)) - 1 }

// line returns line n as it was appended; prev is the chain value of line n-1,
// and is not used for the first.
func (b *block) line(n int, prev chain.Hash) audit.Line {
	l := audit.Line{Epoch: b.epoch, Sequence: b.first + uint64(n), JSON: b.lines[n], Chained: b.chained} //nolint:gosec // an index
	switch {
	case !b.chained:
	case n == 0:
		l.Chain = b.chain
	default:
		l.Chain = chain.Next(prev, l.JSON)
	}
	return l
}

// all returns every line.
func (b *block) all() []audit.Line {
	l := make([]audit.Line, len(b.lines))
	var prev chain.Hash
	for i := range l {
		l[i] = b.line(i, prev)
		prev = l[i].Chain
	}
	return l
}

// codec packs blocks; it is safe for concurrent use.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(256<<10), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &codec{enc, dec}, nil
}

// pack returns the data of a block: a count, the lengths, the lines.
func (c *codec) pack(b *block) []byte {
	var raw []byte
	raw = binary.AppendUvarint(raw, uint64(len(b.lines)))
	for _, l := range b.lines {
		raw = binary.AppendUvarint(raw, uint64(len(l)))
	}
	for _, l := range b.lines {
		raw = append(raw, l...)
	}
	return c.enc.EncodeAll(raw, nil)
}

// unpack reads the lines of a block from its data.
func (c *codec) unpack(b *block, data []byte) error {
	raw, err := c.dec.DecodeAll(data, nil)
	if err != nil {
		return damaged("block %d: %v", b.id, err)
	}
	r := reader{b: raw}
	b.lines = make([][]byte, r.count(len(raw)))
	sizes := make([]int, len(b.lines))
	for i := range sizes {
		sizes[i] = r.count(len(raw))
	}
	for i, n := range sizes {
		b.lines[i] = r.bytes(n)
	}
	if r.err != nil || len(b.lines) == 0 {
		return damaged("block %d ends early", b.id)
	}
	return nil
}
