import sys
import urllib.error
import urllib.request

try:
    with urllib.request.urlopen(sys.argv[1]) as res:
        print(res.status, dict(res.headers))
        print(res.read().decode())
except urllib.error.HTTPError as e:
    print(e)
    print(e.read().decode())
    sys.exit(1)
