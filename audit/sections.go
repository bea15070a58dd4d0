package audit

// SQL is one statement, or the opening of a connection, to a database.
type SQL struct {
	Engine string `json:"engine" trust:"v" max:"64"` // postgresql, mysql, redis
	// Session is the id of the record of the connection that the statement came
	// by; empty on that record itself.
	Session   string `json:"session,omitempty" trust:"v" max:"64"`
	Database  string `json:"database,omitempty" trust:"v" max:"256"`
	User      string `json:"user,omitempty" trust:"v" max:"256"` // at the database
	Operation string `json:"operation,omitempty" trust:"d" max:"64"`
	// Statement is the text with each literal replaced by ?, unless the
	// configuration says otherwise.
	Statement   string   `json:"statement,omitempty" trust:"v" max:"8192"`
	Fingerprint string   `json:"fingerprint,omitempty" trust:"d" max:"128"` // of the statement without literals
	Tables      []string `json:"tables,omitempty" trust:"d" max:"256" items:"32"`
	Rows        int64    `json:"rows,omitempty" trust:"v"`
	// Code is the database's own error code, such as the SQLSTATE.
	Code string `json:"code,omitempty" trust:"v" max:"64"`
	// Application is the application_name that the session has at the database,
	// with the credential's handle in it.
	Application string `json:"application,omitempty" trust:"v" max:"256"`
}

// SSH is a login, or one command, subsystem or forwarding of a session.
type SSH struct {
	// Session is the id of the record of the login; empty on that record itself.
	Session     string   `json:"session,omitempty" trust:"v" max:"64"`
	Operation   string   `json:"operation" trust:"v" max:"64"`           // login, exec, shell, subsystem, forward
	User        string   `json:"user,omitempty" trust:"v" max:"256"`     // at the server
	Command     string   `json:"command,omitempty" trust:"v" max:"8192"` // secrets are masked
	Subsystem   string   `json:"subsystem,omitempty" trust:"v" max:"64"`
	Forward     string   `json:"forward,omitempty" trust:"v" max:"1024"` // host:port behind the server
	KeyID       string   `json:"key_id,omitempty" trust:"v" max:"1024"`  // of the certificate; sshd logs it
	Serial      string   `json:"serial,omitempty" trust:"v" max:"64"`    // of the certificate; sshd logs it
	Fingerprint string   `json:"fingerprint,omitempty" trust:"v" max:"128"`
	Principals  []string `json:"principals,omitempty" trust:"v" max:"256" items:"16"`
	HostKey     string   `json:"host_key,omitempty" trust:"v" max:"128"`     // fingerprint of the server's key
	ExitStatus  string   `json:"exit_status,omitempty" trust:"v" max:"64"`   // a number, or signal:NAME
	ExitMessage string   `json:"exit_message,omitempty" trust:"c" max:"256"` // of exit-signal, RFC 4254 section 6.10
}

// Change is one change of a document that decides what agents may do, and who
// made it.
type Change struct {
	Kind      string     `json:"kind" trust:"v" max:"64"` // AccessPolicy, CredentialProvider, AttacheConfig, …
	Namespace string     `json:"namespace,omitempty" trust:"v" max:"256"`
	Name      string     `json:"name,omitempty" trust:"v" max:"256"`
	Operation string     `json:"operation" trust:"v" max:"64"` // create, update, delete, connect, load
	By        *Principal `json:"by,omitempty" trust:"v"`
	// VersionBefore and VersionAfter are digests as decision.version has them.
	VersionBefore string `json:"version_before,omitempty" trust:"d" max:"128"`
	VersionAfter  string `json:"version_after,omitempty" trust:"d" max:"128"`
	Diff          string `json:"diff,omitempty" trust:"d" max:"16384"` // unified
	Text          string `json:"text,omitempty" trust:"v" max:"65536"` // the document after the change
	// Beneficiary names the workload that gains by the change and is the one who
	// made it; empty otherwise.
	Beneficiary string `json:"beneficiary,omitempty" trust:"d" max:"2048"`
}

// Principal is who asked the API server, or the review page, for something.
type Principal struct {
	Username string   `json:"username" trust:"v" max:"512"`
	UID      string   `json:"uid,omitempty" trust:"v" max:"256"`
	Groups   []string `json:"groups,omitempty" trust:"v" max:"256" items:"32"`
}
