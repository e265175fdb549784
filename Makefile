# One word for each thing that people and CI do here. `make` alone lists them.

MACHINES ?= 2
LAB ?= nl
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/ci
# A shell's own ENV names a start-up file: only one given on the command line is meant for us.
ifneq ($(origin ENV),command line)
override ENV := $(TARGET)/lab-$(LAB).env
endif

# Some root shells lack the folders of nft and sshd.
export PATH := $(PATH):/usr/sbin:/sbin

DENY_VERSION := 0.20.2
CARGO_DEB_VERSION := 3.8.0
BUF_VERSION := 1.75.0
# The version is in the path, so that another one is fetched when it changes.
BUF_DIR := $(TARGET)/buf-$(BUF_VERSION)
BUF := $(BUF_DIR)/node_modules/.bin/buf
# All steps build the whole workspace in one profile, so that nothing is compiled twice.
CARGO_TEST := cargo test --locked --profile ci --workspace --quiet

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build demo bench bench-peers packages test test-long lab-up lab-down lint clean
.PHONY: prerequisites-lab prerequisites-test prerequisites-packages cargo-deb unit-tests promises test-packages

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## The binaries, in target/ci
	@# One test comes along: its presence settles the features of all crates as `make test` has them.
	cargo build --locked --profile ci --workspace --bins --test units

demo: prerequisites-lab build ## The story of one access, told by the real commands in a lab
	@$(BIN)/nightlatch-lab demo

bench: prerequisites-lab ## What docs/performance.md tells, measured (7 to 12 minutes) and written there; QUICK=1: 2 to 3 minutes, not written
	@# The release profile: what a build for tests does says little about what is installed.
	cargo build --locked --release --workspace --bins
	@$(TARGET)/release/nightlatch-bench $(if $(QUICK),--quick,--docs docs)

bench-peers: prerequisites-lab ## By hand: the same questions put to what people use today (about 14 minutes); QUICK=1: fewer runs, not written
	@bench/peers/prerequisites.sh $(TARGET)/peers
	cargo build --locked --release --workspace --bins
	@$(TARGET)/release/nightlatch-bench-peers --tools $(TARGET)/peers $(if $(QUICK),--quick,--docs docs)

packages: prerequisites-packages cargo-deb build ## The .deb files of agent, server and command line, in target/packages
	cargo build --locked --profile dist --bins -p nightlatch-agent -p nightlatch-server -p nightlatch-cli
	packaging/build.sh $(TARGET) dist 1 $(TARGET)/packages
	lintian --allow-root --fail-on error,warning $(TARGET)/packages/*.deb
	@ls -sh1 $(TARGET)/packages/*.deb

test: lint unit-tests test-packages promises ## Everything: lints, unit tests, packets, the lab, the demo

test-long: export NIGHTLATCH_LONG := 1
test-long: test ## The same with every bit, many more kills and longer waits: half an hour more

lab-up: prerequisites-lab build ## A lab that stays: MACHINES=2 LAB=nl ENV=FILE (where to describe it)
	@$(BIN)/nightlatch-lab up --name $(LAB) --machines $(MACHINES) --env $(abspath $(ENV)) --bin $(BIN)

lab-down: ## Removes every trace of a lab: LAB=nl
	@test -x $(BIN)/nightlatch-lab || $(MAKE) --no-print-directory build
	@$(BIN)/nightlatch-lab down --name $(LAB)

lint: prerequisites-test ## Format, clippy, dependencies, the API's shape, the documentation
	cargo fmt --all --check
	cargo clippy --locked --profile ci --workspace --all-targets -- -D warnings
	@cargo deny --version 2>/dev/null | grep -qxF 'cargo-deny $(DENY_VERSION)' || \
	    cargo install --locked cargo-deny --version $(DENY_VERSION) --target-dir $(TARGET)/cargo-deny
	cargo deny --locked --log-level error check -D unmatched-skip -D unnecessary-skip bans licenses sources
	@test -x $(BUF) || npm install --silent --no-fund --no-audit --prefix $(BUF_DIR) @bufbuild/buf@$(BUF_VERSION)
	$(BUF) lint
	@# Libraries only: what stands above a binary's arguments is its --help, written for the terminal.
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --profile ci --workspace --lib --no-deps --quiet

unit-tests: prerequisites-test
	$(CARGO_TEST) --no-run
	$(CARGO_TEST) --lib --bins

# The integration tests of the crates, packets first, then the lab's. Each lab test has a lab of its own.
promises: unit-tests
	cargo build --locked --profile ci --workspace --all-targets
	@$(BIN)/nightlatch-lab sweep
	$(CARGO_TEST) $(if $(NIGHTLATCH_LONG),--no-fail-fast) --test '*' -- --test-threads=2 $(if $(NIGHTLATCH_LONG),--include-ignored --show-output)
	$(BIN)/nightlatch-lab demo

# What the guests install: the binaries of the tests as packages, and the agent's once more as an upgrade.
test-packages: prerequisites-test cargo-deb
	cargo build --locked --profile ci --workspace --all-targets
	packaging/build.sh $(TARGET) ci 1 $(BIN)/packages
	packaging/build.sh $(TARGET) ci 2 $(BIN)/packages/upgrade nightlatch-agent
	lintian --allow-root --fail-on error,warning $(BIN)/packages/*.deb

cargo-deb:
	@cargo deb --version 2>/dev/null | grep -qxF '$(CARGO_DEB_VERSION)' || \
	    cargo install --locked cargo-deb --version $(CARGO_DEB_VERSION) --target-dir $(TARGET)/cargo-deb

clean: ## Removes what was built
	cargo clean

prerequisites-lab:
	@tests/prerequisites.sh lab

prerequisites-test:
	@tests/prerequisites.sh test

prerequisites-packages:
	@tests/prerequisites.sh packages
