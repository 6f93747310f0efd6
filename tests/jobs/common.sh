# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts of this folder, which run the command as a user does: SCRIPT BUILD [ARGUMENT…]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/scripts/common.sh"
lodemark=$1/bin/lodemark
[[ -x $lodemark ]] || die "$lodemark is not built"
scratch=$(mktemp -d)
# A sanitizer's report of any rank fails the test, wherever the rank's output went.
for tool in ASAN UBSAN TSAN; do
    options=${tool}_OPTIONS
    export "$options=${!options:-}:log_path=$scratch/report"
done
finish() {
    local status=$1
    [[ -z ${service_pid:-} ]] || kill_service
    if compgen -G "$scratch/report*" > /dev/null; then
        cat "$scratch"/report*
        status=1
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap 'finish $?' EXIT
# bench step of a size that takes a second; its own arguments come last and win
# shellcheck disable=SC2034
small=(bench step --tokens 8192 --heads 8 --kv-heads 2 --head-dim 64 --steps 6 --warmup 1 --seed 7)
export LODEMARK_ARENA=64MiB LODEMARK_HOT_CACHE=1MiB

# transport shm|tcp|own: what UCX may use from here on; own: what users get on one host, messages by TCP, arenas mapped
transport() {
    case $1 in
    own) export UCX_NET_DEVICES=lo ;;
    shm) export UCX_TLS=posix,sysv,self,tcp UCX_MM_ERROR_HANDLING=y UCX_NET_DEVICES=lo ;;
    tcp) export UCX_TLS=tcp,self UCX_NET_DEVICES=lo ;;
    esac
}

# job RANKS ARGUMENT…: the command under mpirun
job() {
    timeout -k 5 100 "${mpirun_here[@]}" -n "$1" "$lodemark" "${@:2}" < /dev/null
}

export LODEMARK_TEST_EXITS=$scratch/exits
as_rank=$root/tests/jobs/as-rank

# program_with_a_death RANKS PROGRAM ARGUMENT…: the survivors of a killed rank go on; see exit_of RANK
program_with_a_death() {
    rm -rf "$LODEMARK_TEST_EXITS"
    mkdir "$LODEMARK_TEST_EXITS"
    timeout -k 5 100 "${mpirun_here[@]}" --enable-recovery -n "$1" "$as_rank" "${@:2}" \
        < /dev/null > "$scratch/out" 2>&1 || true
}
job_with_a_death() { program_with_a_death "$1" "$lodemark" "${@:2}"; }
exit_of() { cat "$LODEMARK_TEST_EXITS/$1" 2> /dev/null || echo none; }

# survivors_exit CODE VICTIM RANKS: the victim was killed, all others ended by themselves with this code
survivors_exit() {
    local rank
    [[ $(exit_of "$2") == 137 ]] || { cat "$scratch/out"; die "rank $2 was not killed: exit $(exit_of "$2")"; }
    for ((rank = 0; rank < $3; rank++)); do
        ((rank == $2)) || [[ $(exit_of $rank) == "$1" ]] ||
            { cat "$scratch/out"; die "rank $rank ended with $(exit_of $rank), not $1, after rank $2 was killed"; }
    done
}

# want FILE FILTER: a jq filter over a result that must be true
want() {
    jq -e "$2" "$1" > /dev/null || {
        cat "$1"
        die "not so: $2"
    }
}

# refused_run COMMAND…: without looking for leaks: LeakSanitizer itself falls now and then over threads that end while it
# looks, and a command that is refused ends while UCX and PMIx still start theirs. mpirun sleeps twice for a second behind
# a rank that failed, before it ends the others; they have left MPI with it, and need no time.
refused_run() {
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 OMPI_MCA_odls_base_sigkill_timeout=0 "$@"
}

# refused WORD COMMAND…: must fail by itself, soon, and say WORD
# (mpirun without --enable-recovery gives a rank's exit code back)
refused() {
    local word=$1 status=0
    shift
    refused_run "$@" > "$scratch/said" 2>&1 || status=$?
    ((status != 0)) || die "was accepted: $*"
    ((status != 124 && status != 137)) || die "hung: $*"
    grep -qF -- "$word" "$scratch/said" || {
        cat "$scratch/said"
        die "did not say \"$word\": $*"
    }
    ! grep -qE 'Segmentation|Signal:|Sanitizer' "$scratch/said" || {
        cat "$scratch/said"
        die "crashed: $*"
    }
}

# refused_with CODE WORD COMMAND…: must exit with this code and say WORD in the one line that begins with "lodemark: "
refused_with() {
    local code=$1 word=$2 status=0
    shift 2
    refused_run "$@" > "$scratch/said" 2>&1 || status=$?
    [[ $status == "$code" && $(grep -c '^lodemark: ' "$scratch/said") == 1 ]] &&
        grep '^lodemark: ' "$scratch/said" | grep -qF -- "$word" || {
        cat "$scratch/said"
        die "exit code $status; wanted $code and \"$word\", said once: $*"
    }
}

# ------------------------------------------------------------------ a service
lodemarkd=$1/bin/lodemarkd
service_pid=

# start_service RANKS ARGUMENT…: lodemarkd in the background; commands find it by its contact file and token
start_service() {
    rm -f "$scratch/contact"
    export LODEMARK_CLUSTER=$scratch/contact LODEMARK_TOKEN_FILE=$scratch/token
    timeout -k 5 300 "${mpirun_here[@]}" --enable-recovery -n "$1" "$lodemarkd" --contact "$scratch/contact" \
        --token-file "$scratch/token" "${@:2}" < /dev/null > "$scratch/service.log" 2>&1 &
    service_pid=$!
    local end=$((SECONDS + 60))
    until [[ -e $scratch/contact ]] && "$lodemark" ping -n 1 > /dev/null 2>&1; do
        kill -0 "$service_pid" 2> /dev/null || { cat "$scratch/service.log"; die "the service ended by itself"; }
        ((SECONDS < end)) || { cat "$scratch/service.log"; die "the service does not answer after 60 s"; }
        sleep 0.1
    done
}

# stat_becomes SECONDS FILTER: within that time `lodemark stat` is so, by a jq filter; its last answer is in stat.json
stat_becomes() {
    local end=$((SECONDS + $1))
    until "$lodemark" stat --json > "$scratch/stat.json" && jq -e "$2" "$scratch/stat.json" > /dev/null; do
        ((SECONDS < end)) || {
            cat "$scratch/stat.json" "$scratch/service.log"
            die "not so after $1 s: $2"
        }
        sleep 0.1
    done
}

# service_ranks: process ids of the daemons, rank 0 first
service_ranks() {
    local mpirun_pid pid
    mpirun_pid=$(pgrep -P "$service_pid")
    for pid in $(pgrep -P "$mpirun_pid"); do
        printf '%s %s\n' "$(tr '\0' '\n' < "/proc/$pid/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')" "$pid"
    done | sort -n | cut -d ' ' -f 2
}

# stop_service: as an operator does; the daemons must end by themselves, with exit code 0
stop_service() {
    local status=0 end=$((SECONDS + 30))
    # shellcheck disable=SC2046
    kill -TERM $(service_ranks)
    while kill -0 "$service_pid" 2> /dev/null; do
        ((SECONDS < end)) || { cat "$scratch/service.log"; die "the service does not stop"; }
        sleep 0.1
    done
    wait "$service_pid" || status=$?
    service_pid=
    ((status == 0)) || { cat "$scratch/service.log"; die "the service ended with $status"; }
}

# kill_service: at once, whatever it does
kill_service() {
    local mpirun_pid
    mpirun_pid=$(pgrep -P "$service_pid") || true
    # shellcheck disable=SC2046,SC2086
    kill -KILL $([[ -z $mpirun_pid ]] || pgrep -P "$mpirun_pid") $mpirun_pid "$service_pid" 2> /dev/null || true
    wait "$service_pid" 2> /dev/null || true
    service_pid=
}
