# `make` lists the targets. Nothing here needs more than Rust; each tier of the tests installs what it needs (as root, on Debian) and says so.
.DEFAULT_GOAL := help
.PHONY: help run test unit api netns attack sdk scenarios e2e older check deny bench image

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

run: ## the main job here: no cluster, no root, no AWS account
	cargo run --release -- dev

test: ## all tiers, then a table of what ran
	tests/run unit api netns attack sdk scenarios e2e

unit: ## logic on a paused clock, the endpoint and the emulator on loopback
	tests/run unit

api: ## real kube-apiservers and etcd, 1.36 and 1.34, with the rights that daemonset/ ships for each
	tests/run api

netns: ## pods and nodes as network namespaces, real SDKs in them
	tests/run netns

attack: ## what attackers try, each a named test; any order of events; bounded fuzzing
	tests/run attack

sdk: ## every SDK through `rolecall dev`; moto as the STS
	tests/run sdk

scenarios: ## every way to a role, row by row, each to a call of S3, KMS or Secrets Manager and the AccessDenied after it
	tests/run scenarios

e2e: ## a real cluster: kubelet, containerd, CNI, the images, daemonset/
	tests/run e2e

older: ## Kubernetes 1.27, the oldest that daemonset/local is for; not a part of test, since it is built first
	tests/run older

check: ## formatting, lints, docs (warnings denied), licences and bans
	cargo fmt --check
	cargo clippy --all-targets --features bench -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items
	$(MAKE) --no-print-directory deny

deny: ## licences, bans and sources of all dependencies
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --all-features check licenses bans sources

bench: ## the figures, each with its bar
	benches/run

image: ## the binary as the image has it
	cargo build --profile image
