# Everything a newcomer needs: `make demo` and `make test` set themselves up.
# The build lives outside the checkout, so that RocksDB is compiled once per machine and not once per clone.

CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heliostat/target
export CARGO_TARGET_DIR
CARGO_FLAGS = --release --locked

.PHONY: help setup build demo test lint fuzz bench vm vm-test vm-pair-test clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: ## install the Debian packages that are missing (says which)
	@scripts/setup

build: setup ## build the commands
	cargo build $(CARGO_FLAGS) --workspace --bins

demo: build ## load TPC-H lineitem at scale 1 and ask four questions
	@scripts/demo

test: ## run all tests, TPC-H between two network namespaces as well, each fuzz target for 10 seconds, and the checks in the soft-RoCE VM
	@scripts/setup test
	cargo nextest run $(CARGO_FLAGS) --workspace
	cargo test $(CARGO_FLAGS) --workspace --doc --quiet
	scripts/in-namespaces cargo nextest run $(CARGO_FLAGS) --workspace -E 'binary(tpch)'
	@scripts/fuzz 10
	@VM_TIMEOUT=1200 hw/vm/vm test hw/vm/suite

lint: ## rustfmt, clippy, cargo deny
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cargo fetch --locked --quiet # for all platforms, which is what cargo deny looks at
	cargo deny --offline check licenses bans sources
	@scripts/advisories

fuzz: ## run each fuzz target for 5 minutes
	@scripts/setup fuzz
	@scripts/fuzz 300

bench: build ## measure against DuckDB at scale 10 (needs python3 with duckdb; half an hour)
	@benches/against-duckdb --scale 10

# Commands for the VM are taken as they stand: CMD='echo $HOME' is the shell's $HOME, not make's.
CMD = hw/vm/suite
SERVER = ibv_rc_pingpong -d rxe0 -g 1
CLIENT = ibv_rc_pingpong -d rxe0 -g 1 10.77.0.1
as_is = '$(subst ','\'',$(value $(1)))'

vm: ## a shell in the soft-RoCE development VM (docs/development-vm.md)
	@hw/vm/vm shell

vm-test: ## run hw/vm/suite, or CMD="...", in the VM
	@hw/vm/vm test $(call as_is,CMD)

vm-pair-test: ## two VMs: SERVER="..." in one, CLIENT="..." in the other
	@hw/vm/vm pair $(call as_is,SERVER) $(call as_is,CLIENT)

clean: ## remove the build
	cargo clean
