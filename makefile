# make run | make test | make bench | make help
.DEFAULT_GOAL := help
SHELL := /bin/sh

TOOLS := build/tools
UV := $(TOOLS)/bin/uv
UV_VERSION := 0.13.9
DENY_VERSION := 0.20.2

# The Lambda function and its layer are built for this processor: arm64 or x86_64.
ARCH ?= arm64
NATIVE_ARCH := $(subst aarch64,arm64,$(shell uname -m))
AWS_TOOLS := build/aws

.PHONY: help run tree test soak floods kill fuzz lint deny bench settings doors lock smoke clean aws bootstrap function-native \
  layer layer.build layer.package layer.deploy layer.test layer.test.arm64 layer.native \
  apigw apigw.package apigw.deploy apigw.delete logs local-lambda local-lambda.test conformance clients clients.light clients.lock

help: ## Show this list
	@grep -E '^[a-z0-9.-]+:.*## ' makefile | sed -E 's/:.*## /\t/' | expand -t 18

run: tree ## Build everything and serve http://127.0.0.1:8000/lambda/mcp/ (HOST, PORT, .env)
	@echo "building the server (the first time takes minutes)"
	cargo build --locked --release -p cli
	@exec target/release/code-interpreter serve $(if $(wildcard .env),--env-file .env)

tree: $(UV) ## Build the Python tree under build/
	@echo "preparing the Python tree"
	@cargo build --quiet -p layer
	@UV=$(UV) target/debug/build-layer tree

$(UV):
	@echo "installing uv $(UV_VERSION) under $(TOOLS)"
	@python3 -m venv $(TOOLS) || { echo "python3 has no venv module: install python3-venv" >&2; exit 1; }
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

test: tree aws ## Run all tests
	@echo "building and running the tests (the first time takes minutes)"
	@cargo build --quiet --workspace --bins
	@if command -v cargo-nextest >/dev/null; then cargo nextest run --workspace --profile ci; else cargo test --workspace -- --test-threads 2; fi

lint: ## rustfmt and clippy
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --workspace --bins --features cli/conformance -- -D warnings

conformance: tree ## The MCP conformance suite, in all protocol versions, against this server with the suite's tools
	@echo "building the server with the suite's tools"
	@cargo build --quiet -p cli --features conformance --bin conformance-server
	@UV=$(UV) python3 etc/clients/conformance.py --write

deny: $(TOOLS)/bin/cargo-deny ## Check licences, bans and sources of all dependencies
	$(TOOLS)/bin/cargo-deny check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	@echo "building cargo-deny $(DENY_VERSION) (takes minutes, once)"
	cargo install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)

layer: ## Build, upload and deploy the layer
	@$(MAKE) --no-print-directory layer.build layer.package layer.deploy

layer.build: bootstrap ## Build the Lambda layer for ARCH (arm64 or x86_64), with a table of its bytes
	@cargo build --quiet -p layer
	@UV=$(UV) target/debug/build-layer layer --arch $(ARCH) --bootstrap build/function/bootstrap

layer.package: aws ## Upload the layer
	etc/deploy.sh layer.package

layer.deploy: ## Make or renew the layer's stack
	etc/deploy.sh layer.deploy

layer.test: layer.native tree aws ## Unpack this machine's layer at its final place and use every package in it
	@cargo build --quiet -p homes
	@cargo build --quiet -p lambda --example local_gateway
	@etc/local_lambda.sh sh -c '\
	  layer/check_deployment.py "$$BASE_URL" layer/check.py && \
	  layer/check_deployment.py "$$BASE_URL" layer/check_install.py humanize && \
	  "$$PYTHON_TREE/python/bin/python3" -I -S -B layer/sweep.py "$$PYTHON_TREE" build/tree'

layer.test.arm64: ## Use every package of the arm64 layer under qemu-user
	@cargo build --quiet -p layer
	@etc/layer_under_qemu.sh

layer.native: function-native $(UV)
	@cargo build --quiet -p layer
	@UV=$(UV) target/debug/build-layer layer --arch $(NATIVE_ARCH) --bootstrap build/function-native/bootstrap

bootstrap: aws $(UV) ## Build the function's program for ARCH
	@echo "building the function for $(ARCH) (the first time takes minutes)"
	@$(UV) pip install --quiet --python $(AWS_TOOLS)/bin/python cargo-zigbuild==0.24.1 ziglang==0.15.2
	rustup target add $(subst arm64,aarch64,$(ARCH))-unknown-linux-gnu
	PATH="$$PWD/$(AWS_TOOLS)/bin:$$PATH" cargo zigbuild --profile lambda -p lambda --bin bootstrap \
	  --target $(subst arm64,aarch64,$(ARCH))-unknown-linux-gnu.2.34
	@mkdir -p build/function
	@cp target/$(subst arm64,aarch64,$(ARCH))-unknown-linux-gnu/lambda/bootstrap build/function/bootstrap

function-native:
	@echo "building the function for this machine (the first time takes minutes)"
	cargo build --locked --profile lambda -p lambda --bin bootstrap
	@mkdir -p build/function-native
	@cp target/lambda/bootstrap build/function-native/bootstrap

aws: $(AWS_TOOLS)/bin/sam

$(AWS_TOOLS)/bin/sam: $(UV)
	@echo "installing the SAM command line, cfn-lint and AWS's emulator under $(AWS_TOOLS)"
	@$(UV) venv --quiet --clear $(AWS_TOOLS)
	@$(UV) pip install --quiet --python $(AWS_TOOLS)/bin/python aws-sam-cli==1.170.0 cfn-lint==1.58.0

apigw: bootstrap ## Put the function behind API Gateway into your account
	@$(MAKE) --no-print-directory apigw.package apigw.deploy

apigw.package: aws ## Upload the function
	etc/deploy.sh apigw.package

apigw.deploy: ## Make or renew the function's stack
	etc/deploy.sh apigw.deploy

apigw.delete: ## Remove the function's stack
	etc/deploy.sh apigw.delete

logs: ## Follow the function's log
	@etc/deploy.sh logs

local-lambda: layer.native aws ## Serve the packaged function and layer under AWS's emulator (PORT, STAGE)
	@cargo build --quiet -p homes
	@cargo build --quiet -p lambda --example local_gateway
	@PORT=$${PORT:-8788} etc/local_lambda.sh

local-lambda.test: layer.native aws ## The smoke test against it
	@cargo build --quiet -p homes
	@cargo build --quiet -p lambda --example local_gateway
	@etc/local_lambda.sh sh -c './test_deployment.sh "$$BASE_URL"'

soak: tree ## 10,000 calls, honest and hostile: nothing may be left (takes minutes)
	SOAK_CALLS=10000 cargo test -p cli --test e2e soak -- --nocapture

floods: tree ## Eight floods at once against the release server: how late each is ended, what others wait, what it costs (takes minutes)
	MEASURE_FLOODS=1 cargo test --release -p cli --test e2e eight_floods -- --nocapture --test-threads 1

kill: tree ## Kill zygotes, the holder and spares at random in 200 rounds: nothing may be lost or left (takes minutes)
	KILL_ROUNDS=200 cargo test -p cli --test e2e killing_at_random -- --nocapture --test-threads 1

clients: tree ## Run real clients and write docs/clients.md (ONLY=mcp2,ts1 runs a part)
	@echo "building the server"
	@cargo build --quiet --release -p cli
	@UV=$(UV) python3 etc/clients/run.py --only "$(ONLY)"

clients.light: tree ## Run the clients that CI runs
	@cargo build --quiet -p cli
	@UV=$(UV) python3 etc/clients/run.py --light --server target/debug/code-interpreter

clients.lock: $(UV) ## Resolve the clients' environments anew (ONLY)
	@UV=$(UV) python3 etc/clients/run.py --lock --only "$(ONLY)"

# What cargo-fuzz sets, without what needs a nightly compiler. The crates are in safe Rust: no sanitizer is missed.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= frames refusal requirement
HOST_TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')

fuzz: ## Look for input that breaks what reads strangers' bytes (FUZZ_SECONDS for each target)
	@echo "building the fuzz targets (the first time takes minutes)"
	@RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml \
	  --target $(HOST_TRIPLE) --target-dir target/fuzz
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/$$target && echo "$$target, $(FUZZ_SECONDS) s" && \
	  target/fuzz/$(HOST_TRIPLE)/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=100000 -timeout=10 -rss_limit_mb=1024 \
	    -verbosity=0 -print_final_stats=1 -artifact_prefix=build/fuzz/$$target- build/fuzz/$$target fuzz/seeds/$$target || exit 1; \
	done

bench: tree ## Measure the release server beside a fresh interpreter
	cargo build --locked --release -p cli
	cargo bench -p cli --bench bench

settings: ## Print .env.example and the README table from the registry
	cargo run --quiet -p cli -- settings env > .env.example
	@python3 etc/update_readme.py

doors: ## Put the written differences between the doors into docs/doors.md
	UPDATE_DOORS=1 cargo test --quiet --workspace --test e2e -- --exact parity::the_differences_are_published_as_they_are

lock: $(UV) ## Resolve layer/requirements.in anew
	$(UV) pip compile layer/requirements.in --universal --python-version 3.11 --fork-strategy requires-python \
	  --only-binary :all: --generate-hashes --no-config --no-header --quiet -o layer/requirements.lock
	echo pip | $(UV) pip compile - --universal --python-version 3.11 --only-binary :all: --generate-hashes --no-config \
	  --no-header --no-annotate --quiet -o layer/pip.lock

smoke: ## Smoke-test a running server
	./test_deployment.sh http://127.0.0.1:8000

clean: ## Remove what was built
	rm -rf build target
