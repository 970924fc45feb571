# Every command that a person or CI runs.
CARGO ?= cargo
ARGS ?=

.PHONY: help demo test check scenario interop bench guard agreement doc fix build clean

help: ## Print this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## Build the three programs and the bank
	$(CARGO) build --locked --workspace --bins

demo: build ## Start the bank mesh and walk through it; ARGS=--once ends after the walk
	@./target/debug/bank-demo $(ARGS)

check: ## Formatting, lints, repo rules and unit tests: what to run while working
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --workspace --lib --bins --quiet
	$(CARGO) test --locked --package scenarios --test tidy --quiet

test: build ## Everything: formatting, lints, repo rules, unit, program and scenario tests; says how many ran
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@./tests/interop/prepare.sh
	@./tests/run.sh

scenario: build ## The whole mesh, promise by promise
	$(CARGO) test --locked --package scenarios --test scenarios -- --nocapture

interop: build ## Real applications in pods, one line each; needs root, nftables and what it names as missing
	@./tests/interop/prepare.sh
	@./tests/interop/spire.sh
	@./tests/interop/issuers.sh
	$(CARGO) test --locked --package scenarios --test interop

guard: build ## Instructions and allocations of one request in each sidecar against tests/guard/costs.json; needs valgrind; ARGS=--write takes new ones
	@command -v valgrind >/dev/null || { echo "guard: valgrind is not installed" >&2; exit 1; }
	$(CARGO) build --locked --release --package proxy --bin rondel-proxy
	RONDEL_GUARD_PROXY=$(CURDIR)/target/release/rondel-proxy $(CARGO) test --locked --package scenarios --test guard -- $(ARGS)

bench: ## Rondel beside Envoy, haproxy and nginx on the same work, one table; needs root and two cores; ARGS=--help
	$(CARGO) build --locked --release --workspace --bins
	@./tests/bench/prepare.sh
	$(CARGO) run --locked --release --quiet --package identity --example issuance
	$(CARGO) run --locked --release --quiet --package token --example verification
	$(CARGO) run --locked --release --quiet --package policy --example decisions
	@python3 tests/bench/bench.py $(ARGS)

agreement: ## Random policies and requests, compiled beside Cedar's own evaluator: a million cases; CASES=20000 for fewer
	CASES=$(or $(CASES),1000000) $(CARGO) test --locked --release --package policy --test decisions

doc: ## Rewrite the generated pages of docs/
	UPDATE=1 $(CARGO) test --locked --package scenarios --test tidy --quiet

fix: ## Format
	$(CARGO) fmt --all

clean: ## Remove what was built
	$(CARGO) clean
