// Package process attributes a local connection to the process that opened
// it: the [identity.Attestor] of attache run.
//
// A TCP connection is looked up by an exact sock_diag query for the peer's
// end, which names the socket's user, inode and cgroup; the process is the one
// in the run's tree that holds that inode. A Unix connection names its peer
// itself. Everything is asked once a connection; nothing of it is cached but
// the digests of executables.
//
// Refused, with an error that matches [identity.ErrUnattested]: a socket that
// is gone before the look-up, one that was made outside the run's cgroup, and
// one that no process in the tree holds, whoever else of the same user does.
package process

import "github.com/attache-dev/attache/identity"

// Options describe the run whose processes are callers.
type Options struct {
	// Workload is who every caller is attested to be. Required.
	Workload *identity.Workload
	// CgroupDir is the folder of the run's cgroup (version 2). If empty,
	// the run is every descendant of Parent, which must be a child subreaper.
	CgroupDir string
	// Parent is the process that started the run; 0 means this process.
	Parent int
}
