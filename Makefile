# Missing OS: build, run, test. `make` alone explains.
SHELL := /bin/bash
GO ?= go
VERSION ?= 0.4.0
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X missingos/srv/node.Version=$(VERSION) -X missingos/srv/node.Commit=$(COMMIT)
# The local three-node cluster: its state, and where its first node mounts (root: /dc; others: a directory of their own).
DIR ?= $(CURDIR)/.dc-local
NODES ?= 3
MOUNT ?= $(shell [ "$$(id -u)" = 0 ] && echo /dc || echo $(DIR)/dc)
TOOL := $(GO) tool -modfile=tests/tools/go.mod
# Packages where goroutines meet: their tests also run under the race detector.
RACE := ./srv/... ./consensus/... ./storage/... ./scheduler/... ./fs/...

.DEFAULT_GOAL := help
.PHONY: help deps build up down demo test race test-long lint gen bench bench-groups bench-peers clean

help: ## this text
	@echo "Missing OS $(VERSION): N Linux machines, one computer."
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  Variables: NODES=$(NODES) DIR=$(DIR) MOUNT=$(MOUNT)"

deps: ## install what a fresh machine lacks (fuse3 and the tools that the tests use) and fetch the modules
	@tests/tools/deps
	$(GO) mod download

build: ## bin/dcd and bin/dcctl, static, with version and commit
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/dcd ./cmd/dcctl

up: build ## start a three-node cluster on this machine, mounted at /dc
	bin/dcctl local up --nodes $(NODES) --dir $(DIR) --mount $(MOUNT)

down: build ## stop it (its data stay in DIR; `rm -rf` that to start afresh)
	bin/dcctl local down --dir $(DIR)

demo: build ## the main job on real input, across all five trees, with a node killed in the middle
	tests/demo/run

test: ## every test: real mounts, three-node clusters, simulation (about ten minutes on two cores)
	$(GO) vet ./...
	$(GO) test -timeout 20m ./...

race: ## the tests of the core packages under the race detector
	$(GO) test -race -timeout 20m $(RACE)

test-long: build ## chaos with real processes, long histories, more simulation, programs that people run (an hour)
	DC_LONG=1 $(GO) test -count=1 -tags long -timeout 120m ./tests/...
	tests/software/run bin

lint: ## gofumpt, vet, staticcheck, and the rules of the house
	@bad=$$($(TOOL) gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); if [ -n "$$bad" ]; then echo "not gofumpt'd:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(GO) test -count=1 ./tests/arch

gen: build ## regenerate protobuf code and man pages
	@mkdir -p bin/tools && GOBIN=$(CURDIR)/bin/tools $(GO) install -modfile=tests/tools/go.mod \
		google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc github.com/bufbuild/buf/cmd/buf
	PATH="$(CURDIR)/bin/tools:$$PATH" buf generate
	bin/dcctl help --man docs/man

bench: build ## operations a second through client and mount, beside the floor, in one run
	$(GO) run ./tests/bench $(BENCHFLAGS)

bench-groups: ## what a thousand idle groups cost: time to all leaders, processor, memory
	$(GO) build -o bin/bench-groups ./tests/bench/groups
	bin/bench-groups $(BENCHFLAGS)

# Both clients register a file "rpc.proto"; nothing here looks files up by name.
bench-peers: build ## the same load on three dcd and on three etcd servers in one run, and the ratios
	@tests/tools/deps peers
	cd tests/bench/peers && $(GO) build -ldflags '-X google.golang.org/protobuf/reflect/protoregistry.conflictPolicy=ignore' -o $(CURDIR)/bin/bench-peers .
	bin/bench-peers -bin bin $(BENCHFLAGS)

clean: down ## stop the local cluster and remove its data and the binaries
	rm -rf $(DIR) bin
