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
	until   uint64 // sequence of the last line, as the table says it
	lines   [][]byte
	chained bool
	chains  []chain.Hash // of each line, if chained
	low, hi int64        // times, microseconds
}

func (b *block) last() uint64 { return b.first + uint64(len(b.lines)) - 1 }

// head and tail return the chain values of the first and the last line.
func (b *block) head() chain.Hash { return b.chainOf(0) }
func (b *block) tail() chain.Hash { return b.chainOf(len(b.lines) - 1) }

func (b *block) chainOf(n int) chain.Hash {
	if !b.chained {
		return chain.Hash{}
	}
	return b.chains[n]
}

// line returns line n as it was appended.
func (b *block) line(n int) audit.Line {
	return audit.Line{Epoch: b.epoch, Sequence: b.first + uint64(n), JSON: b.lines[n], Chain: b.chainOf(n), Chained: b.chained} //nolint:gosec // an index
}

// all returns every line.
func (b *block) all() []audit.Line {
	l := make([]audit.Line, len(b.lines))
	for i := range l {
		l[i] = b.line(i)
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

// pack returns the data of a block: a count, the lengths, the chain values, the
// lines. The chain values could be computed from the first, but then a line that
// somebody changed could not be told from those behind it.
func (c *codec) pack(b *block) []byte {
	var raw []byte
	raw = binary.AppendUvarint(raw, uint64(len(b.lines)))
	for _, l := range b.lines {
		raw = binary.AppendUvarint(raw, uint64(len(l)))
	}
	for _, h := range b.chains {
		raw = append(raw, h[:]...)
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
	if b.chained {
		b.chains = make([]chain.Hash, len(b.lines))
		for i := range b.chains {
			copy(b.chains[i][:], r.bytes(len(b.chains[i])))
		}
	}
	for i, n := range sizes {
		b.lines[i] = r.bytes(n)
	}
	if r.err != nil || len(b.lines) == 0 || b.last() != b.until {
		return damaged("block %d ends early", b.id)
	}
	return nil
}
