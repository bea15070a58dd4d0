# Requests that no SDK makes. It prints one line of JSON a step.
import hashlib, http.client, json, os, ssl, urllib.parse
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

HOST = os.environ["ENDPOINT"].removeprefix("https://")
KEYS = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
CRLF = "\r\n"


def connect():
    proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
    c = http.client.HTTPSConnection(proxy.hostname, proxy.port, timeout=20, context=ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"]))
    c.set_tunnel(HOST, 443)
    return c


def signed(method, path, headers):
    class Auth(S3SigV4Auth):
        def payload(self, request):
            return headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")

        def _should_sha256_sign_payload(self, request):
            return False

    r = AWSRequest(method, "https://" + HOST + path, headers={k: v for k, v in headers.items() if k != "x-amz-content-sha256"})
    Auth(KEYS, "s3", "us-east-1").add_auth(r)
    return dict(r.headers.items())


def send(name, method, path, headers, body, change=None):
    r = {"step": name}
    h = signed(method, path, headers)
    if change:
        change(h)
    c = connect()
    try:
        c.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        h.setdefault("Host", HOST)
        for k, v in h.items():
            c.putheader(k, v)
        c.endheaders()
        try:
            c.send(body.encode())
        except OSError:
            pass  # refused before the body was read: there is an answer
        a = c.getresponse()
        text = a.read().decode(errors="replace")
        if a.status >= 300:
            r["error"] = "%d %s" % (a.status, text)
    except Exception as e:
        r["error"] = "no answer: %s: %s" % (type(e).__name__, e)
    print(json.dumps(r), flush=True)
    c.close()


def chunked(name, body, length, trailer="x-amz-checksum-crc32", mode="STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
    path = "/alpha/" + os.environ["PREFIX"] + "malformed"
    headers = {"x-amz-content-sha256": mode, "x-amz-decoded-content-length": str(length), "content-encoding": "aws-chunked", "content-length": str(len(body))}
    if trailer:
        headers["x-amz-trailer"] = trailer
    send(name, "PUT", path, headers, body)


good = "3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n"
chunked("good chunks", good, 3)
chunked("refused size that is no number", good.replace("3\r\nabc", "zz\r\nabc"), 3)
chunked("refused chunk longer than its size", good.replace("3\r\nabc", "2\r\nabc"), 3)
chunked("refused decoded length too large", good, 5)
chunked("refused decoded length too small", good, 2)
chunked("refused trailer of another name", good.replace("crc32:", "crc32c:"), 3)
chunked("refused no last chunk", "3\r\nabc\r\n", 3)
chunked("refused bytes after the end", good + "more", 3)
chunked("denied unsigned chunks where signed ones were promised", good, 3, None, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
chunked("refused trailer that is wrong", good.replace("NSRBwg==", "AAAAAA=="), 3)

path = "/alpha/" + os.environ["PREFIX"] + "malformed"
digest = hashlib.sha256(b"other").hexdigest()
send("refused hash of another body", "PUT", path, {"x-amz-content-sha256": digest, "content-length": "3"}, "abc")


def two(h):
    h["authorization"] = h["Authorization"]


send("refused length of 5 TiB", "PUT", path, {"content-length": str(5 << 40)}, "abc")
send("denied another Host", "GET", path, {}, "", lambda h: h.update(Host="other." + HOST))
send("denied two signatures, header and query", "GET", path + "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + os.environ["AWS_ACCESS_KEY_ID"], {}, "")
send("denied two signatures", "GET", path, {}, "", two)
send("session token of someone's is taken off", "GET", path + "?X-Amz-Security-Token=abc", {}, "")
