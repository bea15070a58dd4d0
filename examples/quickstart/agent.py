"""An agent as anybody would write it. It knows nothing of Attaché.

It calls three APIs with the standard library and prints what it gets. Of
credentials it knows one variable, NOTES_API_KEY, as the vendor's manual says.
"""

import json
import os
import sys
import urllib.error
import urllib.request


def call(method, url, headers=None, body=None):
    """Make a call; return status, headers and body, also of a refusal."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            result = answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refusal:
        result = refusal.code, dict(refusal.headers), refusal.read()
    transcript = os.environ.get("AGENT_TRANSCRIPT")
    if transcript:
        with open(transcript, "a", encoding="utf-8") as f:
            f.write(json.dumps([method, url, result[0], result[1], result[2].decode("latin-1")]) + "\n")
    return result


def show(method, url, **more):
    """Make a call and print one line about it."""
    status, headers, body = call(method, url, **more)
    text = body.decode("utf-8", "replace").strip()
    if "problem+json" in headers.get("Content-Type", ""):
        text = json.loads(text)["detail"]
    print(f"{method:4} {url}\n     {status} {text}", flush=True)
    return status


def main():
    key = {"X-Api-Key": os.environ.get("NOTES_API_KEY", "none")}
    statuses = [
        show("GET", "https://tickets.attache.example/v1/tickets/7"),
        show("GET", "https://reports.attache.example/v1/summary"),
        show("POST", "https://notes.attache.example/v1/notes", headers=key, body={"text": "ticket 7 is about the printer"}),
    ]
    return 0 if all(s < 400 for s in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
