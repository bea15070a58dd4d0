import sys

import requests

url = sys.argv[1]
res = requests.get(url)
print(res.status_code, dict(res.headers))
print(res.text)
res.raise_for_status()
res = requests.post(url, json={"from": "requests"})
print(res.status_code, res.text)
with requests.get(url.replace("/echo", "/sse"), stream=True) as res:
    for line in res.iter_lines():
        print(line.decode())
