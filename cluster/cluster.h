/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cluster.h
 * @brief The ranks of a job and what travels between them: bootstrap, membership, calls, fetches.
 *
 * MPI bootstraps, UCX carries. After lode_fabric_create() no call here is an MPI collective, but for
 * lode_fabric_destroy() among ranks of which none has died.
 *
 * Two UCX workers a rank. The *service* worker belongs to a progress thread that answers calls and
 * fetches of others, also while this rank computes; it sleeps when nothing arrives. The *client*
 * worker belongs to the caller's thread: its calls and fetches, progressed only inside functions of
 * this header. Handlers run on the service thread.
 *
 * This room knows messages and bytes, not blocks: what a call means and where a record lies is asked
 * of the handlers.
 */
#ifndef LODE_CLUSTER_H
#define LODE_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"
#include "cluster/affinity.h"
#include "lodemark.pb-c.h"

typedef struct lode_fabric *lode_fabric_h;

/* --------------------------------------------------------------- membership */

/*
 * A rank number is a *slot*. A slot whose process is lost can be taken again by a new process, and new slots can be
 * added while the cluster runs; a slot's *incarnation* tells its processes apart. Who is a member is *agreed*: the
 * decider (the lowest member that is not lost itself) proposes numbered sets of members, epochs, and the members vote.
 * A rank stops using a peer at once when its endpoint fails (lode_fabric_alive()); the epoch follows.
 *
 * With heartbeats (params.beat_ms) a rank that is silent for suspect_ms is removed as well, and a rank that has not
 * heard from the decider for lease_ms is *fenced*: it goes on answering fetches and refuses calls, because the others
 * may have gone on without it. Without heartbeats, endpoint errors alone remove members and nobody is ever fenced.
 */

typedef struct lode_member {
    uint64_t node; /**< stable id of its failure domain: hash of host name, or of LODEMARK_NODE */
    uint64_t arena_bytes;
    uint32_t node_index; /**< 0 … nodes−1 */
    uint32_t local_rank; /**< among the ranks that share memory with it */
    char host[64];
} lode_member_t;

uint32_t lode_fabric_rank(lode_fabric_h fabric);
/** Slots in use, living or not. Any thread; only ever grows, up to lode_fabric_capacity(). */
uint32_t lode_fabric_ranks(lode_fabric_h fabric);
/** Most slots there can ever be: what tables over ranks are sized for. Constant after create. */
uint32_t lode_fabric_capacity(lode_fabric_h fabric);
/**
 * (capacity), of which the first lode_fabric_ranks() are filled. The array stays where it is; an entry is rewritten
 * only while its rank is not alive, just before lode_fabric_incarnation() of it goes up.
 */
const lode_member_t *lode_fabric_members(lode_fabric_h fabric);
/** Which process has the slot: 1 for the first, one more for each that took it later; 0: none had it yet. Any thread.
 */
uint32_t lode_fabric_incarnation(lode_fabric_h fabric, uint32_t rank);
/** Whether the process that has the slot lives, and had it in that epoch already: what was said of it then still holds.
 */
bool lode_fabric_lives_since(lode_fabric_h fabric, uint32_t rank, uint32_t epoch);
/** Any thread. False from the first endpoint error on, or once it was declared lost; true again when it is taken. */
bool lode_fabric_alive(lode_fabric_h fabric, uint32_t rank);
uint32_t lode_fabric_alive_count(lode_fabric_h fabric);
/** Whether all processes that MPI started are members still: else MPI_Finalize() would wait for ever. Any thread. */
bool lode_fabric_intact(lode_fabric_h fabric);
/**
 * Agreed membership number: 1 at the start, higher with every change of members. Two ranks with the same number mean
 * the same members in the same incarnations. Follows lode_fabric_alive() after a moment. Any thread.
 */
uint32_t lode_fabric_epoch(lode_fabric_h fabric);
/** Whether this rank lost touch with the decider for a lease: its own calls and others' to it are refused. Any thread.
 */
bool lode_fabric_fenced(lode_fabric_h fabric);
/**
 * Whether the others went on without this rank (it was stopped, or cut off). Stays so: it serves nothing any more, and
 * the program ends or joins again as a new process. Any thread.
 */
bool lode_fabric_expelled(lode_fabric_h fabric);
/** Lowest living rank of the job, as this rank sees it. */
uint32_t lode_fabric_leader(lode_fabric_h fabric);
/** Lowest living rank that shares memory with @p rank: the keeper of its node's landmark store. */
uint32_t lode_fabric_keeper(lode_fabric_h fabric, uint32_t rank);
/** "one-sided", "batched", "mixed"; and one sentence why. Constant after create. */
const char *lode_fabric_path(lode_fabric_h fabric, const char **reason);

/** What passed between this rank and another since its incarnation began. Rates are differences of two readings. */
typedef struct lode_link_stats {
    uint64_t bytes_in; /**< records that landed here by fetches from it */
    uint64_t calls;    /**< made to it */
    uint32_t heard_ms; /**< since its last heartbeat; 0: there are none between these two ranks */
} lode_link_stats_t;

/** Any thread. All zero for this rank itself and for one without a process. */
void lode_fabric_link_stats(lode_fabric_h fabric, uint32_t rank, lode_link_stats_t *stats);
/**
 * Records that this rank packed for others since its start, and a second over the last ones. Any thread.
 * Others that read its arena by themselves (one-sided) leave no trace here: theirs is the bytes_in.
 */
void lode_fabric_served(lode_fabric_h fabric, uint64_t *bytes, double *bytes_per_second);

/* ------------------------------------------------------------------- create */

/** Bytes that a handler wants sent back beside its reply; none here needs one. */
typedef struct lode_fabric_handlers {
    /**
     * Serve one call of rank @p from. Runs on the service thread, or on the caller's for a call to the own rank,
     * but never twice at once. payload is borrowed for the call. Fills reply's offset and size;
     * the status it returns and, on an error, the thread's lode_error_message() go back with it.
     */
    lode_status_t (*serve)(void *context, uint32_t from, const Lodemark__Call *call, const void *payload, size_t bytes,
                           Lodemark__Reply *reply);
    /**
     * Where a page of this rank's shard lies: lock-free. @return NULL if it holds no such page, or if
     * the page is smaller than @p record_end bytes.
     */
    const uint8_t *(*page)(void *context, uint64_t block, uint32_t layer, uint32_t page, size_t record_end);
    /** Copy count pieces of bytes each (kernels' gather). */
    void (*gather)(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes);
    uint32_t (*crc32c)(uint32_t seed, const void *data, size_t bytes);
} lode_fabric_handlers_t;

typedef enum lode_path { LODE_PATH_AUTO, LODE_PATH_ONE_SIDED, LODE_PATH_BATCHED } lode_path_t;

typedef struct lode_fabric_params {
    const char *node;   /**< name of this rank's failure domain; "": the host's */
    bool rank_is_node;  /**< every rank its own failure domain */
    size_t arena_bytes; /**< registered for one-sided reads; huge pages where there are some */
    lode_path_t path;
    size_t landing_bytes;       /**< of one landing buffer; there are LODE_LANDINGS of them */
    size_t reply_bytes;         /**< aim of one reply message */
    size_t credit_bytes;        /**< most reply bytes asked of one owner and not yet landed */
    uint32_t fetch_deadline_ms; /**< then the next owner is asked */
    uint32_t hedge_ms;          /**< an owner silent for so long has competition from the next; 0: never */
    uint32_t call_deadline_ms;
    uint32_t spin_us;    /**< how long an idle thread polls before it sleeps */
    uint32_t max_ranks;  /**< capacity in slots; 0: those of the MPI job and 8 more */
    uint32_t beat_ms;    /**< between heartbeats; 0: none, and the next two do not matter */
    uint32_t suspect_ms; /**< of silence, then a rank is held for lost; 0: only endpoint errors count */
    uint32_t lease_ms;   /**< without the decider, or as decider without most of the ranks, then fenced */
    lode_fabric_handlers_t handlers;
    void *context; /**< passed to handlers, and to gpu */
    /**
     * Where this rank's GPU is, if it is to have its memory near it; local_rank: of this host's ranks. NULL: it has
     * none. Asked once, in lode_fabric_create(). @return false: it has none
     */
    bool (*gpu)(void *context, uint32_t local_rank, char address[16]);
    bool near_or_fail; /**< what is near the GPU must be found; else what can be is */
} lode_fabric_params_t;

/**
 * Bootstrap over MPI_COMM_WORLD (MPI is initialised), exchange addresses, connect, choose paths. Collective.
 * @p local_status is what the caller's own preparation came to: if it, or anything here, fails on one rank,
 * every rank returns an error. Handlers may run only after lode_fabric_start().
 */
lode_status_t lode_fabric_create(const lode_fabric_params_t *params, lode_status_t local_status, lode_fabric_h *fabric);
/** Start the service thread. Collective: no rank's calls can arrive before all have started. */
lode_status_t lode_fabric_start(lode_fabric_h fabric);
/** Stop the thread, disconnect, free. Collective among the living; waits for nobody once a member is lost. */
void lode_fabric_destroy(lode_fabric_h *fabric);

/* --------------------------------------------------------------------- join */

/*
 * A process that no MPI started becomes a member, by bytes passed over a channel of the caller's:
 *
 *     new process: lode_fabric_prepare()  ── card ──►  a living rank: lode_fabric_admit()
 *     new process: lode_fabric_enter()    ◄── invitation ──
 *     new process: lode_fabric_start(), soon: 2 s after the admission its heartbeats are missed
 *
 * Card and invitation hold keys to the ranks' memory: the channel must be authenticated, and is trusted.
 * Such a process shares memory with nobody: lode_fabric_shared() is its own, and lode_fabric_worst() and
 * lode_fabric_agree() answer for itself alone. Arenas of ranks of its host are mapped where the kernel lets it; from
 * all others it fetches, and is fetched from, by batched requests, because the probe for one-sided reads needs all
 * ranks at once.
 */

/**
 * Create workers, arena and landing buffers, without MPI and without peers. lode_fabric_rank() means nothing before
 * lode_fabric_enter(). params.max_ranks is replaced by the cluster's.
 * @param[out] card  to give to lode_fabric_admit() of a living rank; the caller frees it with free()
 */
lode_status_t lode_fabric_prepare(const lode_fabric_params_t *params, lode_fabric_h *fabric, void **card,
                                  size_t *card_bytes);
/**
 * On a member, by the thread that owns the client worker: have the process that sent @p card made a member, in an
 * epoch of its own. It takes the dead slot of its failure domain if there is one, else a new slot, else any dead one.
 * Bounded by a few call deadlines.
 * @param[out] invitation  to give to its lode_fabric_enter(); the caller frees it with free()
 * @return LODE_ERR_FORMAT (no card of this version), LODE_ERR_FULL (no slot), LODE_ERR_PEER_LOST (fenced, or the
 *         decider was lost meanwhile: try again), LODE_ERR_TIMEOUT
 */
lode_status_t lode_fabric_admit(lode_fabric_h fabric, const void *card, size_t card_bytes, void **invitation,
                                size_t *invitation_bytes);
/**
 * The same in pieces, for a thread that has other things to do meanwhile: it goes on with the fabric
 * (lode_fabric_progress(), or whatever waits for an answer), and polls every few ms. The card is copied. An admission
 * is ended in any case, also by a caller that does not wait for its end; what the others make of the card is theirs
 * then.
 */
typedef struct lode_admission *lode_admission_h;
lode_status_t lode_fabric_admit_begin(lode_fabric_h fabric, const void *card, size_t card_bytes,
                                      lode_admission_h *admission);
/** @param[out] invitation  NULL with LODE_OK: not yet */
lode_status_t lode_fabric_admit_poll(lode_admission_h admission, void **invitation, size_t *invitation_bytes);
void lode_fabric_admit_end(lode_admission_h *admission);
/** In the new process: take the slot, connect to all. lode_fabric_start() comes next. */
lode_status_t lode_fabric_enter(lode_fabric_h fabric, const void *invitation, size_t invitation_bytes);

/** What is near this rank's GPU, and why not; as params.gpu had it. Constant after create. */
const lode_affinity_t *lode_fabric_near(lode_fabric_h fabric);
/**
 * Where records land that come from other ranks: "device memory" or "host memory", and one sentence why. Constant after
 * create.
 */
const char *lode_fabric_landing_memory(lode_fabric_h fabric, const char **reason);
/** This rank's arena. */
void *lode_fabric_arena(lode_fabric_h fabric);
/**
 * A zero-filled sparse mapping of @p bytes shared by the ranks of this node. Collective over the node. @p fd for
 * fallocate, which says LODE_ERR_FULL's cause before a write would end in SIGBUS. Both belong to the fabric and
 * go with it.
 */
lode_status_t lode_fabric_shared(lode_fabric_h fabric, size_t bytes, void **base, int *fd);
/** Whether all ranks pass the same bytes (a geometry). Collective. @p rank: the first that differs from rank 0. */
lode_status_t lode_fabric_agree(lode_fabric_h fabric, const void *data, size_t bytes, bool *same, uint32_t *rank);
/** What every rank passes, (ranks) pieces in their order; of a process that joined later, its own alone. Collective. */
lode_status_t lode_fabric_gather(lode_fabric_h fabric, const void *mine, size_t bytes, void *all);
/** Every rank gets rank 0's bytes. Collective. */
lode_status_t lode_fabric_spread(lode_fabric_h fabric, void *data, size_t bytes);
/** Ranks that MPI started; 0: this process joined later. */
uint32_t lode_fabric_born(lode_fabric_h fabric);
/** Every rank learns the worst status; message of the failing rank becomes everyone's. Collective. */
lode_status_t lode_fabric_worst(lode_fabric_h fabric, lode_status_t status);

/* -------------------------------------------------------------------- calls */

/** @p status: the peer's answer, LODE_ERR_PEER_LOST or LODE_ERR_TIMEOUT. reply is borrowed, NULL without an answer. */
typedef void (*lode_call_done_t)(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply);

/**
 * Send a call; done is called inside a function of this header, exactly once, and may make calls itself. A call
 * to the own rank is served and done before this returns. call's id, epoch and from are filled here. Calls to one
 * rank may be served in another order than they were made: wait for what must come first.
 * @param payload  copied, at most 64 MiB
 * Blocks (progressing) while too many calls are under way; that bounds memory at the peer.
 * @return an error, LODE_ERR_PEER_LOST for a rank known to be lost; done is not called then.
 */
lode_status_t lode_fabric_call(lode_fabric_h fabric, uint32_t to, Lodemark__Call *call, const void *payload,
                               size_t bytes, lode_call_done_t done, void *context);
/** Progress until no call is under way. */
void lode_fabric_calls_wait(lode_fabric_h fabric);
/** Send a call and wait. @p reply_offset and @p reply_size may be NULL. */
lode_status_t lode_fabric_call_wait(lode_fabric_h fabric, uint32_t to, Lodemark__Call *call, const void *payload,
                                    size_t bytes, uint64_t *reply_offset, uint32_t *reply_size);
/** One round of client progress, without waiting. */
void lode_fabric_progress(lode_fabric_h fabric);
/**
 * While answers to calls are waited for, beyond the millisecond that they take of ranks that are well, run this about
 * every millisecond: a rank that hangs keeps only those waiting that want something of it. What is run may fetch, not
 * call. By the thread that owns the client worker; NULL: nothing.
 */
void lode_fabric_meanwhile(lode_fabric_h fabric, void (*run)(void *context), void *context);
/** Go on with what is under way, and with other work, for some ms: before something is tried again. */
void lode_fabric_rest(lode_fabric_h fabric, uint64_t ns);

/* -------------------------------------------------------------------- fetch */

/** Landing buffers: while one is attended over, the next fills; the rest stand in for quarantined ones. */
#define LODE_LANDINGS 4

/** Records of one page and head: the bits of mask, lowest first, land next to each other. */
typedef struct lode_fetch_item {
    uint64_t mask; /**< tokens of the page, not 0 */
    uint64_t block;
    uint32_t page;
    uint16_t head;    /**< index in the page */
    uint16_t user;    /**< the caller's */
    uint32_t landing; /**< byte offset in the landing buffer, a multiple of 8 */
} lode_fetch_item_t;

/** An owner to ask for an item. */
typedef struct lode_fetch_source {
    uint32_t rank;
    bool has_offset;
    uint64_t offset; /**< of the page in the owner's arena, for the one-sided path */
    bool published;  /**< known to hold the page: worth asking beside an owner that is silent */
} lode_fetch_source_t;

typedef struct lode_fetch {
    /* in; borrowed until the fetch has ended */
    const lode_fetch_item_t *items;
    uint32_t count;
    uint32_t layer;
    uint32_t record_bytes;
    /**
     * The attempt-th (0, 1, …) owner to ask for an item. @return false when there is none left. May be asked for
     * any attempt, more than once. Neither this nor verify may call functions of this header that progress.
     */
    bool (*source)(void *context, const lode_fetch_item_t *item, uint32_t attempt, lode_fetch_source_t *source);
    /** Whether the landed records of an item are what was asked for. A refusal counts as a failed attempt. */
    bool (*verify)(void *context, const lode_fetch_item_t *item, const uint8_t *records);
    /**
     * Called at the end of the wait for each item that nobody could give, in their order; nothing has landed for it.
     * NULL: the first such item ends the fetch, which has failed then.
     */
    void (*lose)(void *context, const lode_fetch_item_t *item);
    void *context;
    /**
     * Begun long before it is waited for, if it ever is: owners' deadlines count from then on, and owners that have
     * missed theirs are not asked again.
     */
    bool ahead;
    /* out */
    uint8_t *landing; /**< where item.landing counts from; settled when the wait returns, yours until the release */
    uint64_t bytes;   /**< landed */
    uint64_t requests;
    uint32_t retries;
    uint64_t owners;               /**< bit set of ranks asked, modulo 64 */
    const lode_fetch_item_t *lost; /**< the first item that nobody could give */
    char why[192];                 /**< of that item: "rank 1: lost; rank 2: missed deadline" */
    void *state;                   /**< the fabric's */
} lode_fetch_t;

/**
 * Begin a fetch: take a landing buffer and send the requests. At most two fetches are under way at once.
 * Never allocates after warm-up; keeps what it allocated. count = 0 is legal.
 * @return LODE_ERR_INVALID (landing too small for the items), LODE_ERR_TIMEOUT (all landing buffers in quarantine).
 */
lode_status_t lode_fabric_fetch(lode_fabric_h fabric, lode_fetch_t *fetch);
/**
 * Progress until it has ended. An owner that fails, misses the deadline or does not hold a page is
 * followed by the item's next source. One that says nothing for hedge_ms, though it is waited for, gets competition:
 * what it was asked by message is asked of the next published owner as well, and whichever lands first counts.
 * (Reads of an owner's memory need nobody's attention there, and have the deadline alone.)
 * On an error the landing buffer is released already.
 * @return LODE_ERR_PAGE_LOST with fetch->lost set, when an item has no source left and fetch->lose is NULL.
 */
lode_status_t lode_fabric_fetch_wait(lode_fabric_h fabric, lode_fetch_t *fetch);
/**
 * Give the landing buffer back; it is quarantined while a late one-sided read may still write to it. A fetch that is
 * under way is given up.
 */
void lode_fabric_fetch_release(lode_fabric_h fabric, lode_fetch_t *fetch);

/** All landing buffers, one behind the other: constant after create. */
void *lode_fabric_landings(lode_fabric_h fabric, size_t *bytes);
/** Landing buffers that are free. @param[out] late  that are in quarantine */
uint32_t lode_fabric_landings_free(lode_fabric_h fabric, uint32_t *late);
/** Bytes of a landing buffer. */
size_t lode_fabric_landing_bytes(lode_fabric_h fabric);

/** An item on the wire. Little-endian. */
typedef struct lode_wire_item {
    uint64_t mask;
    uint32_t page;
    uint16_t head;
    uint16_t block; /**< index into FetchRequest.blocks */
} lode_wire_item_t;

#endif
