package awsscope

import (
	"net"
	"slices"
	"strings"
)

// A Target is what a host serves.
type Target struct {
	Partition string
	Endpoint  string // endpoint prefix of the service, such as api.ecr
	Region    string // empty: any region of the partition
	DualStack bool
	FIPS      bool
	Custom    bool

	Bucket      string // S3, virtual-hosted
	AccessPoint string // S3
	Account     string // in the host: access points, account-based endpoints
	MultiRegion bool   // S3 multi-Region access point
}

// globalHosts are hosts without a region, and the region they are signed for.
func globalHosts(host string) (endpoint, region string) {
	switch host {
	case "iam.amazonaws.com", "sts.amazonaws.com", "route53.amazonaws.com", "cloudfront.amazonaws.com",
		"budgets.amazonaws.com", "waf.amazonaws.com", "savingsplans.amazonaws.com":
		return strings.TrimSuffix(host, ".amazonaws.com"), "us-east-1"
	case "iam.us-gov.amazonaws.com", "route53.us-gov.amazonaws.com":
		return strings.TrimSuffix(host, ".us-gov.amazonaws.com"), "us-gov-west-1"
	case "global.health.amazonaws.com":
		return "health", "us-east-1"
	case "queue.amazonaws.com":
		return "sqs", "us-east-1"
	case "route53.amazonaws.com.cn":
		return "route53", "cn-northwest-1"
	case "budgets.amazonaws.com.cn":
		return "budgets", "cn-northwest-1"
	}
	return "", ""
}

// partitionOf returns the partition of a region, or "" if it is no region of a
// partition that is known.
func partitionOf(region string) string {
	p := strings.Split(region, "-")
	gov := len(p) == 4 && p[0] == "us" && p[1] == "gov"
	if len(p) != 3 && !gov {
		return ""
	}
	last, word := p[len(p)-1], p[len(p)-2]
	if last == "" || strings.Trim(last, "0123456789") != "" || word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz") != "" {
		return ""
	}
	switch {
	case gov:
		return "aws-us-gov"
	case p[0] == "cn":
		return "aws-cn"
	case strings.HasPrefix(word, "iso"):
		return ""
	case slices.Contains([]string{"us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx"}, p[0]):
		return "aws"
	}
	return ""
}

// Match returns what host serves: by the custom endpoints first, then by AWS's
// naming rules and the services of the table.
func Match(host string, custom []Endpoint) (Target, error) {
	host = strings.ToLower(host)
	for _, e := range custom {
		h := strings.ToLower(e.Host)
		if host == h {
			return Target{Endpoint: e.Service, Region: e.Region, Custom: true}, nil
		}
		if b, ok := strings.CutSuffix(host, "."+h); ok && e.VirtualHost && e.Service == "s3" {
			return Target{Endpoint: "s3", Region: e.Region, Custom: true, Bucket: b}, checkBucket(b)
		}
	}
	if h, port, err := net.SplitHostPort(host); err == nil {
		if port != "443" {
			return Target{}, fail(ErrUnsupported, "port %s of an AWS host", port)
		}
		host = h
	}
	if ep, region := globalHosts(host); ep != "" {
		return Target{Partition: partitionOf(region), Endpoint: ep, Region: region}, nil
	}
	t, rest, err := suffix(host)
	if err != nil {
		return t, err
	}
	return t, t.label(rest)
}

// suffix takes AWS's domain and the region off a host.
func suffix(host string) (Target, []string, error) {
	var t Target
	var rest string
	cn := false
	switch {
	case cut(host, ".api.amazonwebservices.com.cn", &rest):
		t.DualStack, cn = true, true
	case cut(host, ".amazonaws.com.cn", &rest):
		cn = true
	case cut(host, ".api.aws", &rest):
		t.DualStack = true
	case cut(host, ".amazonaws.com", &rest):
	default:
		return t, nil, fail(ErrUnsupported, "%s is no AWS endpoint", host)
	}
	labels := strings.Split(rest, ".")
	if slices.Contains(labels, "") {
		return t, nil, fail(ErrMalformed, "host has an empty label")
	}
	if p := partitionOf(labels[len(labels)-1]); p != "" {
		t.Region, t.Partition = labels[len(labels)-1], p
		labels = labels[:len(labels)-1]
	} else if len(labels) == 2 && labels[1] == "queue" && partitionOf(labels[0]) != "" {
		t.Region, t.Partition = labels[0], partitionOf(labels[0]) // SQS's first form: REGION.queue
		labels = []string{"sqs"}
	}
	if t.Partition == "" {
		t.Partition = "aws"
		if cn {
			t.Partition = "aws-cn"
		}
	}
	if cn != (t.Partition == "aws-cn") {
		return t, nil, fail(ErrUnsupported, "region %s is not served below this domain", t.Region)
	}
	if n := len(labels); n > 0 && labels[n-1] == "dualstack" {
		t.DualStack = true
		labels = labels[:n-1]
	}
	if len(labels) == 0 {
		return t, nil, fail(ErrUnsupported, "%s names no service", host)
	}
	return t, labels, nil
}

func cut(s, end string, rest *string) bool {
	r, ok := strings.CutSuffix(s, end)
	if ok {
		*rest = r
	}
	return ok
}

// label reads the labels left of the region.
func (t *Target) label(labels []string) error {
	n := len(labels) - 1
	name, left := labels[n], strings.Join(labels[:n], ".")
	if base, ok := strings.CutSuffix(name, "-fips"); ok {
		t.FIPS, name = true, base
	}
	if strings.HasPrefix(name, "s3") {
		return t.s3Label(name, left)
	}
	if t.Region == "" {
		return fail(ErrUnsupported, "no region in the host of service %s", name)
	}
	if name == "ddb" && isAccount(left) {
		t.Endpoint, t.Account = "dynamodb", left
		return nil
	}
	if left != "" {
		name = left + "." + name
	}
	if base, ok := strings.CutPrefix(name, "fips."); ok {
		t.FIPS, name = true, base
	}
	if len(table().byEndpoint[name]) == 0 {
		return fail(ErrUnsupported, "service %s is not in the table", name)
	}
	t.Endpoint = name
	return nil
}

// s3Label reads S3's many names.
func (t *Target) s3Label(name, left string) error {
	if r, ok := strings.CutPrefix(name, "s3-"); ok && t.Region == "" && partitionOf(r) != "" {
		t.Region, t.Partition, name = r, partitionOf(r), "s3"
	}
	t.Endpoint = "s3"
	switch name {
	case "s3-external-1":
		t.Region = "us-east-1"
	case "s3", "s3-accelerate":
		// Without a region the host stands for the bucket's own region.
	case "s3-accesspoint":
		i := strings.LastIndexByte(left, '-')
		if i <= 0 || !isAccount(left[i+1:]) || strings.Contains(left, ".") || t.Region == "" {
			return fail(ErrMalformed, "host is no access point")
		}
		t.AccessPoint, t.Account = left[:i], left[i+1:]
		return nil
	case "s3-global":
		ap, ok := strings.CutSuffix(left, ".accesspoint")
		if !ok || !strings.HasSuffix(ap, ".mrap") || strings.Count(ap, ".") != 1 {
			return fail(ErrMalformed, "host is no multi-Region access point")
		}
		t.AccessPoint, t.MultiRegion = ap, true
		return nil
	case "s3-object-lambda":
		return fail(ErrUnsupported, "S3 Object Lambda")
	case "s3-outposts":
		return fail(ErrUnsupported, "S3 on Outposts")
	case "s3-control":
		return fail(ErrUnsupported, "S3 Control")
	default:
		if strings.HasPrefix(name, "s3express") {
			return fail(ErrUnsupported, "S3 Express One Zone: its sessions are credentials of their own; use a general purpose bucket")
		}
		return fail(ErrUnsupported, "S3 endpoint %s", name)
	}
	if left == "" {
		if name == "s3-accelerate" {
			return fail(ErrMalformed, "S3 Accelerate without a bucket in the host")
		}
		if t.Region == "" {
			t.Region = map[string]string{"aws": "us-east-1", "aws-cn": "cn-north-1"}[t.Partition]
		}
		return nil
	}
	t.Bucket = left
	return checkBucket(left)
}

func isAccount(s string) bool { return len(s) == 12 && strings.Trim(s, "0123456789") == "" }

// checkBucket refuses names that are no bucket, and those that stand for
// something else: AWS reserves these endings.
func checkBucket(b string) error {
	for end, what := range map[string]string{
		"-s3alias": "an access point's alias: use its own host name", "--ol-s3": "S3 Object Lambda",
		"--x-s3": "S3 Express One Zone", "--xa-s3": "S3 Express One Zone", "--op-s3": "S3 on Outposts", ".mrap": "a multi-Region access point's alias",
	} {
		if strings.HasSuffix(b, end) {
			return fail(ErrUnsupported, "%s", what)
		}
	}
	if len(b) < 3 || len(b) > 255 || strings.Contains(b, "..") || strings.Trim(b, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" || strings.Trim(b, ".-") != b {
		return fail(ErrMalformed, "bucket name")
	}
	return nil
}

// agree checks what the agent's signature claims against the host.
func (t *Target) agree(r *Request) error {
	if r.Partition != "" && t.Partition != "" && r.Partition != t.Partition {
		return fail(ErrMismatch, "host is of partition %s, the role of %s", t.Partition, r.Partition)
	}
	if t.Partition == "" {
		t.Partition = r.Partition
	}
	if t.Partition == "" {
		t.Partition = "aws"
	}
	if t.MultiRegion {
		t.Region = ""
		return nil // signed for a set of regions
	}
	if t.Region == "" {
		if partitionOf(r.ClaimedRegion) != t.Partition {
			return fail(ErrMismatch, "the signature claims region %q", r.ClaimedRegion)
		}
		t.Region = r.ClaimedRegion
	}
	if r.ClaimedRegion != t.Region {
		return fail(ErrMismatch, "the signature claims region %q, the host serves %q", r.ClaimedRegion, t.Region)
	}
	return nil
}

// Claim returns the service and region that the signature of an SDK would claim
// for a host: for explanations of requests that nobody signed. Where the host
// names no region, it is the given one.
func Claim(host, region string, custom []Endpoint) (service, signedFor string, err error) {
	t, err := Match(host, custom)
	if err != nil {
		return "", "", err
	}
	if t.Region != "" {
		region = t.Region
	}
	if t.Custom {
		return t.Endpoint, region, nil
	}
	return table().byEndpoint[t.Endpoint][0].sign, region, nil
}
