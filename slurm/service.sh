# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the sbatch templates of this folder: lodemarkd as one step of the job, a client as another beside it.
#
#   start_service [SRUN OPTION…] [: SRUN OPTION…]   returns when the service is healthy; the job ends if it never is
#   join_service                                    one more daemon a node for the service that LODEMARK_CLUSTER and
#                                                   LODEMARK_TOKEN_FILE name; returns when they end
#   client [SRUN OPTION…] -- [COMMAND…]             the command (default: lodemark ls) on one node; then the service ends
#
# Read from the environment:
#   LODEMARK_BIN     the folder of lodemarkd and lodemark (default: beside this folder, else what PATH finds)
#   LODEMARK_JOBS    a folder that all nodes see, for the job's token and contact file (default: where sbatch was run)
#   LODEMARK_BIND    the address to listen on, best as the network of a fast link: 10.1.0.0/16 (default: 0.0.0.0, all)
#   LODEMARK_START_S, LODEMARK_STOP_S   seconds that the service may take to start and to end (default: 120 and 30)
set -euo pipefail
: "${SLURM_JOB_ID:?this is for a job of Slurm: sbatch slurm/memory-nodes.sbatch}"

say() { echo "$(date +%T) lodemark job $SLURM_JOB_ID: $*"; }
die() { say "$*" >&2; exit 1; }

# in a checkout, and installed as share/lodemark/slurm
for bin in ../build/bin ../../../bin; do
    bin=$(dirname "${BASH_SOURCE[0]}")/$bin
    [[ -n ${LODEMARK_BIN:-} || ! -x $bin/lodemarkd ]] || LODEMARK_BIN=$(cd "$bin" && pwd)
done
[[ -z ${LODEMARK_BIN:-} ]] || PATH=$LODEMARK_BIN:$PATH
command -v lodemarkd > /dev/null || die "lodemarkd is not found: set LODEMARK_BIN to its folder"

# these are for this file: programs would warn that they know no such option
export -n LODEMARK_BIN LODEMARK_JOBS LODEMARK_BIND LODEMARK_START_S LODEMARK_STOP_S LODEMARK_SLURM

folder=
# Since 22.05 srun does not take it over from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The service must be the job's first step. Each part of a heterogeneous job is a job to signals: one alone does not reach all.
service_steps=()
for ((part = 0; part < ${SLURM_HET_SIZE:-1}; part++)); do
    part_id=SLURM_JOB_ID_HET_GROUP_$part
    service_steps+=("${!part_id:-$SLURM_JOB_ID}.0")
done
service=
# A rank that dies, a node that dies, a rank that ends early: none of them ends the others.
survive=(--quiet --kill-on-bad-exit=0 --no-kill --wait=0)

# begin COMMAND…: the service's step
begin() {
    "$@" &
    service=$!
    trap stop_service EXIT
    trap 'exit 143' TERM # the job's time is up, or scancel
}

start_service() {
    local word command=(srun) end
    folder=${LODEMARK_JOBS:-$SLURM_SUBMIT_DIR}/lodemark-$SLURM_JOB_ID
    export LODEMARK_CLUSTER=$folder/contact LODEMARK_TOKEN_FILE=$folder/token
    # who reads the token is let in
    (umask 077 && mkdir -p "$folder" && od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' > "$LODEMARK_TOKEN_FILE") ||
        die "cannot write the token into $folder"
    survive+=(--mpi=pmix)
    daemon=(lodemarkd --contact "$LODEMARK_CLUSTER" --token-file "$LODEMARK_TOKEN_FILE" --bind "${LODEMARK_BIND:-0.0.0.0}")
    command+=("${survive[@]}")
    for word in "$@"; do
        [[ $word == : ]] && command+=("${daemon[@]}" : "${survive[@]}") || command+=("$word")
    done
    begin "${command[@]}" "${daemon[@]}"
    for ((end = SECONDS + ${LODEMARK_START_S:-120}; SECONDS < end; )); do
        kill -0 "$service" 2> /dev/null || die "the service ended before it was healthy"
        if [[ -e $LODEMARK_CLUSTER ]] && timeout 10 lodemark health > /dev/null 2>&1; then
            say "the service is healthy: export LODEMARK_CLUSTER=$LODEMARK_CLUSTER LODEMARK_TOKEN_FILE=$LODEMARK_TOKEN_FILE"
            return
        fi
        sleep 0.5
    done
    timeout 10 lodemark health >&2 || true
    die "the service is not healthy after ${LODEMARK_START_S:-120} s"
}

join_service() {
    [[ -e ${LODEMARK_CLUSTER:-} && -e ${LODEMARK_TOKEN_FILE:-} ]] ||
        die "export LODEMARK_CLUSTER and LODEMARK_TOKEN_FILE as the log of the service's job says"
    begin srun "${survive[@]}" --mpi=none lodemarkd --join "$LODEMARK_CLUSTER" --token-file "$LODEMARK_TOKEN_FILE" \
        --bind "${LODEMARK_BIND:-0.0.0.0}"
    wait "$service"
}

client() {
    local options=()
    while (($#)) && [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift || true
    (($#)) || set -- lodemark ls
    # a shell that waits in the background still hears SIGTERM
    srun --quiet --overlap --nodes=1 --ntasks=1 --mpi=none "${options[@]}" "$@" &
    wait $!
}

# running: whether srun, or at least a part of its step, is there
running() { kill -0 "$service" 2> /dev/null && [[ -n $(squeue --noheader --steps="$(IFS=, && echo "${service_steps[*]}")") ]]; }

# SIGTERM lets the daemons finish the steps under way and say goodbye.
stop_service() {
    local status=$? end
    trap - EXIT TERM
    scancel --quiet --signal=TERM "${service_steps[@]}" 2> /dev/null || true
    for ((end = SECONDS + ${LODEMARK_STOP_S:-30}; SECONDS < end; )); do
        running || break
        sleep 0.5
    done
    if running; then
        say "the service did not end in ${LODEMARK_STOP_S:-30} s and is killed" >&2
        scancel --quiet --signal=KILL "${service_steps[@]}" 2> /dev/null || true
        sleep 1
    fi
    # srun of Slurm 22.05 may wait for ever for a thread of its own when the parts of a heterogeneous step end at once
    for ((end = SECONDS + 3; SECONDS < end; )); do
        kill -0 "$service" 2> /dev/null || break
        sleep 0.2
    done
    kill -KILL "$service" 2> /dev/null || true
    wait "$service" 2> /dev/null || true
    [[ -z $folder ]] || { rm -f "$LODEMARK_TOKEN_FILE" "$LODEMARK_CLUSTER" && rmdir "$folder" 2> /dev/null; } || true
    exit "$status"
}
