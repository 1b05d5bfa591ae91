# The commands of this repository. `make` alone lists them.

SHELL := /bin/bash
export PATH := $(CURDIR)/tools/node_modules/.bin:$(PATH)
# npm trusts CAs of its own; behind a proxy of a company it needs the machine's.
export NODE_EXTRA_CA_CERTS ?= $(wildcard /etc/ssl/certs/ca-certificates.crt)

GO       ?= go
CACHE    := .cache
LINT     := $(CACHE)/bin/golangci-lint
VULNCHECK := $(CACHE)/bin/govulncheck
NPM_TOOLS := tools/node_modules/.package-lock.json
FUZZTIME ?= 10s

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## Build bin/bulla
	@GO="$(GO)" REVISION="$$(git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null || true)" deploy/build.sh bin/bulla

.PHONY: demo
demo: ## Show the main job on a SoftHSM token, then keep serving
	@scripts/install.sh demo
	@$(MAKE) --no-print-directory build
	@bin/bulla demo $(DEMOFLAGS)

.PHONY: test
test: ## Everything: lint, unit, race, fuzz seeds, end-to-end, interop
	@scripts/install.sh test
	@$(MAKE) --no-print-directory lint build
	$(GO) vet ./...
	CGO_ENABLED=0 $(GO) build -o $(CACHE)/bulla-nocgo ./cmd/bulla
	@$(MAKE) --no-print-directory manifests vuln
	$(GO) test -race -timeout 20m ./...
	$(GO) test -run 'Memory|Alloc' ./encrypter/... # the race detector changes what they measure

.PHONY: manifests
manifests: build ## Hold the Kubernetes manifests to their types and to the service
	$(GO) vet -C deploy/check ./...
	BULLA_BINARY=$(CURDIR)/bin/bulla $(GO) test -C deploy/check ./...

.PHONY: vuln
vuln: $(VULNCHECK) ## Known vulnerabilities in what the service is built from
	@scripts/vuln.sh $(VULNCHECK)

.PHONY: sbom
sbom: build ## Write the bill of materials of bin/bulla beside it
	bin/bulla version --sbom > bin/bulla.cdx.json

.PHONY: interop
interop: ## Other people's JOSE libraries open every kind of token; writes docs/interop.md
	@scripts/install.sh interop
	@$(MAKE) --no-print-directory build
	BULLA_INTEROP_WRITE=1 BULLA_BINARY=$(CURDIR)/bin/bulla $(GO) test -count=1 -timeout 20m -v ./interop

.PHONY: lint
lint: $(LINT) $(NPM_TOOLS) ## Formatting, golangci-lint, the API's form, compatibility and generated code
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt -w these:"; echo "$$out"; exit 1; }
	$(LINT) run ./...
	buf lint
	buf format -d --exit-code
	@scripts/breaking.sh
	@scripts/generate-check.sh

.PHONY: breaking
breaking: $(NPM_TOOLS) ## Compare the API with that of REF (default: the last release)
	@scripts/breaking.sh

.PHONY: generate
generate: $(NPM_TOOLS) ## Generate the Go code of the API
	buf generate

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME each
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## Speed: CPU per operation and its ratio to the floor, interleaved
	@scripts/install.sh bench
	$(GO) run ./internal/bench

.PHONY: bench-scale
bench-scale: ## Scale: a thousand, a hundred thousand and a million registered clients, on both stores
	@scripts/install.sh bench-scale
	$(GO) run ./internal/bench/scale $(SCALEFLAGS)

.PHONY: soak
soak: ## The long runs: load, every token opened; overload; the fault table; a fleet; a TPM; a build from nothing; a minute of each fuzz target
	@scripts/install.sh soak
	BULLA_SOAK=1 $(GO) test -p 1 -count=1 -timeout 60m -v -run 'TestSoak|TestFaults|TestFleet|TestOverload|TestTwoBuilds' ./e2e/... ./kms/pkcs11 ./deploy
	@scripts/fuzz.sh 60s

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin $(CACHE) tools/node_modules interop/node/node_modules examples/node/node_modules

$(LINT): tools/go.mod tools/go.sum
	@echo "building golangci-lint (a few minutes, once)"
	@mkdir -p $(@D)
	$(GO) build -modfile=tools/go.mod -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(VULNCHECK): tools/vuln/go.mod tools/vuln/go.sum
	@mkdir -p $(@D)
	$(GO) build -modfile=tools/vuln/go.mod -o $@ golang.org/x/vuln/cmd/govulncheck

# What npm writes last: an installation that was cut short is made anew.
$(NPM_TOOLS): tools/package-lock.json
	npm ci --prefix tools --no-audit --no-fund --ignore-scripts
	@touch $@
