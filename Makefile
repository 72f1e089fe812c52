# Everything goes through the lab crate (`lab/run help`); the targets are its commands.

# Where `make install` and `make installcheck` find PostgreSQL, as with any extension.
PG_CONFIG ?= pg_config

LAB = lab/run

.DEFAULT_GOAL := help
.PHONY: help demo test matrix package chaos soak up down setup build install installcheck bench reference lint fmt clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | awk '{ t = $$1; $$1 = ""; printf "  make %-13s%s\n", t, $$0 }'

demo: ## see it work: throwaway PostgreSQL and nats-server, a few transactions, what arrived
	@$(LAB) demo

test: ## formatting, clippy, unit tests, pg_regress, end-to-end tests, two minutes of chaos, PostgreSQL 18
	@$(LAB) test

matrix: ## build for and test in each PostgreSQL that Debian carries: 13, 15, 17, 18 (MAJORS=13,18 for some)
	@$(LAB) matrix $(if $(MAJORS),--majors $(MAJORS))

package: ## Debian packages and the PGXN archive, in target/package/ (MAJORS=15,18; TRY=1 tries them in a clean Debian)
	@$(LAB) package $(if $(MAJORS),--majors $(MAJORS)) $(if $(TRY),--try)

chaos: ## let faults strike while transactions are written, and compare (SEED=n MINUTES=m)
	@$(LAB) install
	@$(LAB) chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

soak: ## an hour at a steady rate, with the worker's memory watched (MINUTES=m)
	@$(LAB) install
	@$(LAB) soak $(if $(MINUTES),--minutes $(MINUTES))

up: ## leave a throwaway PostgreSQL and nats-server running; `. target/lab/env` says where
	@$(LAB) up

down: ## stop what `make up` started
	@$(LAB) down

setup: ## install what is missing on this machine (every target that needs it does this first)
	@$(LAB) setup

build: ## build the extension and install it into the throwaway PostgreSQL
	@$(LAB) install

install: ## build the extension and install it into the PostgreSQL of PG_CONFIG=...
	@$(LAB) install --pg-config $(PG_CONFIG)

installcheck: ## run pg_regress against the server that PGHOST, PGPORT and PGUSER name
	@$(LAB) installcheck --pg-config $(PG_CONFIG)

bench: ## measure how fast it is, each figure beside its reference (ONLY=drain,idle QUICK=1 PLOTS=1)
	@$(LAB) install
	@cargo run -q --release -p lab -- bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(PLOTS),--plots)

reference: ## write docs/reference.md from the comments in the catalog
	@$(LAB) reference

lint: ## formatting, clippy (warnings denied), rules of sql/, dependencies against deny.toml, spelling, shell scripts
	@$(LAB) lint

fmt: ## format the code
	@cargo fmt --all

clean: ## stop and remove the throwaway servers, and all that was built or installed below target/
	@[ ! -x target/debug/lab ] || $(LAB) clean
	@cargo clean
