// Package awsscope reads what an AWS request asks for and writes the IAM
// session policy that allows that and no more.
//
// Recognise names the service, operation, IAM actions and resource ARNs of a
// request, from the very bytes that will be signed. Derive intersects them with
// a rule's static policy and prints a session policy. Match is the endpoint
// table both start from.
//
// The package is pure: no clock, no network, no file at run time. What it does
// not understand it refuses; it never guesses in the direction of more. Which
// operation means which action and resource is data: data/operations.txt,
// generated from botocore's models and AWS's service authorisation reference,
// and data/rules.txt, written and reviewed by hand.
package awsscope

import (
	"errors"
	"fmt"
	"net/http"
)

//go:generate sh -c "python3 gen/gen.py > data/operations.new && mv data/operations.new data/operations.txt"

// Errors that Recognise and Derive return, wrapped with what was wrong.
var (
	// ErrUnsupported: a request of a kind that no scope is derived for.
	ErrUnsupported = errors.New("not supported")
	// ErrMismatch: the signature claims another service or region than the host serves.
	ErrMismatch = errors.New("signature and host disagree")
	// ErrAmbiguous: the request can be read in two ways.
	ErrAmbiguous = errors.New("ambiguous request")
	// ErrMalformed: the request cannot be read at all.
	ErrMalformed = errors.New("malformed request")
	// ErrBodyNeeded: the operation or its resource is in the body, and Body is not whole.
	ErrBodyNeeded = errors.New("the whole body is needed")
	// ErrNotAllowed: the static policy does not allow the request.
	ErrNotAllowed = errors.New("not allowed by the static policy")
	// ErrPolicy: the static policy has something that is not understood.
	ErrPolicy = errors.New("static policy not understood")
	// ErrTooLarge: the session policy is over the limit of 2,048 characters.
	ErrTooLarge = errors.New("session policy too large")
	// ErrEscape: a value needs an escape that the server does not honour.
	ErrEscape = errors.New("value cannot be escaped for this server")
)

// A Request is one HTTP request to an AWS endpoint, before it is signed.
type Request struct {
	Method   string
	Host     string // verified destination; a port other than 443 only for custom endpoints
	RawPath  string // as on the wire, before decoding
	RawQuery string
	Header   http.Header

	// Body is the body, or nil. BodyComplete says that Body is all of it; a
	// call whose meaning is in the body is refused otherwise.
	Body         []byte
	BodyComplete bool

	// What the agent's own signature claims. Both are checked against the host.
	ClaimedService string
	ClaimedRegion  string

	// Account and Partition are those of the role that will be assumed. Account
	// stands in ARNs whose account the request does not name.
	Account   string
	Partition string

	// Endpoints are custom endpoints; they go before the built-in table.
	Endpoints []Endpoint

	// PartitionKeys names the partition key attribute of DynamoDB tables. With
	// it dynamodb:LeadingKeys is derived also where the request alone does not
	// tell which attribute that is.
	PartitionKeys map[string]string

	// Cleartext says that the request travels unencrypted.
	Cleartext bool

	// NoACLs says that the server has no ACLs: it ignores fields that set one
	// with an object, and refuses policies that name their actions (MinIO).
	NoACLs bool
}

// An Endpoint is a host that the built-in table does not know.
type Endpoint struct {
	Host        string // "minio.example:9000"; with the port when it is not 443
	Service     string // signing name, such as s3
	Region      string
	VirtualHost bool // BUCKET.Host is served too (S3 only)
}

// ScopeKind says how narrow the derived scope is.
type ScopeKind string

const (
	// ScopeRequest: action and resource are those of the request.
	ScopeRequest ScopeKind = "request"
	// ScopeActionOnly: the action is that of the request; the resource is the
	// narrowest pattern known for the action.
	ScopeActionOnly ScopeKind = "action-only"
)

// A Call is what a request asks AWS to do.
type Call struct {
	Partition string
	Service   string // IAM prefix, such as states
	Signing   string // signing name
	Region    string
	Account   string
	Protocol  string // rest-xml, rest-json, json, query, rpc-v2-cbor
	Operation string
	Access    []Access
	ScopeKind ScopeKind
	Cleartext bool // as in the request

	// HandsOutCredentials: the answer carries a credential or a secret.
	HandsOutCredentials bool
	// Secrets are the members or elements of that answer that are secret; nil
	// where they are not known.
	Secrets []string

	// Objects are the S3 objects that the call names elsewhere than in its path:
	// the source of a copy, the keys of a DeleteObjects.
	Objects []Object

	// Facts are the names found: bucket, key, table and so on, as the request
	// gave them, for the record.
	Facts map[string]string
}

// An Object is an S3 object that a call would read or delete.
type Object struct {
	Method string // by which it would be asked for on its own: GET or DELETE
	Bucket string // empty: the call's own
	Key    string
}

// An Access is one action on resources, with the conditions that narrow it.
type Access struct {
	Action     string
	Resources  []Pattern
	Conditions []Condition
}

// A Condition is one line of an IAM condition block. Values are policy text:
// those of StringLike have `*`, `?` and `$` escaped, those of StringEquals hold
// no `$`.
type Condition struct {
	Operator string
	Key      string
	Values   []string
}

func fail(kind error, format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{kind}, args...)...)
}
