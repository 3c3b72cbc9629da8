# Everything a newcomer needs: `make demo` and `make test` set themselves up.
# The build lives outside the checkout, so that RocksDB is compiled once per machine and not once per clone.

CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heliostat/target
export CARGO_TARGET_DIR
CARGO_FLAGS = --release --locked

.PHONY: help setup build demo test lint fuzz bench clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: ## install the Debian packages that are missing (says which)
	@scripts/setup

build: setup ## build the commands
	cargo build $(CARGO_FLAGS) --workspace --bins

demo: build ## load TPC-H lineitem at scale 1 and ask four questions
	@scripts/demo

test: ## run all tests, and each fuzz target for 10 seconds
	@scripts/setup test
	cargo nextest run $(CARGO_FLAGS) --workspace
	cargo test $(CARGO_FLAGS) --workspace --doc --quiet
	@scripts/fuzz 10

lint: ## rustfmt, clippy, cargo deny
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cargo deny --offline check licenses bans sources
	@scripts/advisories

fuzz: ## run each fuzz target for 5 minutes
	@scripts/setup fuzz
	@scripts/fuzz 300

bench: build ## measure against DuckDB at scale 10 (needs python3 with duckdb; half an hour)
	@benches/against-duckdb --scale 10

clean: ## remove the build
	cargo clean
