# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the tests that need slurm/testbed; $1 is the build folder.
. "$(dirname "${BASH_SOURCE[0]}")/../jobs/common.sh"
testbed=$root/slurm/testbed
was_up=no

testbed_put_back() { [[ $was_up == yes ]] || "$testbed" down; }

# testbed_up: skip if this machine cannot
testbed_up() {
    local tool status=0
    for tool in slurmctld slurmd munged srun; do
        PATH=$PATH:/usr/sbin command -v "$tool" > /dev/null || { echo "skipped: $tool is not installed" >&2; exit 77; }
    done
    # there is one testbed a machine: wait for other tests, and leave one that was up before as it was
    exec 8> "${TMPDIR:-/tmp}/lodemark-testbed-test.lock"
    flock -w 200 8 || die "another test has had the testbed for 200 s"
    ! timeout 20 "$testbed" status > /dev/null 2>&1 || was_up=yes
    [[ $was_up == no || -z $(slurm squeue --noheader) ]] || { echo "skipped: the testbed is up and runs jobs" >&2; exit 77; }
    "$testbed" down # what earlier faults left is not for this test
    trap 'status=$?; testbed_put_back; finish $status' EXIT
    timeout 150 "$testbed" up 8>&- || status=$?
    ((status == 0)) || exit "$status" # 77: skipped
}

slurm() { timeout -k 5 100 "$testbed" run "$@" 8>&-; }

# await WHAT COMMAND…: until it succeeds, at most a minute
await() {
    local what=$1 end
    shift
    for ((end = SECONDS + 60; SECONDS < end; )); do
        ! "$@" > /dev/null 2>&1 || return 0
        sleep 0.2
    done
    cat "$scratch"/*.log 2> /dev/null || true
    die "waited a minute for $what"
}
