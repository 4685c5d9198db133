#!/bin/sh
# Fetches what the tests need from Debian and leaves it in target/debian/: a kernel with its modules for the virtual
# machine, the reference CNI plugins, and a runtime that calls ours. They are unpacked, not installed; only QEMU is
# installed, if missing. Run it again at will: it is quiet and needs no network once everything is there.
#
#   tests/setup.sh            everything
#   tests/setup.sh toolchain  a C compiler and libc alone, which linking a static Rust program takes
#
#   target/debian/kernel/boot/vmlinuz-*     target/debian/kernel/lib/modules/*
#   target/debian/containernetworking-plugins/usr/lib/cni/*
#   target/debian/containerd/usr/bin/*      target/debian/runc/usr/sbin/runc
set -eu

cd "$(dirname "$0")/.."
debian=target/debian

main() {
    toolchain
    [ "${1:-}" = toolchain ] && return
    [ "$(uname -m)" = x86_64 ] || fail "the virtual machine is x86_64 only; this host is $(uname -m)"
    command -v qemu-system-x86_64 >/dev/null || install_package qemu-system-x86
    command -v xz >/dev/null || install_package xz-utils
    [ -e $debian/kernel/.complete ] || { find_kernel_package; unpack "$kernel_package" kernel; }
    for package in containernetworking-plugins containerd runc; do
        [ -e $debian/$package/.complete ] || unpack $package $package
    done
}

toolchain() {
    command -v cargo >/dev/null || fail "cargo is missing: install a Rust toolchain (1.89 or newer) first"
    command -v cc >/dev/null || install_package gcc
    [ -n "$(cc -print-file-name=libc.a | grep /)" ] || install_package libc6-dev
    command -v unshare >/dev/null || install_package util-linux
}

# linux-image-cloud-amd64 is empty: it depends on the package that holds the kernel of the day.
find_kernel_package() {
    need linux-image-cloud-amd64
    kernel_package=$(apt-cache depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$kernel_package" ] || fail "linux-image-cloud-amd64 names no kernel package"
}

# unpack PACKAGE FOLDER: the stamp is written last, so an interrupted run starts again.
unpack() {
    need "$1"
    say "downloading $1"
    work=$debian/$2.partial
    rm -rf "$work" "$debian/$2"
    mkdir -p "$work/root"
    download "$1" "$work" || { update; download "$1" "$work"; } || fail "cannot download $1"
    dpkg-deb -x "$work"/*.deb "$work/root"
    (cd "$work" && basename -- *.deb) >"$work/root/.complete"
    mv "$work/root" "$debian/$2"
    rm -rf "$work"
}

download() {
    # The sandbox user of apt cannot write below a private home folder.
    (cd "$2" && apt-get -qq -o APT::Sandbox::User=root download "$1" >/dev/null 2>&1)
}

install_package() {
    [ "$(id -u)" = 0 ] || fail "$1 is missing and only root can install it: apt-get install $1"
    need "$1"
    say "installing $1"
    install_quietly "$1" || { update; install_quietly "$1"; } || fail "apt-get cannot install $1"
}

install_quietly() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$1" \
        >/dev/null 2>&1
}

# need PACKAGE: refreshes the package lists only if they do not know it.
need() {
    command -v apt-get >/dev/null ||
        fail "$1 comes from Debian and this host has no apt-get: install QEMU and copy target/debian/ from elsewhere"
    known "$1" && return
    update
    known "$1" || fail "apt knows no package $1; is a Debian mirror in /etc/apt/sources.list?"
}

known() {
    apt-cache policy "$1" 2>/dev/null | grep -q '^ *Candidate: [^(]'
}

update() {
    [ -z "${updated:-}" ] || return 0
    updated=yes
    [ "$(id -u)" = 0 ] || fail "the package lists are out of date and only root can refresh them: apt-get update"
    say "refreshing the package lists"
    apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null 2>&1 ||
        fail "apt-get update failed; run it by hand to see why"
}

say() { echo "setup: $*" >&2; }

fail() {
    echo "tests/setup.sh: $*" >&2
    exit 1
}

main "$@"
