import sys

import httpx

res = httpx.get(sys.argv[1])
print(res.status_code, dict(res.headers))
print(res.text)
res.raise_for_status()
with httpx.stream("GET", sys.argv[1].replace("/echo", "/sse")) as res:
    for line in res.iter_lines():
        print(line)
