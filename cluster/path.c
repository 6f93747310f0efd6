/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which peers can be read one-sided: found out by doing it.
 *
 * Arenas of this host's ranks are mapped, without UCX: its own shared memory would have to be where its messages
 * are, and those are not safe there when a rank dies. For the others, every rank writes a word to its arena;
 * then, while no rank answers anything, each reads the words of all others. A read that comes back did so
 * without its owner. UCX would tell the names of transports, but not whether a read over them is real or
 * emulated by messages, which differs between its versions.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

/** Over a network this is a thousand round trips. */
#define PROBE_NS 100000000u
#define DRAIN_NS 30000000000u

static bool may_use(const char *const *names)
{
    const char *transports = getenv("UCX_TLS");
    if (!transports || transports[0] == '^')
        return true;
    while (*names && !strstr(transports, *names))
        names++;
    return *names != NULL;
}

bool fabric_may_share(void)
{
    return may_use((const char *const[]){"all", "shm", "sm", "mm", "posix", "sysv", "xpmem", NULL});
}

bool fabric_may_tcp(void)
{
    return may_use((const char *const[]){"all", "tcp", NULL});
}

/** Whether a rank's arena is a file of this host: it shares memory with this rank, or says that it is here. */
static bool is_here(lode_fabric_h fabric, uint32_t rank)
{
    const fabric_card_t *card = &fabric->cards[rank], *own = &fabric->cards[fabric->rank];
    if (card->share == own->share)
        return true;
    bool both_born = rank < fabric->born && card->who == epoch_who(1, 0) && fabric->incarnation == 1;
    return !both_born && fabric_may_share() && memcmp(card->host, own->host, sizeof card->host) == 0;
}

/* One that cannot be mapped is fetched from as if far away. */
void fabric_path_map(lode_fabric_h fabric, uint32_t rank)
{
    const fabric_card_t *card = &fabric->cards[rank];
    fabric_peer_t *peer = &fabric->peers[rank];
    struct stat facts;
    int fd;
    if (rank == fabric->rank || card->arena.fd < 0 || !is_here(fabric, rank))
        return;
    if (fabric_memfile_open(&card->arena, &fd) != LODE_OK) {
        lode_debug("rank %u: %s", rank, lode_error_message());
        return;
    }
    void *base = MAP_FAILED;
    if (fstat(fd, &facts) == 0 && (uint64_t)facts.st_size >= card->arena_bytes) /* beyond its end were SIGBUS */
        base = mmap(NULL, card->arena_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base != MAP_FAILED) {
        peer->mapped = base;
        peer->mapped_bytes = card->arena_bytes;
    }
    close(fd);
}

void fabric_path_unmap(lode_fabric_h fabric, uint32_t rank)
{
    fabric_peer_t *peer = &fabric->peers[rank];
    if (peer->mapped)
        munmap((void *)peer->mapped, peer->mapped_bytes);
    peer->mapped = NULL;
}

void fabric_path_destroy(lode_fabric_h fabric)
{
    for (uint32_t r = 0; fabric->peers && r < fabric->capacity; r++)
        fabric_path_unmap(fabric, r);
}

static uint64_t word_of(uint32_t rank)
{
    return lode_mix(0x6c6f64656d61726bu, rank);
}

/* The landing buffer is the target: one word a rank. */
static uint8_t *target(lode_fabric_h fabric, uint32_t rank)
{
    return fabric->landing.base + (size_t)rank * sizeof(uint64_t);
}

static void on_read(void *ucx, ucs_status_t status, void *user)
{
    uint32_t *left = user;
    (void)status; /* a read that failed brought no word */
    --*left;
    ucp_request_free(ucx);
}

static lode_status_t read_words(lode_fabric_h fabric, uint32_t *left)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        fabric_peer_t *peer = &fabric->peers[r];
        if (r == fabric->rank || peer->mapped)
            continue;
        ucp_request_param_t param = fabric_send_param(on_read, left, 0);
        ucs_status_ptr_t ucx = ucp_get_nbx(peer->asks.ep, target(fabric, r), sizeof(uint64_t),
                                           fabric->cards[r].arena_base, peer->rkey, &param);
        if (UCS_PTR_IS_ERR(ucx))
            return FABRIC_UCX(UCS_PTR_STATUS(ucx));
        if (UCS_PTR_IS_PTR(ucx))
            ++*left;
    }
    return LODE_OK;
}

static void note_what_came(lode_fabric_h fabric)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        uint64_t word;
        memcpy(&word, fabric->peers[r].mapped ? fabric->peers[r].mapped : target(fabric, r), sizeof word);
        fabric->peers[r].one_sided = r != fabric->rank && word == word_of(r);
    }
}

/* Barriers are blocking MPI ones where nobody may answer, ours where everybody must. */
static lode_status_t probe(lode_fabric_h fabric)
{
    uint64_t word = word_of(fabric->rank);
    memset(fabric->landing.base, 0, (size_t)fabric->ranks * sizeof word);
    memcpy(fabric->arena.base, &word, sizeof word);
    for (uint32_t r = 0; r < fabric->ranks; r++)
        fabric_path_map(fabric, r);
    LODE_TRY(FABRIC_MPI(MPI_Barrier(fabric->comm)));
    fabric->flushes = 0;
    lode_status_t status = read_words(fabric, &fabric->flushes);
    uint64_t end = lode_now_ns() + PROBE_NS;
    while (fabric->flushes > 0 && lode_now_ns() < end) {
        if (ucp_worker_progress(fabric->client) == 0)
            sched_yield();
    }
    note_what_came(fabric);
    LODE_TRY(FABRIC_MPI(MPI_Barrier(fabric->comm)));
    end = lode_now_ns() + DRAIN_NS;
    while (fabric->flushes > 0 && lode_now_ns() < end) {
        if (ucp_worker_progress(fabric->client) + ucp_worker_progress(fabric->service_worker) == 0)
            sched_yield();
    }
    if (status == LODE_OK && fabric->flushes > 0)
        status = lode_fail(LODE_ERR_TIMEOUT, "a one-sided read of another rank's arena did not end");
    lode_status_t met = fabric_barrier(fabric, true, DRAIN_NS);
    memset(fabric->arena.base, 0, sizeof word);
    return lode_fabric_worst(fabric, status != LODE_OK ? status : met);
}

static void describe(lode_fabric_h fabric)
{
    uint32_t one_sided = 0, mapped = 0, peers = fabric->ranks - 1;
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        one_sided += fabric->peers[r].one_sided;
        mapped += fabric->peers[r].mapped != NULL;
    }
    fabric->path = one_sided == 0 ? "batched" : one_sided == peers ? "one-sided" : "mixed";
    char *text = fabric->path_reason;
    size_t room = sizeof fabric->path_reason;
    if (peers == 0)
        snprintf(text, room, "a job of one rank fetches nothing");
    else if (fabric->params.path != LODE_PATH_AUTO)
        snprintf(text, room, "asked for by the configuration");
    else if (one_sided == 0)
        snprintf(text, room, "no peer's arena could be read without its help; its owner packs replies instead");
    else
        snprintf(text, room,
                 "%u of %u peers' arenas can be read without their help: %u are mapped from this host, %u answered to "
                 "one-sided reads",
                 one_sided, peers, mapped, one_sided - mapped);
}

lode_status_t fabric_path_choose(lode_fabric_h fabric)
{
    if (fabric->params.path != LODE_PATH_BATCHED)
        LODE_TRY(probe(fabric));
    for (uint32_t r = 0; r < fabric->ranks && fabric->params.path == LODE_PATH_ONE_SIDED; r++)
        fabric->peers[r].one_sided = r != fabric->rank;
    describe(fabric);
    lode_debug("fetch path: %s: %s", fabric->path, fabric->path_reason);
    return LODE_OK;
}
