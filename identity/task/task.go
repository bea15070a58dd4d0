// Package task keeps the pieces of work that a workload does, perhaps for a
// human, and proves who that human is.
//
// A task is opened with a purpose and, for a human, with that human's OpenID
// token ([Verifier]); it ends at the token's end at the latest. Its id is no
// secret: a [Store] honours it only for the workload and run it was opened
// for. An orchestrator outside the agent's reach opens tasks through a
// [Server] on a Unix socket, with a [Client].
package task

import (
	"errors"
	"fmt"
)

// Code says in one word why a task was refused. Codes are stable: they stand
// in answers and records.
type Code string

// The codes.
const (
	CodeInvalid       Code = "invalid_request" // the request itself is wrong
	CodeMalformed     Code = "malformed_token"
	CodeUnknownIssuer Code = "unknown_issuer"
	CodeSignature     Code = "bad_signature"
	CodeExpired       Code = "expired"
	CodeNotYetValid   Code = "not_yet_valid"
	CodeStale         Code = "stale" // issued too long ago
	CodeAudience      Code = "wrong_audience"
	CodeBinding       Code = "not_for_this_workload"
	CodeReplayed      Code = "replayed"
	CodeUnavailable   Code = "issuer_unavailable"
	CodeState         Code = "state_unavailable" // a used token cannot be remembered
	CodeLimit         Code = "too_many_tasks"
	CodeNotFound      Code = "no_such_task"
	CodeForbidden     Code = "forbidden"
	CodeClosed        Code = "run_ended"
)

// Error is a refusal. It never holds a token. Text is meant for whoever asked;
// Unwrap gives the cause, for logs.
type Error struct {
	Code Code
	Text string
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return "task: " + e.Text }

// Unwrap returns the cause, if there is one.
func (e *Error) Unwrap() error { return e.Err }

func refuse(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Text: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of a refusal, or "" if err is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}
