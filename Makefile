# make demo   see it work            make test   run every test
# make build  the static binary      make bench  measure it against its peers
# make image  the container image
# make test-cluster KUBECONFIG=FILE   the tests of the Kubernetes store on a real cluster
.POSIX:
.PHONY: build image demo test test-cluster bench lint docs clean

# In CI the lock file is the truth.
LOCKED = $(if $(CI),--locked)

build:
	@sh tests/setup.sh toolchain
	cargo rustc $(LOCKED) --release --package musubi --bin musubi -- -C target-feature=+crt-static -C relocation-model=static

image: build
	cargo build $(LOCKED) --package musubi-tests --bin image
	target/debug/image target/release/musubi target/image/musubi.tar

demo: build
	@target/release/musubi demo

test:
	@sh tests/setup.sh
	cargo build $(LOCKED) --package musubi
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
	cargo rustc $(LOCKED) --release --package musubi-tests --bin empty -- -C target-feature=+crt-static
	cargo build $(LOCKED) --release --package musubi-tests --bin bench
	tests/in-namespaces target/release/bench

lint:
	cargo fmt --all -- --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	for crate in crds delegates meta-plugin tests; do (cd $$crate && cargo check $(LOCKED) --all-targets) || exit 1; done
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --workspace --no-deps
	cargo deny --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-deny
	cargo deny --offline check bans licenses sources

clean:
	cargo clean
