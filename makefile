# make run | make test | make bench | make help
.DEFAULT_GOAL := help
SHELL := /bin/sh

TOOLS := build/tools
UV := $(TOOLS)/bin/uv
UV_VERSION := 0.13.9
DENY_VERSION := 0.20.2

.PHONY: help run tree test soak lint deny bench settings lock smoke clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' makefile | sed -E 's/:.*## /\t/' | expand -t 12

run: tree ## Build everything and serve http://127.0.0.1:8000/lambda/mcp/ (HOST, PORT)
	@echo "building the server (the first time takes minutes)"
	cargo build --release -p cli
	@exec target/release/code-interpreter serve

tree: $(UV) ## Build the Python tree under build/
	@echo "preparing the Python tree"
	@cargo build --quiet -p layer
	@UV=$(UV) target/debug/build-layer tree

$(UV):
	@echo "installing uv $(UV_VERSION) under $(TOOLS)"
	@python3 -m venv $(TOOLS) || { echo "python3 has no venv module: install python3-venv" >&2; exit 1; }
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

test: tree ## Run all tests
	@echo "building and running the tests (the first time takes minutes)"
	@if command -v cargo-nextest >/dev/null; then cargo nextest run --workspace --profile ci; else cargo test --workspace -- --test-threads 2; fi

lint: ## rustfmt and clippy
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

deny: $(TOOLS)/bin/cargo-deny ## Check licences, bans and sources of all dependencies
	$(TOOLS)/bin/cargo-deny check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	@echo "building cargo-deny $(DENY_VERSION) (takes minutes, once)"
	cargo install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)

soak: tree ## 10,000 calls, honest and hostile: nothing may be left (takes minutes)
	SOAK_CALLS=10000 cargo test -p cli --test e2e soak -- --nocapture

bench: tree ## Measure the release server beside a fresh interpreter
	cargo build --release -p cli
	cargo bench -p cli --bench bench

settings: ## Print .env.example and the README table from the registry
	cargo run --quiet -p cli -- settings env > .env.example
	@python3 etc/update_readme.py

lock: $(UV) ## Resolve layer/requirements.in anew
	$(UV) pip compile layer/requirements.in --universal --python-version 3.11 --fork-strategy requires-python \
	  --only-binary :all: --generate-hashes --no-config --no-header --quiet -o layer/requirements.lock

smoke: ## Smoke-test a running server
	./test_deployment.sh http://127.0.0.1:8000

clean: ## Remove what was built
	rm -rf build target
