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

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/attache
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -pgo=test/bench/attache.pgo -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: build deps-demo ## Run the main job end to end and show the records
	@$(GO) run ./test/demo -attache $(BIN)/attache

.PHONY: quickstart
quickstart: build deps-demo ## Keep the servers of examples/quickstart running, to try it by hand
	@$(GO) run ./test/demo -attache bin/attache -serve

.PHONY: test
test: deps-test vault minio build ## Pass every test (race detector on)
	@MAKE="$(MAKE)" test/suites.sh unit fuzz-short compat-short aws-short demo bench-short

# Vault 1.13.0 is built once, about six minutes, and cached.
.PHONY: vault
vault:
	@test/servers/vault/build.sh

# MinIO is built once, about eight minutes, and cached.
.PHONY: minio
minio:
	@test/servers/minio/build.sh

.PHONY: unit
unit: ## Go tests of every package with the race detector
	@$(GO) vet $(PKGS)
	@ATTACHE_REQUIRE_SERVERS=1 ATTACHE_TEST_VAULT=$(CACHE)/bin/vault \
		$(GO) test -race -timeout 20m -json $(PKGS) | $(GO) run ./test/report

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

.PHONY: deps-demo
deps-demo:
	@test/deps.sh demo

.PHONY: deps-test
deps-test:
	@test/deps.sh test

.PHONY: clean
clean: ## Remove what was built; .cache stays
	rm -rf $(BIN)
