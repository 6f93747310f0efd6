/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread a rank takes part in rounds; the caller's thread offers what it published and takes what came; the service
 * thread hears of rounds. Between them one lock, held for a few assignments.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"
#include "attend/replicate.h"
#include "cluster/rounds.h"

enum { SLOTS = 8, SLOTS_MOST = 16 };
#define SLOT_BYTES ((size_t)16 << 20)
#define LEAST_BYTES ((size_t)1 << 20)
#define DEADLINE_MS 2000
#define CONNECT_MS 30000
/* How often the thread looks: while a round runs; while none does, for members that are lost. */
#define BUSY_NS UINT64_C(50000)
#define IDLE_NS UINT64_C(20000000)
/* The orderly end, which all ranks come to at about the same time. */
#define LEAVES "it leaves the cluster"
#define MAGIC UINT64_C(0x31646e756f72646c)

/* In front of the tiles of a round: what the root sent, to be compared with what was announced. */
typedef struct heading {
    uint64_t magic, number, block, first, end, head_stride;
    uint32_t layer, heads, root;
    uint32_t valid; /* 0: the root has the tiles no more */
} heading_t;
enum { HEADING = 256 }; /* bytes: tiles stay aligned */

typedef enum slot_state { SLOT_FREE, SLOT_FLYING, SLOT_ARRIVED, SLOT_TAKEN } slot_state_t;
typedef struct slot {
    slot_state_t state;
    uint8_t *memory;           /* the device's */
    lode_device_event_t taken; /* recorded when it was given back */
    bool follow;               /* it was, and no round has used the slot since */
    uint64_t arrival;
    lode_replica_piece_t piece;
} slot_t;

typedef enum phase { PHASE_IDLE, PHASE_CALLED, PHASE_ENQUEUED } phase_t;

struct lode_replica {
    lode_cluster_h cluster;
    lode_replica_params_t params;
    uint32_t ranks, rank, epoch; /* as of its making */
    bool nccl;                   /* there are rounds, or were */
    pthread_mutex_t lock;        /* of what follows, down to the thread's own */
    pthread_cond_t bell;
    lode_rounds_t rounds;
    slot_t slots[SLOTS_MOST];
    lode_replica_stats_t stats;
    bool connected;      /* or failed to */
    bool parting;        /* the fabric goes: do not ask it any more */
    bool leaving;        /* the thread shall end */
    bool reported, told; /* the end: in the log, to the others */
    lode_status_t met;   /* what came of connecting */
    char words[192];
    _Atomic uint32_t arrived; /* slots; read without the lock */
    /* the thread's own */
    pthread_t thread;
    bool started;
    lode_broadcast_id_t id;
    lode_broadcast_h broadcast;
    lode_device_stream_t stream;
    lode_device_event_t passed;
    heading_t *headings; /* pinned: one that goes out, one that came */
    phase_t phase;
    lode_round_t round;
    slot_t *slot;
};

static void lock(lode_replica_h replica)
{
    pthread_mutex_lock(&replica->lock);
}

static void unlock(lode_replica_h replica)
{
    pthread_mutex_unlock(&replica->lock);
}

/* ------------------------------------------------------------------- the end */

/* Say once that it has ended; without the lock. */
static void report_end(lode_replica_h replica)
{
    char cause[192];
    lock(replica);
    bool say = replica->rounds.ended && !replica->reported;
    replica->reported |= say;
    bool orderly = strstr(replica->rounds.cause, LEAVES) != NULL;
    snprintf(cause, sizeof cause, "%s", replica->rounds.cause);
    if (say) {
        replica->stats.nccl = false;
        snprintf(replica->stats.reason, sizeof replica->stats.reason, "broadcasts ended: %.170s", cause);
    }
    unlock(replica);
    if (say)
        lode_log(orderly ? LODE_LOG_DEBUG : LODE_LOG_WARN,
                 "landmarks go to GPUs by their hosts from now on; broadcasts ended: %s", cause);
}

/* Whatever the cause, this rank goes on by the host path. */
static void end(lode_replica_h replica, const char *cause)
{
    lock(replica);
    lode_rounds_end(&replica->rounds, "%s", cause);
    pthread_cond_signal(&replica->bell);
    unlock(replica);
    report_end(replica);
}

/* A device operation keeps its words to itself. */
static lode_status_t check_device(lode_replica_h replica, lode_status_t status)
{
    return status == LODE_OK ? LODE_OK : lode_fail(status, "%s", replica->params.ops->error());
}
#define DEVICE(replica, call) LODE_TRY(check_device(replica, (replica)->params.ops->call))

/* What the members of the start have come to. */
static void watch_members(lode_replica_h replica, char cause[192])
{
    lode_fabric_h fabric = replica->cluster->fabric;
    cause[0] = 0;
    for (uint32_t r = 0; r < replica->ranks; r++)
        if (!lode_fabric_alive(fabric, r)) {
            snprintf(cause, 192, "rank %u is lost", r);
            return;
        }
    if (lode_fabric_expelled(fabric))
        snprintf(cause, 192, "the others went on without this rank");
    else if (lode_fabric_epoch(fabric) != replica->epoch)
        snprintf(cause, 192, "the members have changed: epoch %u", lode_fabric_epoch(fabric));
}

/* -------------------------------------------------------------------- a round */

/* A slot for what comes: a free one, or the oldest that nobody took; at most one is being taken. */
static slot_t *choose_slot(lode_replica_h replica)
{
    slot_t *oldest = NULL;
    for (uint32_t i = 0; i < replica->params.slots; i++) {
        slot_t *slot = &replica->slots[i];
        if (slot->state == SLOT_FREE)
            return slot;
        if (slot->state == SLOT_ARRIVED && (!oldest || slot->arrival < oldest->arrival))
            oldest = slot;
    }
    if (oldest) {
        replica->stats.overwrote++;
        atomic_fetch_sub(&replica->arrived, 1);
    }
    return oldest;
}

static bool start_round(lode_replica_h replica)
{
    lock(replica);
    bool started = lode_rounds_start(&replica->rounds, &replica->round, lode_now_ns());
    if (started) {
        replica->slot = choose_slot(replica);
        replica->slot->state = SLOT_FLYING;
    }
    unlock(replica);
    return started;
}

/* One head's tiles, which may lie in several pieces in the store. */
static lode_status_t send_head(lode_replica_h replica, uint32_t slot, uint32_t head, size_t tile_bytes, uint8_t *to)
{
    const lode_round_t *round = &replica->round;
    for (uint64_t at = round->first, run; at < round->end; at += run) {
        const uint8_t *tiles;
        run = lode_store_span(replica->cluster->store, slot, round->layer, head, at, round->end, &tiles);
        if (run == 0)
            return LODE_ERR_DROPPED;
        size_t bytes = run / LODE_TILE * tile_bytes;
        DEVICE(replica, copy(replica->stream, to, tiles, bytes));
        to += bytes;
    }
    return LODE_OK;
}

/* As root, fill the slot from the store. A block that was dropped meanwhile is sent all the same, as not valid. */
static lode_status_t fill_slot(lode_replica_h replica)
{
    const lode_round_t *round = &replica->round;
    lode_store_h store = replica->cluster->store;
    heading_t *heading = &replica->headings[0];
    lode_block_info_t info;
    uint32_t slot;
    *heading = (heading_t){MAGIC, round->number, round->block, round->first, round->end, 0, round->layer,
                           0,     replica->rank, false};
    if (lode_store_find_id(store, round->block, &slot) == LODE_OK && lode_store_live(store, slot, &info, NULL) &&
        info.id == round->block) {
        size_t tile = lode_landmark_tile_bytes(&info.landmark, replica->cluster->geometry.head_dim);
        heading->heads = info.kv_head_end - info.kv_head_begin;
        heading->head_stride = (round->end - round->first) / LODE_TILE * tile;
        lode_status_t status =
            HEADING + heading->heads * heading->head_stride == round->bytes &&
                    lode_landmarks_of(&info.landmark, lode_store_tokens(store, slot, round->layer)) >= round->end
                ? LODE_OK
                : LODE_ERR_DROPPED;
        for (uint32_t h = 0; h < heading->heads && status == LODE_OK; h++)
            status = send_head(replica, slot, h, tile, replica->slot->memory + HEADING + h * heading->head_stride);
        if (status != LODE_OK && status != LODE_ERR_DROPPED)
            return status;
        heading->valid = status == LODE_OK;
    }
    DEVICE(replica, copy(replica->stream, replica->slot->memory, heading, sizeof *heading));
    return LODE_OK;
}

/* Enqueue it, behind what still reads the slot. */
static lode_status_t call_round(lode_replica_h replica)
{
    if (replica->slot->follow)
        DEVICE(replica, event_follow(replica->stream, replica->slot->taken));
    replica->slot->follow = false;
    if (replica->round.root == replica->rank)
        LODE_TRY(fill_slot(replica));
    LODE_TRY(lode_broadcast_send(replica->broadcast, replica->round.root, replica->slot->memory, replica->round.bytes,
                                 replica->stream));
    replica->phase = PHASE_CALLED;
    return LODE_OK;
}

/* Behind the broadcast in the stream: its heading, for the host to see. */
static lode_status_t enqueue_rest(lode_replica_h replica)
{
    DEVICE(replica, copy(replica->stream, &replica->headings[1], replica->slot->memory, sizeof *replica->headings));
    DEVICE(replica, event_record(replica->passed, replica->stream));
    replica->phase = PHASE_ENQUEUED;
    return LODE_OK;
}

static bool fits(const heading_t *came, const lode_round_t *round)
{
    return came->magic == MAGIC && came->number == round->number && came->block == round->block &&
           came->layer == round->layer && came->first == round->first && came->end == round->end &&
           came->root == round->root && (!came->valid || HEADING + came->heads * came->head_stride == round->bytes);
}

static lode_status_t finish_round(lode_replica_h replica)
{
    const heading_t *came = &replica->headings[1];
    const lode_round_t *round = &replica->round;
    slot_t *slot = replica->slot;
    if (!fits(came, round))
        return lode_fail(LODE_ERR_INTERNAL, "broadcast %" PRIu64 " of rank %u brought another one's landmarks",
                         round->number, round->root);
    lock(replica);
    slot->state = came->valid ? SLOT_ARRIVED : SLOT_FREE;
    slot->arrival = round->number;
    slot->piece = (lode_replica_piece_t){.block = round->block,
                                         .layer = round->layer,
                                         .heads = came->heads,
                                         .first = round->first,
                                         .end = round->end,
                                         .tiles = slot->memory + HEADING,
                                         .head_stride = came->head_stride,
                                         .slot = (uint32_t)(slot - replica->slots)};
    replica->stats.sent += round->root == replica->rank;
    replica->stats.arrived++;
    replica->stats.bytes += round->bytes;
    atomic_fetch_add(&replica->arrived, came->valid);
    lode_rounds_finish(&replica->rounds, lode_now_ns());
    unlock(replica);
    replica->phase = PHASE_IDLE;
    return LODE_OK;
}

/* Go on with the round as far as it goes. */
static lode_status_t advance(lode_replica_h replica)
{
    bool ready = false, done = false;
    if (replica->phase == PHASE_IDLE)
        return start_round(replica) ? call_round(replica) : LODE_OK;
    LODE_TRY(lode_broadcast_poll(replica->broadcast, &ready));
    if (replica->phase == PHASE_CALLED)
        return ready ? enqueue_rest(replica) : LODE_OK;
    DEVICE(replica, event_done(replica->passed, &done));
    return done ? finish_round(replica) : LODE_OK;
}

/* ------------------------------------------------------------------ the thread */

/* Sleep until there is something to do; under the lock. */
static void rest(lode_replica_h replica, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t nanoseconds = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(nanoseconds / 1000000000u);
    until.tv_nsec = (long)(nanoseconds % 1000000000u);
    pthread_cond_timedwait(&replica->bell, &replica->lock, &until);
}

/* @return false: no more rounds */
static bool go_round(lode_replica_h replica)
{
    char cause[192];
    if (advance(replica) != LODE_OK)
        end(replica, lode_error_message());
    lock(replica);
    watch_members(replica, cause);
    if (cause[0])
        lode_rounds_end(&replica->rounds, "%s", cause);
    bool ended = lode_rounds_late(&replica->rounds, lode_now_ns());
    bool idle = replica->phase == PHASE_IDLE && !replica->rounds.here[replica->rounds.next % LODE_ROUNDS_AHEAD];
    if (!ended && !replica->leaving)
        rest(replica, idle ? IDLE_NS : BUSY_NS);
    bool go_on = !replica->rounds.ended && !replica->leaving;
    unlock(replica);
    report_end(replica);
    return go_on;
}

static lode_status_t connect_all(lode_replica_h replica)
{
    uint64_t until = lode_now_ns() + replica->params.connect_ms * UINT64_C(1000000);
    bool ready = false;
    DEVICE(replica, use(replica->params.device));
    DEVICE(replica, stream_create(replica->params.device, &replica->stream));
    DEVICE(replica, event_create(replica->params.device, &replica->passed));
    LODE_TRY(lode_broadcast_create(&replica->id, replica->ranks, replica->rank, &replica->broadcast));
    while (!ready) {
        LODE_TRY(lode_broadcast_poll(replica->broadcast, &ready));
        if (!ready && lode_now_ns() > until)
            return lode_fail(LODE_ERR_TIMEOUT, "NCCL did not connect %u ranks within %u ms", replica->ranks,
                             replica->params.connect_ms);
        lock(replica);
        if (!ready)
            rest(replica, BUSY_NS);
        unlock(replica);
    }
    return LODE_OK;
}

static void *take_part(void *argument)
{
    lode_replica_h replica = argument;
    pthread_setname_np(pthread_self(), "lode-replica");
    lode_status_t status = connect_all(replica);
    lock(replica);
    replica->met = status;
    snprintf(replica->words, sizeof replica->words, "%s", status == LODE_OK ? "" : lode_error_message());
    replica->connected = true;
    pthread_cond_broadcast(&replica->bell);
    unlock(replica);
    while (status == LODE_OK && go_round(replica))
        ;
    lode_broadcast_abort(&replica->broadcast);
    return NULL;
}

/* -------------------------------------------------------------------- create */

static lode_status_t open_slots(lode_replica_h replica)
{
    void *headings = NULL;
    DEVICE(replica, pinned_alloc(replica->params.device, 2 * sizeof *replica->headings, &headings));
    replica->headings = headings;
    for (uint32_t i = 0; i < replica->params.slots; i++) {
        void *memory = NULL;
        DEVICE(replica, alloc(replica->params.device, replica->params.slot_bytes, &memory));
        replica->slots[i].memory = memory;
        DEVICE(replica, event_create(replica->params.device, &replica->slots[i].taken));
    }
    return LODE_OK;
}

static void close_slots(lode_replica_h replica)
{
    const lode_device_ops_t *ops = replica->params.ops;
    if (replica->passed)
        ops->event_destroy(replica->passed);
    if (replica->stream)
        ops->stream_destroy(replica->stream);
    for (uint32_t i = 0; i < replica->params.slots; i++) {
        if (replica->slots[i].taken)
            ops->event_destroy(replica->slots[i].taken);
        if (replica->slots[i].memory)
            ops->free(replica->params.device, replica->slots[i].memory);
        replica->slots[i] = (slot_t){0};
    }
    if (replica->headings)
        ops->pinned_free(replica->params.device, replica->headings);
    replica->headings = NULL;
    replica->passed = replica->stream = NULL;
}

/* What this rank has. */
static void fill_card(lode_replica_h replica, lode_broadcast_card_t *card)
{
    const lode_replica_params_t *params = &replica->params;
    *card = (lode_broadcast_card_t){.wish = params->wish};
    if (!params->ops) {
        snprintf(card->why_not, sizeof card->why_not, "it has no GPU%s%.120s", params->why_not ? ": " : "",
                 params->why_not ? params->why_not : "");
        return;
    }
    snprintf(card->uuid, sizeof card->uuid, "%s", params->uuid);
    card->version = 1;
    if (params->wish == LODE_REPLICATE_HOST || (params->wish == LODE_REPLICATE_AUTO && replica->ranks == 1))
        return; /* a large library for nothing */
    card->version = 0;
    if (lode_broadcast_library(&card->version) != LODE_OK)
        snprintf(card->why_not, sizeof card->why_not, "%.150s", lode_error_message());
}

/* All ranks come to the same. */
static lode_status_t choose(lode_replica_h replica)
{
    lode_fabric_h fabric = replica->cluster->fabric;
    lode_broadcast_card_t card, *cards = calloc(replica->ranks, sizeof *cards);
    lode_status_t status = lode_fabric_worst(
        fabric, cards ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for cards of %u ranks", replica->ranks));
    fill_card(replica, &card);
    if (status == LODE_OK)
        status = lode_fabric_gather(fabric, &card, sizeof card, cards);
    if (status == LODE_OK)
        status = lode_broadcast_choose(cards, replica->ranks, &replica->nccl, replica->stats.reason);
    free(cards);
    return status;
}

static lode_status_t start_thread(lode_replica_h replica)
{
    if (pthread_create(&replica->thread, NULL, take_part, replica) != 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "the system gave no thread for broadcasts");
    replica->started = true;
    lock(replica);
    while (!replica->connected)
        pthread_cond_wait(&replica->bell, &replica->lock);
    lode_status_t status = replica->met == LODE_OK ? LODE_OK : lode_fail(replica->met, "%s", replica->words);
    unlock(replica);
    return status;
}

static void stop_thread(lode_replica_h replica)
{
    lock(replica);
    replica->leaving = true;
    pthread_cond_broadcast(&replica->bell);
    unlock(replica);
    if (replica->started)
        pthread_join(replica->thread, NULL);
    replica->started = false;
}

/* Connect all GPUs; every rank comes to the same, also where one of them cannot. */
static lode_status_t connect_or_not(lode_replica_h replica)
{
    lode_fabric_h fabric = replica->cluster->fabric;
    lode_status_t status = replica->rank == 0 ? lode_broadcast_identify(&replica->id) : LODE_OK;
    status = lode_fabric_worst(fabric, status);
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, open_slots(replica));
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, lode_fabric_spread(fabric, &replica->id, sizeof replica->id));
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, start_thread(replica));
    if (status == LODE_OK)
        return LODE_OK;
    lock(replica);
    lode_rounds_end(&replica->rounds, "%s", lode_error_message());
    replica->reported = replica->told = true;
    unlock(replica);
    replica->nccl = false;
    if (replica->params.wish == LODE_REPLICATE_NCCL)
        return status;
    snprintf(replica->stats.reason, sizeof replica->stats.reason, "NCCL did not connect: %.160s", lode_error_message());
    lode_warn("landmarks go to GPUs by their hosts: %s", replica->stats.reason);
    return LODE_OK;
}

static lode_replica_h replica_alloc(lode_cluster_h cluster, const lode_replica_params_t *params)
{
    lode_replica_h replica = calloc(1, sizeof *replica);
    pthread_condattr_t monotonic;
    if (!replica)
        return NULL;
    replica->cluster = cluster;
    replica->params = *params;
    lode_replica_params_t *set = &replica->params;
    set->slots = set->slots ? set->slots : SLOTS;
    set->slots = set->slots < 2 ? 2 : set->slots > SLOTS_MOST ? SLOTS_MOST : set->slots;
    set->slot_bytes = set->slot_bytes ? set->slot_bytes : SLOT_BYTES;
    set->least_bytes = set->least_bytes ? set->least_bytes : LEAST_BYTES;
    set->deadline_ms = set->deadline_ms ? set->deadline_ms : DEADLINE_MS;
    set->connect_ms = set->connect_ms ? set->connect_ms : CONNECT_MS;
    replica->ranks = lode_fabric_born(cluster->fabric);
    replica->rank = lode_fabric_rank(cluster->fabric);
    replica->epoch = lode_fabric_epoch(cluster->fabric);
    lode_rounds_begin(&replica->rounds, set->deadline_ms * UINT64_C(1000000));
    pthread_mutex_init(&replica->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&replica->bell, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return replica;
}

lode_status_t lode_replica_create(lode_cluster_h cluster, const lode_replica_params_t *params, lode_replica_h *out)
{
    lode_replica_h replica = replica_alloc(cluster, params);
    lode_status_t status = lode_fabric_worst(
        cluster->fabric, replica ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory to replicate landmarks"));
    if (status == LODE_OK && replica->ranks == 0)
        snprintf(replica->stats.reason, sizeof replica->stats.reason, "this rank joined later");
    else if (status == LODE_OK)
        status = choose(replica);
    if (status == LODE_OK && replica->nccl)
        status = connect_or_not(replica);
    if (status != LODE_OK) {
        lode_replica_destroy(&replica);
        return status;
    }
    replica->stats.nccl = replica->nccl;
    if (!replica->nccl) /* without a use for slots */
        lode_replica_close(replica);
    *out = replica;
    return LODE_OK;
}

void lode_replica_destroy(lode_replica_h *handle)
{
    lode_replica_h replica = *handle;
    if (!replica)
        return;
    stop_thread(replica); /* of one that was not closed: it did not come to rounds */
    close_slots(replica);
    pthread_cond_destroy(&replica->bell);
    pthread_mutex_destroy(&replica->lock);
    free(replica);
    *handle = NULL;
}

void lode_replica_stats(lode_replica_h replica, lode_replica_stats_t *stats)
{
    *stats = (lode_replica_stats_t){.reason = "there is no cluster"};
    if (!replica)
        return;
    lock(replica);
    *stats = replica->stats;
    unlock(replica);
}

/* ------------------------------------------------------------------ the mirror */

bool lode_replica_next(lode_replica_h replica, lode_replica_piece_t *piece)
{
    slot_t *oldest = NULL;
    if (!replica || atomic_load_explicit(&replica->arrived, memory_order_relaxed) == 0)
        return false;
    lock(replica);
    for (uint32_t i = 0; i < replica->params.slots; i++) {
        slot_t *slot = &replica->slots[i];
        if (slot->state == SLOT_ARRIVED && (!oldest || slot->arrival < oldest->arrival))
            oldest = slot;
    }
    if (oldest) {
        oldest->state = SLOT_TAKEN;
        *piece = oldest->piece;
        replica->stats.taken++;
        atomic_fetch_sub(&replica->arrived, 1);
    }
    unlock(replica);
    return oldest;
}

void lode_replica_give_back(lode_replica_h replica, const lode_replica_piece_t *piece, lode_device_stream_t stream)
{
    slot_t *slot = &replica->slots[piece->slot];
    /* Should recording fail, the stream is waited for; should that fail, the device is lost with all that is on it. */
    bool follow = replica->params.ops->event_record(slot->taken, stream) == LODE_OK;
    if (!follow)
        replica->params.ops->stream_wait(stream);
    lock(replica);
    slot->follow = follow;
    slot->state = SLOT_FREE;
    unlock(replica);
}

/* ------------------------------------------------------------------- to others */

/* What became of calls to others: the first that failed. */
typedef struct answers {
    lode_status_t status;
    uint32_t from;
    uint64_t offset;
    char message[160];
} answers_t;

static void take_answer(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    answers_t *answers = context;
    if (status == LODE_OK)
        answers->offset = reply->offset;
    if (status == LODE_OK || answers->status != LODE_OK)
        return;
    answers->status = status;
    answers->from = from;
    snprintf(answers->message, sizeof answers->message, "%.150s",
             reply && reply->message && *reply->message ? reply->message : lode_error_message());
}

/* To all ranks of the start, this one too. */
static void call_all(lode_replica_h replica, Lodemark__Call *call, answers_t *answers)
{
    lode_fabric_h fabric = replica->cluster->fabric;
    for (uint32_t r = 0; r < replica->ranks; r++) {
        lode_status_t status = lode_fabric_call(fabric, r, call, NULL, 0, take_answer, answers);
        if (status != LODE_OK)
            take_answer(answers, r, status, NULL);
    }
}

/* Once, when it is over for this rank: others would wait for it in the next round. */
static void tell_end(lode_replica_h replica)
{
    char cause[192];
    lock(replica);
    bool tell = replica->rounds.ended && !replica->told;
    replica->told |= tell;
    snprintf(cause, sizeof cause, "%s", replica->rounds.cause);
    unlock(replica);
    if (!tell)
        return;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    Lodemark__RoundsEnd message = LODEMARK__ROUNDS_END__INIT;
    answers_t answers = {0};
    message.cause = cause;
    call.body_case = LODEMARK__CALL__BODY_ROUNDS_END;
    call.rounds_end = &message;
    call_all(replica, &call, &answers);
    lode_fabric_calls_wait(replica->cluster->fabric);
}

void lode_replica_close(lode_replica_h replica)
{
    if (!replica)
        return;
    lock(replica);
    if (lode_rounds_end(&replica->rounds, "%s", LEAVES))
        replica->reported = true;
    unlock(replica);
    if (replica->nccl)
        tell_end(replica);
    stop_thread(replica);
    close_slots(replica);
}

/* Numbers from rank 0. @return false: none; it is busy, or there are no rounds any more */
static bool ask_numbers(lode_replica_h replica, uint32_t count, uint64_t *first)
{
    Lodemark__Call call = LODEMARK__CALL__INIT;
    Lodemark__RoundAsk ask = LODEMARK__ROUND_ASK__INIT;
    answers_t answers = {0};
    ask.count = count;
    call.body_case = LODEMARK__CALL__BODY_ROUND_ASK;
    call.round_ask = &ask;
    lode_status_t status = lode_fabric_call(replica->cluster->fabric, 0, &call, NULL, 0, take_answer, &answers);
    if (status != LODE_OK)
        take_answer(&answers, 0, status, NULL);
    lode_fabric_calls_wait(replica->cluster->fabric);
    status = answers.status;
    if (status != LODE_OK && status != LODE_ERR_FULL) {
        char cause[192];
        snprintf(cause, sizeof cause, "rank 0 gives no numbers: %.150s", answers.message);
        end(replica, cause);
    }
    *first = answers.offset;
    return status == LODE_OK;
}

static void announce(lode_replica_h replica, const lode_round_t *round, answers_t *answers)
{
    Lodemark__Call call = LODEMARK__CALL__INIT;
    Lodemark__Round message = LODEMARK__ROUND__INIT;
    message.number = round->number;
    message.block = round->block;
    message.layer = round->layer;
    message.first = round->first;
    message.end = round->end;
    message.bytes = round->bytes;
    call.body_case = LODEMARK__CALL__BODY_ROUND;
    call.round = &message;
    call_all(replica, &call, answers);
}

/* Rounds of the tiles [first, end), at most `most` landmarks each. */
static void offer_tiles(lode_replica_h replica, lode_block_h block, uint32_t layer, uint64_t first, uint64_t end_at,
                        uint64_t most, size_t tile_row)
{
    answers_t answers = {0};
    uint64_t number, count = (end_at - first + most - 1) / most;
    if (count > LODE_ROUNDS_GIVEN || !ask_numbers(replica, (uint32_t)count, &number))
        return;
    for (; first < end_at; first += most) {
        uint64_t to = end_at - first < most ? end_at : first + most;
        lode_round_t round = {.number = number++,
                              .root = replica->rank,
                              .layer = layer,
                              .block = block->info.id,
                              .first = first,
                              .end = to,
                              .bytes = HEADING + (to - first) / LODE_TILE * tile_row};
        announce(replica, &round, &answers);
    }
    lode_fabric_calls_wait(replica->cluster->fabric);
    if (answers.status != LODE_OK) { /* it would be waited for by those that know of it */
        char cause[192];
        snprintf(cause, sizeof cause, "rank %u takes no part: %.150s", answers.from, answers.message);
        end(replica, cause);
    }
}

void lode_replica_offer(lode_replica_h replica, lode_block_h block, uint32_t layer, uint64_t tokens)
{
    if (!replica || !replica->nccl)
        return;
    const lode_landmark_spec_t *spec = &block->info.landmark;
    lode_tail_t *tail = &block->tails[layer];
    uint64_t first = tail->offered, to = lode_landmarks_of(spec, tokens) / LODE_TILE * LODE_TILE;
    size_t tile_row = block->heads * lode_landmark_tile_bytes(spec, block->cluster->geometry.head_dim);
    uint64_t most = (replica->params.slot_bytes - HEADING) / tile_row * LODE_TILE;
    lock(replica);
    bool ended = replica->rounds.ended;
    unlock(replica);
    tail->offered = to;
    if (!ended && most && to > first && (to - first) / LODE_TILE * tile_row >= replica->params.least_bytes)
        offer_tiles(replica, block, layer, first, to, most, tile_row);
    tell_end(replica);
}

/* --------------------------------------------------------------------- serving */

static lode_status_t serve_round(lode_replica_h replica, uint32_t from, const Lodemark__Round *message)
{
    lode_round_t round = {.number = message->number,
                          .root = from,
                          .layer = message->layer,
                          .block = message->block,
                          .first = message->first,
                          .end = message->end,
                          .bytes = message->bytes};
    if (from >= replica->ranks || round.first >= round.end || round.first % LODE_TILE || round.end % LODE_TILE ||
        round.layer >= replica->cluster->geometry.layers || round.bytes <= HEADING ||
        round.bytes > replica->params.slot_bytes)
        return lode_fail(LODE_ERR_FORMAT, "a message of rank %u announces a broadcast that cannot be", from);
    lock(replica);
    lode_status_t status = lode_rounds_add(&replica->rounds, &round, lode_now_ns());
    pthread_cond_signal(&replica->bell);
    unlock(replica);
    return status;
}

static lode_status_t serve_ask(lode_replica_h replica, uint32_t count, Lodemark__Reply *reply)
{
    uint64_t first = 0;
    if (replica->rank != 0)
        return lode_fail(LODE_ERR_INVALID, "rank %u numbers no broadcasts; rank 0 does", replica->rank);
    lock(replica);
    lode_status_t status = lode_rounds_give(&replica->rounds, count, &first);
    unlock(replica);
    if (status == LODE_OK)
        reply->offset = first;
    return status;
}

lode_status_t lode_replica_serve(lode_replica_h replica, uint32_t from, const Lodemark__Call *call,
                                 Lodemark__Reply *reply)
{
    char cause[192];
    if (!replica || !replica->nccl)
        return lode_fail(LODE_ERR_UNSUPPORTED, "this rank takes part in no broadcasts");
    if (call->body_case == LODEMARK__CALL__BODY_ROUND)
        return serve_round(replica, from, call->round);
    if (call->body_case == LODEMARK__CALL__BODY_ROUND_ASK)
        return serve_ask(replica, call->round_ask->count, reply);
    snprintf(cause, sizeof cause, "rank %u said: %.160s", from, call->rounds_end->cause);
    lock(replica);
    replica->told = true; /* by that rank */
    unlock(replica);
    end(replica, cause);
    return LODE_OK;
}
