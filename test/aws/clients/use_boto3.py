# Every form of S3 call that boto3 can make. It prints one line of JSON a step.
import hashlib, io, json, os, sys
import boto3, requests
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

endpoint, prefix, style = os.environ["ENDPOINT"], os.environ["PREFIX"], os.environ.get("STYLE", "path")
sizes, big = [int(s) for s in os.environ["SIZES"].split()], int(os.environ["BIG"])
config = Config(signature_version="s3v4", s3={"addressing_style": style}, retries={"max_attempts": 1}, connect_timeout=10, read_timeout=120)
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)


def step(name, do):
    r = {"step": name}
    try:
        r.update(do() or {})
    except Exception as e:
        r["error"] = "%s: %s" % (type(e).__name__, e)
        if isinstance(e, requests.HTTPError):
            r["error"] += " " + e.response.text
    print(json.dumps(r), flush=True)


def stored(key, data):
    return {"key": key, "sha256": hashlib.sha256(data).hexdigest()}


def same(got, want):
    if got != want:
        raise ValueError("got %d other bytes, want %d" % (len(got), len(want)))


def put(key, data, bucket="alpha", **more):
    s3.put_object(Bucket=bucket, Key=key, Body=data, **more)
    return stored(key, data)


def get(key, want, bucket="alpha", **more):
    same(s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read(), want)


def multipart(key, bucket="alpha"):
    data = os.urandom(big)
    s3.upload_fileobj(io.BytesIO(data), bucket, key, Config=TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=2))
    out = io.BytesIO()
    s3.download_fileobj(bucket, key, out, Config=TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=2))
    same(out.getvalue(), data)
    return stored(key, data)


def abort(key):
    up = s3.create_multipart_upload(Bucket="alpha", Key=key)["UploadId"]
    s3.upload_part(Bucket="alpha", Key=key, UploadId=up, PartNumber=1, Body=b"x")
    s3.list_parts(Bucket="alpha", Key=key, UploadId=up)
    s3.abort_multipart_upload(Bucket="alpha", Key=key, UploadId=up)


def presigned(method, bucket, key, data=None):
    url = s3.generate_presigned_url(method, Params={"Bucket": bucket, "Key": key}, ExpiresIn=300)
    r = requests.request("PUT" if data is not None else "GET", url, data=data, timeout=60)
    r.raise_for_status()
    return r.content


def presigned_put(key, data):
    presigned("put_object", "alpha", key, data)
    return stored(key, data)


def form(key, data):
    p = s3.generate_presigned_post("alpha", key, ExpiresIn=300, Conditions=[["content-length-range", 0, 1000000]])
    requests.post(p["url"], data=p["fields"], files={"file": ("f", data)}, timeout=60).raise_for_status()
    return stored(key, data)


def copy(source, key):
    s3.copy_object(Bucket="alpha", Key=key, CopySource=source)


def delete_many(keys):
    out = s3.delete_objects(Bucket="alpha", Delete={"Objects": [{"Key": k} for k in keys]})
    if out.get("Errors"):
        raise ValueError(out["Errors"])


def listing(want):
    keys = [o["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="alpha", Prefix=prefix, PaginationConfig={"PageSize": 3}) for o in page.get("Contents", [])]
    if want not in keys:
        raise ValueError("%s is not in %s" % (want, keys))


for n in sizes:
    data, key = os.urandom(n), "%sobject-%d" % (prefix, n)
    step("put %d" % n, lambda: put(key, data))
    step("get %d" % n, lambda: get(key, data))
data, key = b"0123456789" * 100, prefix + "a key+with ~ü%2F&=()'"
step("put odd key", lambda: put(key, data))
step("head odd key", lambda: s3.head_object(Bucket="alpha", Key=key) and None)
step("range", lambda: get(key, data[5:15], Range="bytes=5-14"))
for a in ["CRC32", "SHA256"]:
    step("trailing checksum " + a, lambda: put(prefix + a, data, ChecksumAlgorithm=a))
step("multipart", lambda: multipart(prefix + "multipart"))
step("abort multipart", lambda: abort(prefix + "aborted"))
step("copy", lambda: copy("alpha/readonly/seed", prefix + "copy"))
step("list", lambda: listing(prefix + "copy"))
step("presigned put", lambda: presigned_put(prefix + "presigned", data))
step("presigned get", lambda: same(presigned("get_object", "alpha", prefix + "presigned"), data))
step("form", lambda: form(prefix + "form", data))
step("put for deletion", lambda: put(prefix + "gone-1", b"1") and put(prefix + "gone-2", b"2") and None)
step("delete many", lambda: delete_many([prefix + "gone-1", prefix + "gone-2"]))
step("delete", lambda: s3.delete_object(Bucket="alpha", Key=prefix + "copy") and None)

step("denied get, other bucket", lambda: get("desk/seed", b"", "beta"))
step("denied put, other bucket", lambda: put("desk/new", b"x", "beta"))
step("denied get, other key", lambda: get("private/seed", b""))
step("denied put, other key", lambda: put("private/new", b"x"))
step("denied put, other action", lambda: put("readonly/new", b"x"))
step("denied delete, other action", lambda: s3.delete_object(Bucket="alpha", Key="readonly/seed"))
step("denied multipart", lambda: s3.create_multipart_upload(Bucket="alpha", Key="private/new"))
step("denied trailing checksum", lambda: put("private/new", b"x", ChecksumAlgorithm="CRC32"))
step("denied copy, other source", lambda: copy("alpha/private/seed", prefix + "stolen"))
step("denied copy, other target", lambda: copy("alpha/readonly/seed", "private/new"))
step("denied list", lambda: s3.list_objects_v2(Bucket="alpha", Prefix="private/"))
step("denied delete many", lambda: delete_many([prefix + "form", "private/seed"]))
step("denied presigned get", lambda: presigned("get_object", "alpha", "private/seed"))
step("denied presigned put", lambda: presigned("put_object", "beta", "desk/new", b"x"))
step("denied form", lambda: form("private/new", b"x"))
step("denied bucket", lambda: s3.create_bucket(Bucket="delta-by-agent"))
