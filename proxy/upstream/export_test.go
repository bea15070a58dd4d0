package upstream

// Internals that are tested by themselves.
var (
	ParentAddress = parentAddress // where a parent proxy is dialled
	Race          = race
	Interleave    = interleave
)

// AttemptDelay is between the beginnings of two attempts.
const AttemptDelay = attemptDelay
