# paddock's build. `make demo` and `make test` need nothing but Go, make and,
# for what is missing, apt with root.
SHELL   := /bin/bash
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
LDFLAGS := -s -w -X github.com/paddock-sandbox/paddock/internal/cli.Version=$(VERSION)
EXECD   := internal/engine/local/execdbin/bin/execd

export CGO_ENABLED = 0

.PHONY: build demo test test-unit test-race bench campaign generate lint clean execd runsc

# build makes bin/paddock, with execd inside.
build: execd
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/paddock ./cmd/paddock

# execd is compiled anew only by Go's own cache rules, and replaced only when it
# changed, so that paddock's build is cached too. Its goroutines start with small
# stacks (adaptivestackstart=0): ended ones are kept with their stacks, which is a
# few hundred KiB in every sandbox otherwise.
execd:
	@$(GO) build -trimpath -ldflags '-s -w -X runtime.godebugDefault=adaptivestackstart=0' -o $(EXECD).new ./cmd/execd
	@if cmp -s $(EXECD).new $(EXECD); then rm $(EXECD).new; else mv $(EXECD).new $(EXECD); fi

# runsc builds bin/runsc, gVisor's program, for sandboxes behind gVisor. It is a
# module of its own and no part of paddock; the first build takes a minute or two.
runsc:
	@scripts/runsc.sh bin/runsc

# demo shows code running in a sandbox.
demo:
	@scripts/deps.sh run
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

# test installs what the tests need and runs every test.
test:
	@scripts/deps.sh test
	@$(MAKE) --no-print-directory build
	@scripts/test.sh

# test-unit runs the Go tests of one machine without the long ones.
test-unit: execd
	$(GO) test -short ./...

test-race: execd
	CGO_ENABLED=1 $(GO) test -race -short ./...

# bench measures a create, a command and a burst beside `crun run`.
bench: build
	@scripts/deps.sh run
	@scripts/bench.sh

# campaign kills the server at random under load; SEED and MINUTES choose it.
campaign: build
	@scripts/deps.sh run
	$(GO) test -count=1 -timeout 0 -run TestCrashCampaign -v ./test/... -args -campaign.minutes=$(or $(MINUTES),10) -campaign.seed=$(or $(SEED),0)

# generate renews every generated file; a test fails when one is stale.
generate:
	$(GO) generate ./...

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...

clean:
	rm -rf bin $(EXECD)
