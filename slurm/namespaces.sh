# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by slurm/testbed and tests/cluster/netns: three hosts on one machine. Network namespaces ${space}1 to
# ${space}3, each with an interface eth0 ($subnet.1 to .3) on a bridge that lies in a fourth, ${space}0, and has the
# address $subnet.254 there. Nothing is added to the machine's own network. The sourcing script sets space and subnet;
# two with other names and subnets can be up at once.

: "${space:?}" "${subnet:?}"
spaces=("${space}1" "${space}2" "${space}3")

# Exit code 77, as tests say "skipped", when the kernel will not have it.
spaces_refused() {
    echo "skipped: this machine refuses $1: $2" >&2
    spaces_down
    exit 77
}

# as_root ARGUMENT…: run the sourcing script again as root, unless it is
as_root() {
    ((EUID != 0)) || return 0
    sudo -n true 2> /dev/null || { echo "skipped: network namespaces need root, and sudo asks for a password" >&2; exit 77; }
    exec sudo -n --preserve-env "$self" "$@"
}

spaces_down() {
    local name
    for name in "${space}0" "${spaces[@]}"; do
        # a namespace lives on in its processes, so these go first
        [[ ! -e /run/netns/$name ]] || { ip netns pids "$name" | xargs -r kill -9; ip netns del "$name"; } 2> /dev/null || true
    done
}

spaces_up() {
    local why name i=0
    spaces_down
    for name in "${space}0" "${spaces[@]}"; do
        why=$(ip netns add "$name" 2>&1) || spaces_refused "network namespaces" "$why"
        why=$(ip -n "$name" link set lo up 2>&1) || spaces_refused "to enter network namespaces" "$why"
    done
    # eth0 in all of them: one UCX_NET_DEVICES serves everywhere
    why=$(ip -n "${space}0" link add eth0 type bridge 2>&1) || spaces_refused "bridges" "$why"
    ip -n "${space}0" addr add "$subnet.254/24" dev eth0
    ip -n "${space}0" link set eth0 up
    for name in "${spaces[@]}"; do
        ((i += 1))
        why=$(ip -n "${space}0" link add "to-$name" type veth peer name eth0 netns "$name" 2>&1) || spaces_refused "veth" "$why"
        ip -n "${space}0" link set "to-$name" master eth0 up
        ip -n "$name" addr add "$subnet.$i/24" dev eth0
        ip -n "$name" link set eth0 up
    done
}

# spaces_shape RATE [DELAY]: limit what each host sends
spaces_shape() {
    local name
    for name in "${spaces[@]}"; do
        tc -n "$name" qdisc replace dev eth0 root handle 1: tbf rate "$1" burst 256kb latency 50ms
        [[ -z ${2:-} ]] || tc -n "$name" qdisc replace dev eth0 parent 1: netem delay "$2" limit 10000
    done
}
