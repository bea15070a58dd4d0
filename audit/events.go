package audit

// Event is something that is not a request.
type Event struct {
	Name   string            `json:"name" trust:"v" max:"128"` // one of the names below
	Fields map[string]string `json:"fields,omitempty" trust:"v" max:"2048" items:"32"`
}

// Names of events. docs/audit-events.md says which fields each has.
const (
	// Tasks and credentials, of a sidecar or of attache run. A test holds them
	// equal to the names that identity/task and minting use.
	EventTaskOpened        = "task.opened"
	EventTaskClosed        = "task.closed"
	EventTaskRefused       = "task.refused"
	EventCredentialMinted  = "credential.minted"
	EventCredentialRevoked = "credential.revoked"
	EventBrokerDenied      = "broker.denied" // the broker did not give a credential
	EventRevocation        = "revocation"    // an order to revoke arrived

	// Policy in force, of a sidecar or of attache run.
	EventPolicyLoaded   = "policy.loaded"
	EventPolicyRejected = "policy.rejected"

	// Changes of documents: Record.Change says what, and who.
	EventPolicyChanged    = "policy.changed"
	EventProviderChanged  = "provider.changed"
	EventConfigChanged    = "config.changed"
	EventChangeRequested  = "change.requested" // at admission; the change may still fail
	EventNamespaceChanged = "namespace.changed"
	EventPolicyBundle     = "policy.bundle" // fields version, documents: what a policy version consists of

	// Admission of pods.
	EventInjectionDone     = "injection.done"
	EventInjectionSkipped  = "injection.skipped"
	EventInjectionOptedOut = "injection.opted_out"
	EventInjectionDenied   = "injection.denied"
	EventGuardDenied       = "guard.denied"

	// Keys of the issuers.
	EventKeyCreated = "key.created"
	EventKeyRotated = "key.rotated"
	EventKeyRetired = "key.retired"

	// Identity documents of the control plane.
	EventIdentityIssued = "identity.issued"
	EventIdentityDenied = "identity.denied"

	// People at the review page.
	EventLoginOK        = "login.ok"
	EventLoginFailed    = "login.failed"
	EventLogout         = "logout"
	EventAuditQuery     = "audit.query"
	EventAuditExport    = "audit.export"
	EventRevokeOrdered  = "revoke.ordered"  // somebody asked for a revocation
	EventAccessRejected = "access.rejected" // logged in, and not entitled

	// Producers and the chain, as the collector sees them.
	EventProducerLost     = "producer.lost"     // gone without epoch.close
	EventProducerReturned = "producer.returned" // lines came of a producer given up for lost
	EventProducerGap      = "producer.gap"      // sequence numbers are missing
	EventProducerForged   = "producer.forged"   // another line with a known sequence, or a broken chain
	EventProducerRejected = "producer.rejected" // a peer wrote in another's name
	EventCheckpointMade   = "checkpoint.made"   // over all heads
	EventCheckpointFailed = "checkpoint.failed" // a sink outside did not take it
	EventShipRejected     = "ship.rejected"     // a sink refused lines for good; they are set aside
	EventRetained         = "retention.dropped" // lines older than the retention are gone

	// The spool itself.
	EventDropped = "spool.dropped"  // a segment was deleted to make room
	EventRemoved = "spool.removed"  // somebody else took a segment away
	EventTailCut = "spool.tail_cut" // a torn tail was found and cut
)
