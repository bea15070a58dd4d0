#!/bin/sh
# Builds the OpenTelemetry Collector that the audit tests send to, from its Go
# modules (Apache-2.0), as a process of its own. A stamp makes the next call
# free.
set -eu
version=v0.165.0
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out="$root/.cache/bin/otelcol"
if [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version" ]; then
	echo "$out"
	exit 0
fi
mkdir -p "$root/.cache/bin"
cd "$here"
GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0 go build -o "$out" .
echo "$version" >"$out.version"
echo "$out"
