// Package sigv4 replaces the signature that an AWS client put on a request
// with one made from other credentials.
//
// The agent's SDK signs with placeholder keys, so each request says which
// service, region, payload mode and headers it meant to sign. For one request
// the caller does, in this order:
//
//  1. [Parse]: read that claim, strictly; [Claim.Check] it against the clock;
//  2. compare access key id, service and region with what the run issued and
//     with the verified host (the caller's business: this package knows no
//     endpoint);
//  3. [Strip]: take every trace of the signature off;
//  4. [Signer.Sign]: sign anew, as headers, with [Claim.Params].
//
// Headers are signed by aws-sdk-go-v2's v4 signer. What that module does not
// export is here: the chunk signatures of aws-chunked bodies and SigV4a
// (docs/adr/0008-aws-chunked-and-sigv4a.md). Chunked bodies are re-signed as
// they stream, in constant memory. The agent's own chunk signatures are not
// verified, only their shape: it is the caller that knows who sent the request.
//
// Event streams (application/vnd.amazon.eventstream) carry a signature in each
// message and are refused with [ErrEventStream].
package sigv4
