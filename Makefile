# make demo   see it work            make test   run every test
# make build  the static binaries    make bench  measure it against its peers
# make image  the container images
# make test-cluster KUBECONFIG=FILE   the tests of the Kubernetes store on a real cluster
.POSIX:
.PHONY: build image demo test test-cluster bench lint lint-examples docs clean

# In CI the lock file is the truth.
LOCKED = $(if $(CI),--locked)
STATIC = -C target-feature=+crt-static
# A position-independent program relocates itself first, 0.2 ms of each call.
AT_ONCE = -C relocation-model=static

build:
	@sh tests/setup.sh toolchain
	cargo rustc $(LOCKED) --release --package musubi --bin musubi -- $(STATIC) $(AT_ONCE)
	cargo rustc $(LOCKED) --release --package musubi-webhook --bin musubi-webhook -- $(STATIC)

image: build
	cargo build $(LOCKED) --package musubi-tests --bin image
	target/debug/image target/release/musubi target/image/musubi.tar
	target/debug/image target/release/musubi-webhook target/image/musubi-webhook.tar

demo: build
	@target/release/musubi demo

test:
	@sh tests/setup.sh
	cargo build $(LOCKED) --package musubi --package musubi-webhook
	cargo test $(LOCKED) --workspace
	tests/as-nobody

# As root on a node of the cluster, in the namespace musubi-test, which is removed at the end: one test after the other.
test-cluster:
	@test -n "$(KUBECONFIG)" || { echo "usage: make test-cluster KUBECONFIG=FILE" >&2; exit 2; }
	@sh tests/setup.sh toolchain
	cargo build $(LOCKED) --package musubi
	MUSUBI_TEST_KUBECONFIG="$$(realpath "$(KUBECONFIG)")" \
	    cargo test $(LOCKED) --package musubi-tests --test e2e kubernetes:: -- --test-threads 1 --nocapture

bench: build
	@sh tests/setup.sh
	cargo rustc $(LOCKED) --release --package musubi-tests --bin empty -- $(STATIC) $(AT_ONCE)
	cargo build $(LOCKED) --release --package musubi-tests --bin bench
	tests/in-namespaces target/release/bench

lint: lint-examples
	cargo fmt --all -- --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	for crate in crds delegates meta-plugin webhook tests; do (cd $$crate && cargo check $(LOCKED) --all-targets) || exit 1; done
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --workspace --no-deps
	cargo deny --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-deny
	cargo deny --offline check bans licenses sources

lint-examples:
	cargo build $(LOCKED) --package musubi
	target/debug/musubi lint examples --config examples/00-musubi.conf

clean:
	cargo clean
