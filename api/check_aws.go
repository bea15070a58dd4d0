package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/awsrole"
)

// Bounds of AWS STS (API reference: AssumeRole, AssumeRoleWithWebIdentity, Tag).
const (
	minSession     = v1alpha1.Duration(awsrole.LeastSession)
	maxSession     = v1alpha1.Duration(12 * time.Hour)
	maxChain       = v1alpha1.Duration(time.Hour)
	maxTags        = 50
	maxTagKey      = 128
	maxTagValue    = 256
	maxExternalID  = 1224
	maxSourceID    = 64
	maxSTSRate     = 1000
	maxPartitioned = 255 // bytes of a DynamoDB attribute's name as key
)

var (
	awsRegion   = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$`)
	regionLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // servers other than AWS's name theirs freely
	awsService  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	anywhereARN = regexp.MustCompile(`^arn:(aws(?:-[a-z]+)*):rolesanywhere:([a-z0-9-]+):[0-9]{12}:(trust-anchor|profile)/[0-9a-f-]{36}$`)
	tagKey      = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]+$`)
	tagValue    = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
	externalID  = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	sourceID    = regexp.MustCompile(`^[\w+=,.@-]*$`)
	tableName   = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	accessKeyID = regexp.MustCompile(`^[A-Za-z0-9_]*$`)
	template    = regexp.MustCompile(`\$\{[^}]*\}`)
)

// sdkPartitions are those whose endpoints are known without being named.
var sdkPartitions = []string{"aws", "aws-cn", "aws-us-gov"}

// aws checks an aws provider and what stands beside it.
func (c *checker) aws(a *v1alpha1.AWS, s *v1alpha1.CredentialProviderSpec) {
	const f = "spec.aws"
	c.roleARN(f+".roleARN", a.RoleARN)
	c.region(f+".region", a.Region, a.Endpoint == "")
	c.awsURL(f+".endpoint", a.Endpoint)
	if a.Endpoint != "" {
		for _, name := range []string{"fips", "dualStack"} {
			if c.has(f + "." + name) {
				c.bad(f+"."+name, "chooses among AWS's own endpoints; remove it or endpoint")
			}
		}
	}
	c.ca(f, &a.CAFile, a.CABundle)
	c.addresses(f+".addresses", a.Addresses)
	c.awsIdentity(a)
	if a.Chain != nil {
		c.chain(a.Chain)
	}
	c.session(f+".duration", a.Duration, maxSession)
	c.iamPolicy(f+".policy", a.Policy)
	c.awsEndpoints(a, s)
	c.partitionKeys(f+".partitionKeys", a.PartitionKeys)
	if a.Revocation != nil {
		c.awsRevocation(a)
	}
	if at := f + ".callsPerSecond"; c.sound(at) && (a.CallsPerSecond < 1 || a.CallsPerSecond > maxSTSRate) {
		c.bad(at, "is %d; must be between 1 and %d", a.CallsPerSecond, maxSTSRate)
	}
	if a.Timeout > v1alpha1.Duration(time.Minute) {
		c.bad(f+".timeout", "is %s; must be at most 1m", a.Timeout.D())
	}
	c.doors(a.Doors)
	c.besideAWS(a, s)
}

// roleARN checks a role's ARN, in which variables may stand.
func (c *checker) roleARN(field, arn string) {
	if arn == "" {
		return
	}
	if err := awsrole.Check(arn); err != nil {
		c.bad(field, "%v", err)
	}
}

func (c *checker) region(field, region string, ofAWS bool) {
	switch {
	case region == "":
	case ofAWS && !awsRegion.MatchString(region):
		c.bad(field, "is %s; must be a region of AWS such as eu-west-1", quote(region))
	case !regionLabel.MatchString(region):
		c.bad(field, "is %s; must be a region such as us-east-1", quote(region))
	}
}

// awsURL checks the URL of a server that stands for one of AWS's.
func (c *checker) awsURL(field, raw string) {
	c.httpsURL(field, raw, nil, nil)
	if u, err := url.Parse(raw); err == nil && (u.RawQuery != "" || u.ForceQuery) && c.sound(field) {
		c.bad(field, "is %s; must have no ?query", quote(raw))
	}
}

// awsIdentity checks what proves the workload: a token or its X.509-SVID.
func (c *checker) awsIdentity(a *v1alpha1.AWS) {
	const f = "spec.aws"
	if a.TokenFile != "" && c.place == PlacePod {
		c.bad(f+".tokenFile", "would be read by the sidecar, which no object in a cluster can ask for; leave it out for the workload's own token")
	}
	if a.TokenFile != "" {
		a.TokenFile = c.resolve(a.TokenFile)
		if c.has(f + ".audience") {
			c.bad(f+".audience", "is that of the workload's own token; the one in tokenFile has its own, remove one of them")
		}
	}
	if strings.ContainsFunc(a.Audience, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.bad(f+".audience", "is %s; must be one word of visible ASCII", quote(a.Audience))
	}
	ra := a.RolesAnywhere
	if ra == nil {
		return
	}
	for _, name := range []string{"audience", "tokenFile"} {
		if c.has(f + "." + name) {
			c.bad(f+"."+name, "is for a web identity token; rolesAnywhere takes the X.509-SVID, remove one of them")
		}
	}
	c.anywhere(ra)
}

func (c *checker) anywhere(ra *v1alpha1.AWSRolesAnywhere) {
	const f = "spec.aws.rolesAnywhere"
	read := func(field, arn, kind string) []string {
		m := anywhereARN.FindStringSubmatch(arn)
		if arn != "" && (m == nil || m[3] != kind) {
			c.bad(field, "is %s; must be such as arn:aws:rolesanywhere:eu-west-1:123456789012:%s/ID", quote(arn), kind)
			return nil
		}
		return m
	}
	anchor := read(f+".trustAnchorARN", ra.TrustAnchorARN, "trust-anchor")
	profile := read(f+".profileARN", ra.ProfileARN, "profile")
	if anchor != nil && profile != nil && anchor[2] != profile[2] {
		c.bad(f+".profileARN", "is of region %s, but the trust anchor of %s; IAM Roles Anywhere does not reach across, change one of them", profile[2], anchor[2])
	}
	c.awsURL(f+".endpoint", ra.Endpoint)
	if anchor != nil && ra.Endpoint == "" && !slices.Contains(sdkPartitions, anchor[1]) {
		c.bad(f+".endpoint", "is missing; it is not known for partition %s", anchor[1])
	}
}

func (c *checker) session(field string, d, most v1alpha1.Duration) {
	switch {
	case !c.sound(field):
	case d < minSession || d > most:
		c.bad(field, "is %s; must be between %s and %s", d.D(), minSession.D(), most.D())
	case d%v1alpha1.Duration(time.Second) != 0:
		c.bad(field, "is %s; AWS counts in whole seconds", d.D())
	}
}

func (c *checker) chain(ch *v1alpha1.AWSChain) {
	const f = "spec.aws.chain"
	c.roleARN(f+".roleARN", ch.RoleARN)
	c.session(f+".duration", ch.Duration, maxChain)
	if id := ch.ExternalID; id != "" && (!externalID.MatchString(id) || len(id) > maxExternalID) {
		c.bad(f+".externalID", "must be 2 to %d letters, digits and _+=,.@:/-", maxExternalID)
	}
	c.tags(f+".tags", ch.Tags)
	for i, key := range ch.TransitiveTags {
		at := fmt.Sprintf("%s.transitiveTags[%d]", f, i)
		switch _, ok := ch.Tags[key]; {
		case !c.sound(at):
		case !ok:
			c.bad(at, "is %s, which is no key of tags; add it there", quote(key))
		case slices.Contains(ch.TransitiveTags[:i], key):
			c.bad(at, "is %s a second time; remove it", quote(key))
		}
	}
	if id := ch.SourceIdentity; id != "" {
		at := f + ".sourceIdentity"
		text := template.ReplaceAllString(id, "")
		switch err := awsrole.CheckText(id); {
		case err != nil:
			c.bad(at, "%v", err)
		case !sourceID.MatchString(text) || len(text) > maxSourceID || text == id && len(id) < 2 || strings.HasPrefix(strings.ToLower(id), "aws:"):
			c.bad(at, "is %s; must be 2 to %d letters, digits and _+=,.@- (variables may stand among them), or none", quote(id), maxSourceID)
		}
	}
}

// tags checks session tags, whose keys know no case.
func (c *checker) tags(field string, tags map[string]string) {
	if len(tags) > maxTags {
		c.bad(field, "has %d tags; AWS takes at most %d", len(tags), maxTags)
	}
	seen := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		at := field + "[" + key + "]"
		value := template.ReplaceAllString(tags[key], "")
		lower := strings.ToLower(key)
		switch err := awsrole.CheckText(tags[key]); {
		case utf8.RuneCountInString(key) > maxTagKey || !tagKey.MatchString(key):
			c.bad(at, "has a key that AWS does not take; must be 1 to %d letters, digits, spaces and _.:/=+-@", maxTagKey)
		case strings.HasPrefix(lower, "aws:"):
			c.bad(at, "begins with aws:, which AWS keeps for itself; choose another key")
		case seen[lower] != "":
			c.bad(at, "differs from %s in case only, which AWS does not tell apart; remove one of them", quote(seen[lower]))
		case err != nil:
			c.bad(at, "%v", err)
		case utf8.RuneCountInString(value) > maxTagValue || !tagValue.MatchString(value):
			c.bad(at, "has a value that AWS does not take; must be at most %d letters, digits, spaces and _.:/=+-@", maxTagValue)
		}
		seen[lower] = key
	}
}

// iamPolicy checks the shape of an IAM policy; package policy reads it.
func (c *checker) iamPolicy(field string, raw json.RawMessage) {
	if raw == nil || !c.sound(field) {
		return
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil || doc == nil {
		c.bad(field, "must be an IAM policy: a mapping with Version and Statement")
		return
	}
	for _, name := range []string{"Version", "Statement"} {
		if doc[name] == nil || bytes.Equal(doc[name], []byte("null")) {
			c.bad(field, "has no %s; must be an IAM policy with Version: \"2012-10-17\" and Statement", name)
		}
	}
}

// awsEndpoints checks custom endpoints, and that each destination is a host of
// AWS or one of them: no call to another could ever be signed.
func (c *checker) awsEndpoints(a *v1alpha1.AWS, s *v1alpha1.CredentialProviderSpec) {
	seen := map[string]bool{}
	for i := range a.Endpoints {
		e := &a.Endpoints[i]
		field := fmt.Sprintf("spec.aws.endpoints[%d]", i)
		c.port(field+".port", e.Port)
		c.region(field+".region", e.Region, false)
		if e.Service != "" && !awsService.MatchString(e.Service) {
			c.bad(field+".service", "is %s; must be a signing name such as s3", quote(e.Service))
		}
		if e.VirtualHost && e.Service != "s3" {
			c.bad(field+".virtualHost", "is for service s3; remove it")
		}
		if e.Host == "" {
			continue
		}
		key := fmt.Sprintf("%s:%d", e.Host, e.Port)
		if why := checkHost(e.Host); why != "" {
			c.bad(field+".host", "is %s; %s", quote(e.Host), why)
		} else if seen[key] {
			c.bad(field+".host", "is %s, which another endpoint is already; remove one of them", key)
		} else if c.sound("spec.destinations") && c.sound(field) && !covered(s.Destinations, e.Host, e.Port) {
			c.bad(field+".host", "is %s, which is none of the provider's destinations (%s); add it there", key, hostsOf(s.Destinations))
		}
		seen[key] = true
	}
	for i, d := range s.Destinations {
		field := fmt.Sprintf("spec.destinations[%d]", i)
		switch {
		case d.Host == "" || !c.sound(field) || !c.sound("spec.aws.endpoints") || servedBy(a.Endpoints, d):
		case !ofAWS(d.Host):
			c.bad(field+".host", "is %s, which is neither a host of AWS nor one of spec.aws.endpoints; add it there with its service", quote(d.Host))
		case d.Port != 443:
			c.bad(field+".port", "is %d; AWS's own endpoints are served on 443", d.Port)
		}
	}
}

// servedBy reports whether a destination holds a host of a custom endpoint.
func servedBy(endpoints []v1alpha1.AWSEndpoint, d v1alpha1.Destination) bool {
	return slices.ContainsFunc(endpoints, func(e v1alpha1.AWSEndpoint) bool {
		return e.Port == d.Port && (covers(d.Host, e.Host) || e.VirtualHost && (covers(d.Host, "*."+e.Host) || covers("*."+e.Host, d.Host)))
	})
}

// ofAWS reports whether the hosts of a pattern are below AWS's own domains.
// Which of them are endpoints is for package policy to know.
func ofAWS(pattern string) bool {
	rest, _ := wildcard(pattern)
	return slices.ContainsFunc([]string{"amazonaws.com", "amazonaws.com.cn", "api.aws", "api.amazonwebservices.com.cn"}, func(domain string) bool {
		return rest == domain || strings.HasSuffix(rest, "."+domain)
	})
}

func (c *checker) partitionKeys(field string, keys map[string]string) {
	for _, table := range slices.Sorted(maps.Keys(keys)) {
		at := field + "[" + table + "]"
		if !tableName.MatchString(table) {
			c.bad(at, "is no name of a DynamoDB table; must be 3 to 255 letters, digits and _.-")
		} else if name := keys[table]; name == "" || len(name) > maxPartitioned {
			c.bad(at, "must be the name of the table's partition key, at most %d bytes", maxPartitioned)
		}
	}
}

func (c *checker) awsRevocation(a *v1alpha1.AWS) {
	const f = "spec.aws.revocation"
	r := a.Revocation
	oneOf(c, f+".kind", r.Kind, RevokeIAMDeny, RevokeMinIO)
	c.awsURL(f+".endpoint", r.Endpoint)
	switch r.Kind {
	case RevokeIAMDeny:
		c.roleARN(f+".roleARN", r.RoleARN)
		if r.RoleARN == "" && !c.has(f+".roleARN") {
			c.bad(f+".roleARN", "is missing; kind iamDeny requires a role that may change the sessions' role")
		}
		if a.RolesAnywhere != nil {
			c.bad(f+".kind", "is iamDeny, whose role is assumed by web identity; it cannot stand with rolesAnywhere")
		}
		if p := partition(lastRole(a)); r.Endpoint == "" && p != "" && (!slices.Contains(sdkPartitions, p) || p == "aws-cn" && a.FIPS) {
			c.bad(f+".endpoint", "is missing; IAM's is not known for partition %s", quoteBare(p))
		}
	case RevokeMinIO:
		for _, name := range []string{"roleARN", "endpoint"} {
			if c.has(f + "." + name) {
				c.bad(f+"."+name, "is for kind iamDeny; with minio a session revokes itself where it came from, remove it")
			}
		}
		if a.Endpoint == "" || a.Chain != nil || a.RolesAnywhere != nil {
			c.bad(f+".kind", "is minio, which needs spec.aws.endpoint, and neither chain nor rolesAnywhere")
		}
	}
}

// doorEnv is the variable by which SDKs find a door: there is one of each.
var doorEnv = map[string]string{
	DoorContainer:   "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	DoorIMDS:        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
	DoorWebIdentity: "AWS_ROLE_ARN",
}

// oneOpener wants every door in one provider: an SDK takes the first that it
// finds, and would never see the other provider. It returns where the first
// door stands.
func (c *checker) oneOpener(a *v1alpha1.AWS, first string) string {
	i := slices.IndexFunc(a.Doors, func(d string) bool { return doorEnv[d] != "" })
	if i < 0 {
		return first
	}
	at := fmt.Sprintf("spec.aws.doors[%d]", i)
	if first == "" {
		return c.where(at)
	}
	if c.sound(at) {
		c.conflict(at, "is a door beside the one at %s; SDKs take the first that they find, open them all in one provider", first)
	}
	return first
}

func (c *checker) doors(doors []string) {
	for i, d := range doors {
		at := fmt.Sprintf("spec.aws.doors[%d]", i)
		if oneOf(c, at, d, DoorEnv, DoorContainer, DoorIMDS, DoorWebIdentity); slices.Contains(doors[:i], d) && c.sound(at) {
			c.bad(at, "is %s a second time; remove it", quote(d))
		}
	}
}

// besideAWS refuses fields of the provider that other kinds of credential use.
func (c *checker) besideAWS(a *v1alpha1.AWS, s *v1alpha1.CredentialProviderSpec) {
	if s.Inject.As != InjectSigV4 && c.sound("spec.inject.as") {
		c.bad("spec.inject.as", "is %s, but AWS takes no credential, only signatures by one; remove it", quote(s.Inject.As))
	}
	if c.has("spec.inject.headers") {
		c.bad("spec.inject.headers", "has no meaning with aws; remove it")
	}
	if s.Inject.RequirePlaceholder != nil && !*s.Inject.RequirePlaceholder {
		c.bad("spec.inject.requirePlaceholder", "is false, but only calls signed with the placeholder key are signed anew; remove it")
	}
	if c.has("spec.retryStatus") {
		c.bad("spec.retryStatus", "has no meaning with aws, whose error codes say what is stale; remove it")
	}
	if len(s.Placeholders) != 2 {
		c.bad("spec.placeholders", "are %d; aws needs two, the access key id and the secret key, in this order", len(s.Placeholders))
	} else if p := s.Placeholders[0]; !accessKeyID.MatchString(p.Prefix) && c.sound("spec.placeholders[0].prefix") {
		c.bad("spec.placeholders[0].prefix", "is %s; an access key id has letters, digits and _ only", quote(p.Prefix))
	}
	if d := lastSession(a); c.has("spec.ttl") && s.TTL > d {
		c.bad("spec.ttl", "is %s, longer than a session of %s; change one of them", s.TTL.D(), d.D())
	}
}

// lastRole is the role whose session signs.
func lastRole(a *v1alpha1.AWS) string {
	if a.Chain != nil {
		return a.Chain.RoleARN
	}
	return a.RoleARN
}

// partition of an ARN, "" if it is none.
func partition(arn string) string {
	if parts := strings.SplitN(arn, ":", 3); len(parts) == 3 {
		return parts[1]
	}
	return ""
}

// lastSession is the duration of the session that signs.
func lastSession(a *v1alpha1.AWS) v1alpha1.Duration {
	switch {
	case a.Chain != nil:
		return a.Chain.Duration
	case a.RolesAnywhere != nil: // the role is assumed once more, for the session policy
		return min(a.Duration, maxChain)
	}
	return a.Duration
}

// awsCredential checks what a rule asks of an aws provider.
func (c *checker) awsCredential(at string, ref *v1alpha1.CredentialRef, a *v1alpha1.AWS) {
	for _, name := range []string{"scope", "audience", "resources", "authorizationDetails"} {
		if c.has(at + "." + name) {
			c.bad(at+"."+name, "has no meaning with an aws provider, whose scope is derived from the request; remove it, or bound it by aws.policy")
		}
	}
	c.roleARN(at+".role", ref.Role)
	if d := lastSession(a); ref.TTL > d && d > 0 {
		c.bad(at+".ttl", "is %s, longer than a session of %s; change one of them", ref.TTL.D(), d.D())
	}
	if ref.AWS == nil {
		return
	}
	at += ".aws"
	oneOf(c, at+".granularity", ref.AWS.Granularity, "request", "prefix", "task", "session")
	oneOf(c, at+".onTooLarge", ref.AWS.OnTooLarge, "deny", "request", "prefix", "task", "session")
	granularity := ref.AWS.Granularity
	fill(&granularity, "request")
	if ref.AWS.OnTooLarge == granularity {
		c.bad(at+".onTooLarge", "is %s, which is the granularity that was too large; choose another or deny", granularity)
	}
	c.iamPolicy(at+".policy", ref.AWS.Policy)
}
