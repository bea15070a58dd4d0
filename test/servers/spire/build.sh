#!/bin/sh
# Builds the SPIRE server and agent that TestRealSPIRE (control/issuer/spire)
# runs against.
#
# 1.9.0 is of the same time as spire-api-sdk v1.9.0, whose calls are the same in
# later releases. It is old: for tests on loopback only, never to be shipped. A
# first build takes about eight minutes of CPU and needs gcc (SQLite); a stamp
# makes the next call free.
set -eu
version=v1.9.0
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
bin="$root/.cache/bin"
mkdir -p "$bin"
for p in spire-server spire-agent; do
	if [ -x "$bin/$p" ] && [ "$(cat "$bin/$p.version" 2>/dev/null)" = "$version" ]; then
		continue
	fi
	cd "$here"
	GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=1 nice -n 19 go build -trimpath -ldflags '-s -w' -o "$bin/$p" "github.com/spiffe/spire/cmd/$p"
	echo "$version" >"$bin/$p.version"
done
echo "$bin/spire-server $bin/spire-agent"
