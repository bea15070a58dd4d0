package awsrole

import (
	"fmt"
	"strings"
	"time"
)

// LeastSession is the shortest that STS gives a session of a role for (AWS STS API
// reference, AssumeRoleWithWebIdentity, DurationSeconds).
const LeastSession = 15 * time.Minute

// ARN is the name of an IAM role: arn:PARTITION:iam::ACCOUNT:role/PATH/NAME.
type ARN struct {
	Partition string // aws, aws-cn, aws-us-gov … or minio
	Account   string // twelve digits; empty for minio, which has no accounts
	Path      string // "/" or "/division/team/"
	Name      string
}

// Bounds of the parts (IAM API reference: roleNameType, pathType).
const (
	maxName = 64
	maxPath = 512
)

// Parse reads the ARN of a role. MinIO's form, which has a region and no
// account (arn:minio:iam:REGION::role/NAME), is one too.
func Parse(arn string) (ARN, error) {
	bad := func(why string) (ARN, error) {
		return ARN{}, fmt.Errorf("%q is no ARN of an IAM role (arn:aws:iam::ACCOUNT:role/NAME): %s", arn, why)
	}
	if len(arn) > maxTemplate {
		return ARN{}, fmt.Errorf("an ARN of %d bytes; at most %d are possible", len(arn), maxTemplate)
	}
	part := strings.SplitN(arn, ":", 6)
	if len(part) != 6 || part[0] != "arn" || part[2] != "iam" {
		return bad("it has other parts")
	}
	a := ARN{Partition: part[1], Account: part[4]}
	minio := a.Partition == "minio"
	switch {
	case !minio && a.Partition != "aws" && !strings.HasPrefix(a.Partition, "aws-") || !only(a.Partition, inLabel):
		return bad("its partition is unknown")
	case minio && (a.Account != "" || !only(part[3], inLabel)):
		return bad("MinIO's have a region and no account")
	case !minio && part[3] != "":
		return bad("IAM has no regions")
	case !minio && (len(a.Account) != 12 || !only(a.Account, digit)):
		return bad("its account is not twelve digits")
	}
	rest, ok := strings.CutPrefix(part[5], "role/")
	if !ok {
		return bad("it names no role")
	}
	i := strings.LastIndexByte(rest, '/') + 1
	a.Path, a.Name = "/"+rest[:i], rest[i:]
	switch {
	case a.Name == "" || len(a.Name) > maxName || !only(a.Name, inName):
		return bad("a role's name is 1 to 64 letters, digits and _+=,.@-")
	case len(a.Path) > maxPath || !only(a.Path, inPath):
		return bad("its path has a character that no path has")
	}
	return a, nil
}

// IsMinIO reports whether arn, or a template of one, names a role of MinIO.
func IsMinIO(arn string) bool { return strings.HasPrefix(arn, "arn:minio:") }

// String is the ARN's text. That of a MinIO role lacks its region.
func (a ARN) String() string {
	return "arn:" + a.Partition + ":iam::" + a.Account + ":role" + a.Path + a.Name
}

func only(s string, legal func(rune) bool) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !legal(r) }) < 0
}

func digit(r rune) bool { return r >= '0' && r <= '9' }

func inLabel(r rune) bool { return r >= 'a' && r <= 'z' || digit(r) || r == '-' }

// inPath: IAM allows any visible ASCII; wildcards and policy variables are
// left out, since ARNs are compared in policies.
func inPath(r rune) bool { return r > ' ' && r < 0x7f && !strings.ContainsRune(`*?$"\`, r) }
