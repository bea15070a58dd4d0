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

// sample is what lines look like. It is the dictionary of every block: a block
// of one or two lines, as a quiet producer ships them, packs three times better
// with it. It can never be changed, only added to under another sampleID.
const (
	sampleID = 0x61750001
	sample   = `"change":{"kind":"AccessPolicy","namespace":"","name":"","operation":"update","by":{"username":"system:serviceaccount:","groups":["system:authenticated"]},"version_before":"sha256:","version_after":"sha256:","diff":"","text":""}` +
		`{"schema":"attache.audit/v1","type":"heartbeat","id":"rec_","epoch":"","sequence":1,"time":"2026-01-01T00:00:00Z","event":{"name":"credential.minted","fields":{"handle":"cred_","provider":"","task":"","purpose":"","namespace":"","version":"sha256:","producer":"","producer_kind":"sidecar"}}}` +
		`{"schema":"attache.audit/v1","type":"end","id":"rec_","epoch":"","sequence":17,"time":"2026-01-01T00:00:00.000000Z","steps":{"attested_us":180,"decided_us":240,"ended_us":420},"decision":{"verdict":"deny","policy":"","rule":"","version":"sha256:","reason":"no rule allows ","code":"policy_denied"},"result":{"outcome":"denied","status":403,"error_kind":"upstream_timeout"}}` +
		`{"schema":"attache.audit/v1","type":"begin","id":"rec_","epoch":"","sequence":16,"time":"2026-01-01T00:00:00.000000Z","steps":{"attested_us":180,"decided_us":240,"begun_us":330},` +
		`"workload":{"id":"spiffe://cluster.local/ns/default/sa/agent","namespace":"default","service_account":"agent","labels":{"app":"","app.kubernetes.io/name":"","pod-template-hash":""},"node":"","posture_digest":"","run_id":""},` +
		`"process":{"pid":42,"uid":1000,"exe":"/usr/bin/python3","digest":"sha256:"},"owner":"","owner_source":"namespace","human":{"subject":"","issuer":"https://login.","email":"@example.com"},"task":{"id":"","purpose":"","opened_by":"launcher"},` +
		`"request":{"door":"transparent","scheme":"https","host":"api.example.com","port":443,"address":":443","method":"GET","path":"/v1/","path_template":"/v1/{id}","query_keys":["page"],"protocol":"http","http_version":"1.1","user_agent":"python-requests/2.32.3","trace_id":"","removed":["authorization"]},` +
		`"decision":{"verdict":"inject","policy":"","rule":"read","version":"sha256:","reason":"rule read allows GET"},"credential":{"handle":"cred_","provider":"","kind":"aws-session","scope_asked":["read"],"scope_granted":["read"],"scope_source":"static","expires":"2026-01-01T00:05:00Z","ttl_s":300,"cached":true,` +
		`"aws":{"service":"s3","operation":"GetObject","region":"eu-west-1","account":"111122223333","actions":["s3:GetObject"],"resources":["arn:aws:s3:::"],"scope":"request"}}}` +
		`{"schema":"attache.audit/v1","type":"end","id":"rec_","epoch":"","sequence":18,"begin_epoch":"","begin_sequence":16,"time":"2026-01-01T00:00:00.000000Z","steps":{"minted_us":310,"injected_us":320,"first_byte_us":24100,"ended_us":25300},"result":{"outcome":"ok","status":200,"bytes_up":120,"bytes_down":4096,"upstream_request_id":""}}`
)

// codec packs blocks; it is safe for concurrent use.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(256<<10), zstd.WithEncoderCRC(true), zstd.WithEncoderDictRaw(sampleID, []byte(sample)))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderDictRaw(sampleID, []byte(sample)))
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
