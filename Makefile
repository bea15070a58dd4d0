# Attaché: `make help` lists the targets. What a target needs it installs or
# builds by itself, cached under .cache/.

SHELL      := /bin/bash -o pipefail
CACHE      := $(CURDIR)/.cache
BIN        := $(CURDIR)/bin
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO         ?= go
FUZZTIME   ?= 20s
LDFLAGS    := -s -w -X github.com/attache-dev/attache/internal/version.version=$(VERSION)
# The cache holds npm trees and other modules; ./... must not walk into it.
PKGS       := ./...
# Packages whose tests start an API server (they import test/cluster): the
# suite cluster-short has them, and unit all others, so that none runs twice.
CLUSTER_PKGS = $$($(GO) list -test -f '{{if .ForTest}}{{.ForTest}} {{join .Deps " "}} {{end}}' $(PKGS) | awk '/attache\/test\/cluster /{print $$1}' | sort -u)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/attache, bin/attache-sidecar and bin/attache-control
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -pgo=test/bench/attache.pgo -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: build deps-demo ## Run the main job end to end and show the records
	@rm -rf $(CACHE)/demo
	@$(GO) run ./test/demo -attache $(BIN)/attache -records $(CACHE)/demo/records

.PHONY: quickstart
quickstart: build deps-demo ## Keep the servers of examples/quickstart running, to try it by hand
	@$(GO) run ./test/demo -attache bin/attache -serve

.PHONY: test
test: deps-test vault minio otelcol cluster-api build ## Pass every test (race detector on)
	@MAKE="$(MAKE)" test/suites.sh unit cluster-short fuzz-short compat-short aws-short demo ui-short bench-short audit-short

# Vault 1.13.0 is built once, about six minutes, and cached.
.PHONY: vault
vault:
	@test/servers/vault/build.sh

# MinIO is built once, about eight minutes, and cached.
.PHONY: minio
minio:
	@test/servers/minio/build.sh

# SPIRE 1.9.0 is built once, about eight minutes, and cached; `make test` has its
# test too once it is there.
.PHONY: spire
spire: cluster-api ## The control plane below a real SPIRE server
	@test/servers/spire/build.sh
	@$(GO) test -count=1 -run 'TestRealSPIRE|TestIssuerBelowSPIRE' -v ./control/issuer/spire ./cmd/attache-control

# promtool is built once, some minutes, and cached; `make test` uses it once it is there.
.PHONY: rules
rules: ## Alerts and dashboards, by Prometheus' own promtool
	@test/rules/promtool/build.sh
	@$(GO) test -count=1 ./test/rules

# etcd, kube-apiserver, kubectl and Helm are built once from their modules,
# about nine minutes, and cached.
.PHONY: cluster-api
cluster-api:
	@test/cluster/build.sh api

.PHONY: cluster-tools
cluster-tools: ## Build every program of a Kubernetes node, for e2e
	@test/deps.sh cluster
	@test/cluster/build.sh all

# The OpenTelemetry Collector 0.165.0 is built once, about two minutes, and
# cached.
.PHONY: otelcol
otelcol:
	@test/servers/otelcol/build.sh

.PHONY: audit
audit: otelcol minio ## Everything that records must survive: kills, outages, a real collector, millions of records; ClickHouse (half a gigabyte from npm)
	@$(GO) run ./test/audit

.PHONY: audit-short
audit-short: ## The short form of audit, part of test
	@$(GO) run ./test/audit -short

.PHONY: e2e
e2e: cluster-tools minio build ## A real Kubernetes node: install the chart and run every case (root)
	@$(GO) run ./test/k8s -bin $(BIN) $(E2EFLAGS)

.PHONY: images
images: ## Pack the cluster's images for amd64 and arm64 into bin/images, without a registry
	@$(GO) run ./internal/release/pack -version $(VERSION) -out $(BIN)/images

.PHONY: dockerfile
dockerfile: ## Build the Dockerfile by buildah for amd64 and arm64, twice, without a registry (root)
	@test/dockerfile/build.sh

.PHONY: unit
unit: ## Go tests of every package that needs no cluster, with the race detector
	@$(GO) vet $(PKGS)
	@ATTACHE_REQUIRE_SERVERS=1 ATTACHE_TEST_VAULT=$(CACHE)/bin/vault \
		$(GO) test -race -timeout 20m -json $$($(GO) list $(PKGS) | grep -vxF "$(CLUSTER_PKGS)") | $(GO) run ./test/report

.PHONY: cluster-short
cluster-short: cluster-api ## Go tests that start a real Kubernetes API server, with the race detector
	@ATTACHE_REQUIRE_CLUSTER=1 \
		$(GO) test -race -timeout 20m -json $(CLUSTER_PKGS) | $(GO) run ./test/report

.PHONY: lint
lint: ## gofmt, vet, staticcheck, the style and import rules of test/arch
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "run gofmt -w on:"; echo "$$out"; exit 1; fi
	@$(GO) vet $(PKGS)
	@GOOS=darwin $(GO) vet ./cmd/... 
	@mkdir -p $(CACHE)/bin
	@cd tools && $(GO) build -o $(CACHE)/bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	@$(CACHE)/bin/staticcheck $(PKGS)
	@$(GO) test ./test/arch
	@echo "lint passed"

.PHONY: generate
generate: ## Write what is generated from api/: protobuf stubs, deep copies, CRDs
	@test/generate.sh

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (20s) each
	@test/fuzz.sh $(FUZZTIME)

.PHONY: fuzz-short
fuzz-short: ## Run every fuzz target for 20 inputs
	@test/fuzz.sh 20x

.PHONY: compat
compat: build deps-test ## Unchanged real clients through every front door; writes docs/compatibility.md
	@$(GO) run ./test/compat -attache $(BIN)/attache -write docs/compatibility.md

.PHONY: compat-short
compat-short: build deps-test ## A short form of compat
	@$(GO) run ./test/compat -attache $(BIN)/attache -short

.PHONY: aws
aws: build minio ## Unchanged AWS clients without keys, against MinIO; stolen sessions; bad input
	@test/deps.sh aws
	@$(GO) run ./test/aws -attache $(BIN)/attache

.PHONY: aws-short
aws-short: build minio ## A short form of aws
	@test/deps.sh aws
	@$(GO) run ./test/aws -attache $(BIN)/attache -short

.PHONY: ui
ui: build deps-demo ## The review page in a real browser; needs the records of make e2e (root), or UIFLAGS=-without-e2e
	@test/deps.sh ui
	@$(GO) run ./test/ui -attache $(BIN)/attache $(UIFLAGS)

.PHONY: ui-short
ui-short: build deps-demo ## A short form of ui, over the records that demo left within the hour; else it runs demo
	@test/deps.sh ui
	@$(GO) run ./test/ui -attache $(BIN)/attache -short -demo $(CACHE)/demo/records

.PHONY: bench
bench: build ## Measure against peers in one interleaved run
	@test/deps.sh bench
	@$(GO) run ./test/bench -attache $(BIN)/attache -out $(CACHE)/bench/latest.json

.PHONY: bench-aws
bench-aws: build ## Measure calls to AWS: the SDK signing alone, behind nginx, and Attaché signing
	@test/deps.sh bench
	@$(GO) run ./test/bench aws -attache $(BIN)/attache -out $(CACHE)/bench/aws.json

.PHONY: bench-short
bench-short: build ## One scenario of bench for a moment: does it still measure?
	@$(GO) run ./test/bench -attache $(BIN)/attache -out $(CACHE)/bench/short.json -for 200ms -rounds 1 -targets direct,goproxy,attache -only "1k h1 c32" -goals=false

.PHONY: bench-idle
bench-idle: ## 10,000 idle connections through the real sidecar: resident memory (needs root)
	@ATTACHE_TEST_IDLE=10000 ATTACHE_REQUIRE_SERVERS=1 $(GO) test ./test/sidecar -run '^TestIdle$$' -count 1 -v | grep -E 'idle connections|^(ok|FAIL|---)|SKIP'

.PHONY: bench-admission
bench-admission: ## 500 admissions a second at the webhook's handler, for 10 s; fails above 5 ms at 99 %
	@ATTACHE_BENCH_ASSERT=1 $(GO) test -run '^$$' -bench Admissions500 -benchtime 1x ./webhook/server

.PHONY: deps-demo
deps-demo:
	@test/deps.sh demo

.PHONY: deps-test
deps-test:
	@test/deps.sh test

.PHONY: clean
clean: ## Remove what was built; .cache stays
	rm -rf $(BIN)
