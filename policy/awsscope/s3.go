package awsscope

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// An s3Operation is one line of the [s3] section: level, method and
// subresource, the operation, and its actions; versioned replaces the actions
// where the request names a version.
type s3Operation struct {
	name      string
	actions   []string
	versioned []string
}

// addS3 reads `LEVEL METHOD SUBRESOURCE NAME action… [@ versioned action…]`.
func (t *tables) addS3(line string) error {
	plain, versioned, _ := strings.Cut(line, "@")
	f := strings.Fields(plain)
	if len(f) < 5 {
		return fmt.Errorf("want LEVEL METHOD SUBRESOURCE NAME action")
	}
	key := strings.Join(f[:3], " ")
	if t.s3[key] != nil {
		return fmt.Errorf("given twice")
	}
	t.s3[key] = &s3Operation{name: f[3], actions: f[4:], versioned: strings.Fields(versioned)}
	return nil
}

// s3Plain are parameters that qualify an S3 operation without choosing it.
func s3Plain(k string) bool {
	switch k {
	case "x-id", "versionId", "prefix", "delimiter", "marker", "max-keys", "continuation-token",
		"start-after", "fetch-owner", "encoding-type", "key-marker", "version-id-marker", "upload-id-marker",
		"max-uploads", "max-parts", "part-number-marker", "select-type", "id", "max-buckets", "bucket-region",
		"response-content-type", "response-content-language", "response-expires", "response-cache-control",
		"response-content-disposition", "response-content-encoding",
		"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature",
		"X-Amz-Security-Token", "X-Amz-Content-Sha256", "X-Amz-Checksum-Mode", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm":
		return true
	}
	return strings.HasPrefix(k, "x-amz-checksum-") // of the content, in presigned uploads
}

// s3 reads an S3 request: where it is addressed, then what it does.
func (c *reading) s3() error {
	c.call.Service, c.call.Protocol = "s3", "rest-xml"
	if err := c.plainS3(); err != nil {
		return err
	}
	bucket, key, err := c.s3Address()
	if err != nil {
		return err
	}
	level := "object"
	switch {
	case bucket == "":
		level = "service"
	case key == "":
		level = "bucket"
	}
	sub, err := c.s3Subresource(level)
	if err != nil {
		return err
	}
	op := table().s3[level+" "+c.req.Method+" "+sub]
	if op == nil {
		return fail(ErrUnsupported, "S3 %s %s with subresource %q", level, c.req.Method, sub)
	}
	c.call.Operation = op.name
	if level == "bucket" && sub == "-" && c.req.Method == "POST" {
		return fail(ErrUnsupported, "POST form upload: its key is in the form")
	}
	if op.name == "DeleteObjects" {
		return c.deleteObjects(bucket)
	}
	return c.s3Access(op, level, bucket, key)
}

// plainS3 refuses what MinIO does beyond S3: fields by which DeleteObject removes
// a whole prefix, PutObject unpacks an archive or GetObject reads in one, and
// the paths of its own interfaces.
func (c *reading) plainS3() error {
	for k := range c.req.Header {
		if strings.HasPrefix(k, "X-Minio-") || k == "X-Amz-Meta-Snowball-Auto-Extract" {
			return fail(ErrUnsupported, "header %s: it makes another operation of this one", k)
		}
	}
	if !c.target.Custom {
		return nil
	}
	path, err := url.PathUnescape(c.req.RawPath)
	if err != nil {
		return fail(ErrMalformed, "path: %v", err)
	}
	if path == "/minio" || strings.HasPrefix(path, "/minio/") {
		return fail(ErrUnsupported, "path /minio is no bucket of MinIO but its own interfaces")
	}
	return nil
}

// s3Address returns bucket (or the access point's ARN) and key.
func (c *reading) s3Address() (bucket, key string, err error) {
	raw, ok := strings.CutPrefix(c.req.RawPath, "/")
	if !ok && c.req.RawPath != "" {
		return "", "", fail(ErrMalformed, "path %q", c.req.RawPath)
	}
	path, err := url.PathUnescape(raw)
	if err != nil {
		return "", "", fail(ErrMalformed, "path: %v", err)
	}
	t := c.target
	switch {
	case t.AccessPoint != "":
		c.call.Facts["accessPoint"] = t.AccessPoint
		if t.MultiRegion && c.call.Account == "" {
			return "", "", fail(ErrUnsupported, "a multi-Region access point needs the role's account")
		}
		bucket, key = t.AccessPoint, path
	case t.Bucket != "":
		bucket, key = t.Bucket, path
	default:
		// The first slash on the wire ends the bucket, not an encoded one.
		head, tail, _ := strings.Cut(raw, "/")
		if bucket, err = url.PathUnescape(head); err != nil {
			return "", "", fail(ErrMalformed, "path: %v", err)
		}
		if bucket == "" {
			if tail != "" || strings.HasPrefix(raw, "/") {
				return "", "", fail(ErrMalformed, "path without a bucket")
			}
			return "", "", nil
		}
		if err := checkBucket(bucket); err != nil {
			return "", "", err
		}
		key, _ = url.PathUnescape(tail)
	}
	if t.AccessPoint == "" {
		c.call.Facts["bucket"] = bucket
	}
	if key != "" {
		c.call.Facts["key"] = key
		err = checkKey(key)
	}
	return bucket, key, err
}

// checkKey is checkValue for object keys, which have 1,024 bytes at most.
func checkKey(key string) error {
	if len(key) > 1024 {
		return fail(ErrMalformed, "key is longer than 1024 bytes")
	}
	return checkValue("key", key)
}

// s3Subresource names what of the query chooses the operation. Every parameter
// must be known: one that is not might choose another.
func (c *reading) s3Subresource(level string) (string, error) {
	sub := []string{}
	for k, v := range c.query {
		switch {
		case k == "partNumber" && (c.req.Method == "GET" || c.req.Method == "HEAD"):
		case k == "list-type":
			if v != "2" || level != "bucket" {
				return "", fail(ErrUnsupported, "list-type %q", v)
			}
			sub = append(sub, k)
		case s3Plain(k):
		default:
			sub = append(sub, k)
		}
	}
	slices.Sort(sub)
	if c.req.Header.Get("X-Amz-Copy-Source") != "" {
		if level != "object" || c.req.Method != "PUT" {
			return "", fail(ErrAmbiguous, "X-Amz-Copy-Source on no copy")
		}
		sub = append(sub, "copy")
	}
	if len(sub) == 0 {
		return "-", nil
	}
	return strings.Join(sub, "+"), nil
}

// s3ARN is the resource of a bucket or an object, as the request reached it.
func (c *reading) s3ARN(bucket, key string) Pattern {
	t := c.target
	switch {
	case t.AccessPoint == "":
		if key == "" {
			return Pattern("arn:" + c.call.Partition + ":s3:::" + bucket)
		}
		return Pattern("arn:"+c.call.Partition+":s3:::"+bucket+"/") + Literal(key)
	case t.MultiRegion:
		return accessPoint("arn:"+c.call.Partition+":s3::"+c.call.Account+":accesspoint/"+t.AccessPoint, key)
	}
	return accessPoint("arn:"+c.call.Partition+":s3:"+c.call.Region+":"+t.Account+":accesspoint/"+t.AccessPoint, key)
}

func accessPoint(arn, key string) Pattern {
	if key == "" {
		return Pattern(arn)
	}
	return Pattern(arn+"/object/") + Literal(key)
}

// s3Access adds the operation's own actions and those that its headers ask for.
func (c *reading) s3Access(op *s3Operation, level, bucket, key string) error {
	if level == "service" {
		c.add(op.actions[0], "*", nil)
		return nil
	}
	res := c.s3ARN(bucket, key)
	var conds []Condition
	actions := op.actions
	version, hasVersion := c.query["versionId"]
	if hasVersion {
		if len(op.versioned) == 0 || checkValue("versionId", version) != nil {
			return fail(ErrUnsupported, "versionId on %s", op.name)
		}
		c.call.Facts["version"] = version
		actions = op.versioned
		if version != "null" {
			conds = equals("s3:VersionId", version)
		}
	}
	switch op.name {
	case "ListObjects", "ListObjectsV2", "ListObjectVersions":
		if p := c.query["prefix"]; p != "" {
			if err := checkKey(p); err != nil {
				return err
			}
			c.call.Facts["prefix"] = p
			conds = equals("s3:prefix", p)
		}
	case "CopyObject", "UploadPartCopy":
		if err := c.copySource(); err != nil {
			return err
		}
	}
	for _, a := range actions {
		c.add(a, res, conds)
	}
	if c.req.Method == "PUT" || c.req.Method == "POST" || c.req.Method == "DELETE" {
		c.s3Headers(op.name, res)
	}
	return nil
}

// s3Headers adds the actions that a request's headers need beside its own.
func (c *reading) s3Headers(op string, res Pattern) {
	writes := slices.Contains([]string{"PutObject", "CopyObject", "CreateMultipartUpload"}, op)
	for k := range c.req.Header {
		k = strings.ToLower(k)
		action := ""
		switch {
		case op == "CreateBucket" && (k == "x-amz-acl" || strings.HasPrefix(k, "x-amz-grant-")):
			action = "s3:PutBucketAcl"
		case op == "CreateBucket" && k == "x-amz-object-ownership":
			action = "s3:PutBucketOwnershipControls"
		case op == "CreateBucket" && k == "x-amz-bucket-object-lock-enabled":
			c.add("s3:PutBucketVersioning", res, nil)
			action = "s3:PutBucketObjectLockConfiguration"
		case writes && !c.req.NoACLs && (k == "x-amz-acl" || strings.HasPrefix(k, "x-amz-grant-")):
			action = "s3:PutObjectAcl"
		case writes && k == "x-amz-tagging":
			action = "s3:PutObjectTagging"
		case writes && strings.HasPrefix(k, "x-amz-object-lock-r"), writes && k == "x-amz-object-lock-mode":
			action = "s3:PutObjectRetention"
		case writes && k == "x-amz-object-lock-legal-hold":
			action = "s3:PutObjectLegalHold"
		case k == "x-amz-bypass-governance-retention" && (op == "DeleteObject" || op == "PutObjectRetention"):
			action = "s3:BypassGovernanceRetention"
		}
		if action != "" {
			c.add(action, res, nil)
		}
	}
}

// copySource reads X-Amz-Copy-Source: BUCKET/KEY or an access point's ARN,
// percent-encoded, perhaps with ?versionId=.
func (c *reading) copySource() error {
	raw, query, hasQuery := strings.Cut(c.req.Header.Get("X-Amz-Copy-Source"), "?")
	src, err := url.PathUnescape(raw)
	if err != nil {
		return fail(ErrMalformed, "X-Amz-Copy-Source: %v", err)
	}
	src = strings.TrimPrefix(src, "/")
	action := "s3:GetObject"
	var conds []Condition
	if hasQuery {
		q, err := parseQuery(query)
		if err != nil {
			return err
		}
		v := q["versionId"]
		if len(q) != 1 || checkValue("versionId", v) != nil {
			return fail(ErrMalformed, "X-Amz-Copy-Source has an unknown query")
		}
		action = "s3:GetObjectVersion"
		if v != "null" {
			conds = equals("s3:VersionId", v)
		}
	}
	if err := checkValue("X-Amz-Copy-Source", src); err != nil {
		return err
	}
	c.call.Facts["copySource"] = src
	if p, ok := arnParts(src); ok {
		name, key, found := strings.Cut(strings.TrimPrefix(p[5], "accesspoint/"), "/object/")
		if p[1] != c.call.Partition || p[2] != "s3" || !strings.HasPrefix(p[5], "accesspoint/") || !found || name == "" || key == "" ||
			!isAccount(p[4]) || strings.ContainsAny(src[:len(src)-len(key)], "*?$") {
			return fail(ErrUnsupported, "X-Amz-Copy-Source %q", src)
		}
		c.add(action, Literal(src), conds)
		return nil
	}
	bucket, key, ok := strings.Cut(src, "/")
	if !ok || key == "" {
		return fail(ErrMalformed, "X-Amz-Copy-Source is not BUCKET/KEY")
	}
	if err := checkBucket(bucket); err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return err
	}
	c.call.Objects = append(c.call.Objects, Object{http.MethodGet, bucket, key})
	c.add(action, Pattern("arn:"+c.call.Partition+":s3:::"+bucket+"/")+Literal(key), conds)
	return nil
}

// deleteObjects reads the keys of a batch delete from its body.
func (c *reading) deleteObjects(bucket string) error {
	b, err := c.wholeBody()
	if err != nil {
		return err
	}
	d, err := parseDelete(b)
	if err != nil {
		return err
	}
	bypass := c.req.Header.Get("X-Amz-Bypass-Governance-Retention") != ""
	for i, key := range d.keys {
		if err := checkKey(key); err != nil {
			return err
		}
		action := "s3:DeleteObject"
		var conds []Condition
		if v := d.versions[i]; v != "" {
			if err := checkValue("VersionId", v); err != nil {
				return err
			}
			action = "s3:DeleteObjectVersion"
			if v != "null" {
				conds = equals("s3:VersionId", v)
			}
		}
		c.call.Objects = append(c.call.Objects, Object{Method: http.MethodDelete, Key: key})
		c.add(action, c.s3ARN(bucket, key), conds)
		if bypass {
			c.add("s3:BypassGovernanceRetention", c.s3ARN(bucket, key), nil)
		}
	}
	return nil
}
