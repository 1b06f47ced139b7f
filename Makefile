# Commands for people; the work is done by the scripts in dev/. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup build lint test soak mutants bench demo demo-down clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install what building and running need (Debian 12, root)
	@dev/setup

build: ## build all programs
	@cargo build --locked --workspace

lint: ## formatting, clippy, licences, shell scripts
	@dev/test 00-lint

test: ## set everything up, then run all test suites, with the time of each
	@dev/setup
	@dev/test

soak: ## simulate the data plane without end, from new seeds each time, until a schedule breaks a promise
	@dev/soak

mutants: ## change the log, retention and block maps in one place after the other: a test must fail each time (hours; dev/mutants FILE for one file)
	@dev/mutants

bench: ## measure the data plane against peers and limits; writes docs/benchmarks.md (root, a quiet machine)
	@dev/setup
	@dev/bench

demo: ## one real server, end to end: replicate it, drill it, boot it (Debian 12, root)
	@dev/demo

demo-down: ## remove every trace of the demo
	@dev/demo-down

clean: demo-down ## remove what was built in this checkout (the cache in ~/.cache/lifeboat stays)
	@cargo clean
