package audit

// Bounds of strings in bytes and of lists in elements. The tags "max" and
// "items" of the fields repeat them; a test holds both together.
const (
	maxWord     = 64  // ids, kinds, verdicts, codes
	maxDigest   = 128 // digests, names of headers and parameters
	maxName     = 256
	maxEmail    = 320 // RFC 5321 section 4.5.3.1: 64 + 1 + 255
	maxPolicy   = 512
	maxText     = 1024
	maxURI      = 2048 // SPIFFE ID section 2.3: at most 2048 bytes
	maxCommand  = 8192 // a statement, a command
	maxDiff     = 16384
	maxDocument = 65536
	maxActors   = 8
	maxFew      = 16
	maxMany     = 32
)
