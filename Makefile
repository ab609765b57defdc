# `make help` lists what can be made. Everything installs the packages that it needs (Debian 12, a Rust toolchain given).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Network namespaces need root. Building does not: only what is built is run by sudo.
ifneq ($(shell id -u),0)
SUDO := sudo --preserve-env=KEEP,RUST_LOG
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := sudo -E
endif

.PHONY: help
help: ## This list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

.PHONY: demo
demo: build ## Move three nodes under load, and see a fourth go back. KEEP=1 leaves it running.
	$(SUDO) target/debug/demo

.PHONY: test
test: packages ## Everything that must hold: format, lints, build, all suites, openapi.json and .sqlx.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --workspace --bins
	scripts/sqlx-prepare --check
	scripts/test

.PHONY: conformance
conformance: packages ## Behaviour by behaviour, what a Service means to a packet; ends with a table of all of them.
	cargo test --package nftfleet-tests --test conformance

.PHONY: switchover
switchover: build ## The move of a node, from every mode and through everything that may go wrong, as a matrix.
	cargo test --package nftfleet-tests --test switchover

.PHONY: soak
soak: packages ## Random changes and clients that connect all the time, each answer judged. MINUTES=10 by default.
	MINUTES=$(or $(MINUTES),10) cargo test --package nftfleet-tests --test soak -- --nocapture

.PHONY: spread
spread: packages ## A million first packets to each of ten Services: none lost, every endpoint its share.
	PACKETS=1000000 cargo test --package nftfleet-tests --test dataplane -- --nocapture million

BENCH := cargo bench --package nftfleet-tests --bench dataplane --

.PHONY: bench
bench: packages ## The data plane beside kube-proxy's: times, memory, latency. Some 15 minutes; writes docs/performance.svg.
	$(BENCH) --plot docs/performance.svg

.PHONY: bench-quick
bench-quick: packages ## The same on smaller clusters, in less than two minutes. Writes into target/bench/ alone.
	$(BENCH) --quick

.PHONY: bench-end-to-end
bench-end-to-end: packages ## The shipped agent against 30,000 Services: start, memory, idle, latency. QUICK=1 for 3,000.
	cargo build --release --package nftfleet-agent
	cargo bench --package nftfleet-tests --bench end_to_end

.PHONY: bench-move
bench-move: packages ## How long each step of a move takes at 30,000 Services of 10 endpoints. SERVICES=3000 for fewer; OLD_RULES=1 with as many old rules.
	cargo build --release --package nftfleet-agent
	SERVICES=$(or $(SERVICES),30000) cargo test --release --package nftfleet-tests --test switchover phases:: -- --nocapture

.PHONY: coverage
coverage: packages ## Which lines of the pure code the unit tests run.
	scripts/coverage

.PHONY: test-vm
test-vm: ## The data plane's suites on Debian 12's stock kernel, in qemu without KVM. Takes some ten minutes.
	@scripts/install-packages vm
	scripts/test-vm

.PHONY: build
build: packages ## Build the server, the agent and the demo.
	cargo build --workspace --bins

.PHONY: openapi
openapi: packages ## Write web-api-spec/openapi.json anew.
	cargo run --quiet --package nftfleet-web-api-spec --bin write-openapi web-api-spec/openapi.json

.PHONY: sqlx
sqlx: packages ## Write .sqlx anew, after a change of a query or a migration.
	scripts/sqlx-prepare

.PHONY: packages
packages: ## Install the Debian packages that are missing.
	@scripts/install-packages
