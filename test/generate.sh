#!/usr/bin/env bash
# Writes what is generated from api/: the stubs of the .proto files, and (by
# controller-gen) deep copies and CRDs. The result is kept in git.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin
mkdir -p "$bin"
command -v protoc >/dev/null || { echo "installing protobuf-compiler"; apt-get install -y -qq protobuf-compiler >/dev/null; }
(cd tools && go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc)
PATH=$bin:$PATH protoc --go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative api/controlpb/control.proto
PATH=$bin:$PATH protoc --go_out=. --go_opt=paths=source_relative audit/auditpb/audit.proto

(cd tools && go build -o "$bin/" sigs.k8s.io/controller-tools/cmd/controller-gen)
"$bin/controller-gen" object paths=./api/v1alpha1 paths=./api/crd
# Dangerous types: spec.tracing.sampleRatio is a fraction.
"$bin/controller-gen" crd:allowDangerousTypes=true paths=./api/crd output:crd:dir=charts/attache/files/crds
