# Two images of one binary: `agent`, which runs, and `net`, the init container, which has the nft program beside it.
# Neither has a shell. Base images can be replaced: a release pins them by digest, the tests bring local ones.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

# On the machine's own architecture, compiling for the target's: emulating a compiler takes an hour.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
ARG BUILDARCH TARGETARCH
# `image` has the heavy link settings; tests may take a faster profile.
ARG PROFILE=image
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/src/target \
    --mount=type=cache,target=/usr/local/cargo/registry \
    set -eu; \
    case "$TARGETARCH" in amd64) cpu=x86_64 ;; arm64) cpu=aarch64 ;; *) echo "no build for $TARGETARCH" >&2; exit 1 ;; esac; \
    target=$cpu-unknown-linux-gnu; \
    if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
        rustup target add "$target"; \
        apt-get update; \
        apt-get install -y --no-install-recommends "gcc-$(echo $cpu | tr _ -)-linux-gnu" "libc6-dev-$TARGETARCH-cross"; \
        export "CARGO_TARGET_$(echo $target | tr a-z- A-Z_)_LINKER=$cpu-linux-gnu-gcc" "CC_$(echo $target | tr - _)=$cpu-linux-gnu-gcc"; \
    fi; \
    cargo build --locked --profile "$PROFILE" --target "$target" --bin rolecall; \
    cp "target/$target/$(echo "$PROFILE" | sed 's/^dev$/debug/')/rolecall" /rolecall

# root file systems of the final stages: programs, the libraries that they load, and nothing else
FROM ${DEBIAN_IMAGE} AS roots
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates nftables && rm -rf /var/lib/apt/lists/*
COPY --from=build /rolecall /rolecall
# ldd prints "name => /path (address)" and "/path (address)"; cp -L puts the file itself under the name that is asked for.
RUN set -eu; \
    root() { \
        dir=$1; shift; \
        for program in "$@"; do \
            ldd "$program" | grep -o '/[^ ]*' | while read -r library; do \
                mkdir -p "$dir${library%/*}"; cp -L "$library" "$dir$library"; \
            done; \
            mkdir -p "$dir${program%/*}"; cp "$program" "$dir$program"; \
        done; \
        mkdir -p "$dir/etc/ssl/certs" "$dir/run/rolecall"; \
        cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/"; \
        echo 'hosts: files dns' >"$dir/etc/nsswitch.conf"; \
        echo 'rolecall:x:9902:9902::/:/rolecall' >"$dir/etc/passwd"; \
        echo 'rolecall:x:9902:' >"$dir/etc/group"; \
    }; \
    root /agent /rolecall; \
    root /net /rolecall /usr/sbin/nft

FROM scratch AS net
COPY --from=roots /net /
ENV PATH=/usr/sbin
# The manifest gives the init container user 0 with two capabilities; what runs this image otherwise gets nobody.
USER 9902:9902
ENTRYPOINT ["/rolecall"]

# Last, so that it is what a build without --target gives.
FROM scratch AS agent
COPY --from=roots /agent /
USER 9902:9902
ENTRYPOINT ["/rolecall"]
