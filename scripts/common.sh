# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by quickstart, tests/run and .ci/run: what they need installed, and how to get it.

# Debian 12 and Ubuntu 24.04 names.
packages_build=(gcc libc6-dev cmake ninja-build pkg-config openmpi-bin libopenmpi-dev libucx-dev ucx-utils
    protobuf-c-compiler libprotobuf-c-dev libhwloc-dev libjansson-dev libmicrohttpd-dev liblapacke-dev
    libdnnl-dev libpcre2-dev libutf8proc-dev)
# slurm/testbed
packages_slurm=(slurm-wlm munge iproute2 util-linux)
# Tests: units, CUDA sources on an emulated device (C++), the JSON of benchmarks, captures written as documented, network
# namespaces, Slurm in them.
packages_test=(libcriterion-dev g++ jq python3 procps gnuplot-nox "${packages_slurm[@]}")
# CI: one version of clang everywhere, so that formatting does not depend on the machine.
packages_ci=(git clang-14 libclang-rt-14-dev clang-format-14
    libfaiss-dev libopenblas-dev) # rivals of bench index

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# install_packages NAME…: install those that are missing; a second run does nothing.
install_packages() {
    local missing=() name as_root=()
    command -v dpkg-query > /dev/null ||
        die "this is neither Debian nor Ubuntu; install by hand what these packages hold: $*"
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null) == installed ]] || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then
        echo "all $# packages are installed"
        return
    fi
    if ((EUID != 0)); then
        command -v sudo > /dev/null ||
            die "packages are missing and there is no sudo; as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    echo "installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
        < /dev/null > "$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# One mpirun for laptops, containers and CI: as root, with fewer cores than ranks.
mpirun_here=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none)

# build PRESET [TARGET…] [-- CMAKE OPTION…]: configure and build; the log is shown when it fails.
build() {
    local preset=$1 targets=() options=() log
    shift
    while (($#)) && [[ $1 != -- ]]; do
        targets+=("$1")
        shift
    done
    (($# == 0)) || options=("${@:2}")
    log=$(mktemp)
    if ! { cmake --preset "$preset" "${options[@]}" &&
        cmake --build --preset "$preset" ${targets[0]:+--target "${targets[@]}"}; } < /dev/null > "$log" 2>&1; then
        tail -n 60 "$log" >&2
        rm -f "$log"
        die "the build \"$preset\" failed (above: the end of its log)"
    fi
    # warnings do not stop a user's build, but they are not hidden either
    grep -A3 -E 'warning:' "$log" || true
    tail -n 1 "$log"
    rm -f "$log"
}
