// Package guard keeps credentials out of answers.
//
// Two nets lie behind [Response]. Credentials that an upstream issues (tokens
// in a JSON or form body, session cookies, signed URLs) are sealed: the
// [Vault] keeps the value and the agent gets a handle that opens only for the
// same workload, task and host ([Vault.Unseal]). The credential that was
// injected, should the upstream repeat it, is found by [Patterns] in headers,
// body and trailers, in the encodings that servers use when they echo, and is
// masked, or else the stream is cut with [ErrLeak].
//
// The echo guard is a net for accidents, not a boundary: an upstream that
// wants to tell the agent its credential can always encode it in a way that
// nobody looks for. The boundary is where the credential may be sent at all.
package guard
