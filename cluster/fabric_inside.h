/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file fabric_inside.h
 * @brief What the files of cluster/ share: the fabric's parts and who may touch them.
 *
 * Two threads. The caller's owns everything marked "client", the service thread everything marked
 * "service". Between them pass atomics (who is alive, the epoch, the order to stop) and the table of slots, under a
 * lock that is taken when members change.
 */
#ifndef LODE_CLUSTER_FABRIC_INSIDE_H
#define LODE_CLUSTER_FABRIC_INSIDE_H

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <ucp/api/ucp.h>

#include "cluster/cluster.h"
#include "cluster/epoch.h"
#include "cluster/message.h"

/** Ids of the active messages. Replies go to client workers, the others to service workers. */
enum { FABRIC_AM_CALL = 1, FABRIC_AM_FETCH, FABRIC_AM_REPLY, FABRIC_AM_FETCH_REPLY, FABRIC_AM_GOODBYE, FABRIC_AM_BEAT };

/** Calls of one rank that have no answer yet, and the bytes of their payloads. */
#define FABRIC_CALLS_MAX 64
#define FABRIC_CALL_BYTES_MAX ((size_t)64 << 20)
/** Fetches under way at once. */
#define FABRIC_FETCHES 2
/** One-sided reads of one peer under way at once. */
#define FABRIC_GETS_MAX 256
/**
 * Reply buffers of an owner: two for every rank, that nobody else can take, and some that whoever comes first can,
 * but only so many each. A requester that stops listening keeps those it has.
 */
#define FABRIC_REPLIES_RANK 2u
#define FABRIC_REPLIES_SHARED 16u
#define FABRIC_REPLIES_MOST 10u
/** Calls with large payloads that an owner receives at once. */
#define FABRIC_RECEIVES 8
#define FABRIC_SHARED_MAX 8
/** Holds the largest message of MESSAGE_HEADER_MAX bytes once unpacked, with what the unpacking itself takes. */
#define FABRIC_BUMP_BYTES 65536
#define FABRIC_NONE UINT32_MAX
/** Slots beside those of the MPI job, if the caller names no number. */
#define FABRIC_SPARE 8u
#define FABRIC_CARD_VERSION 0x6c6f646500000002u

/** Turn the code of an MPI or UCX call into ours, with the name of the call in the sentence. */
#define FABRIC_MPI(call) fabric_mpi_status((call), #call)
#define FABRIC_UCX(call) fabric_ucx_status((call), #call)
lode_status_t fabric_mpi_status(int code, const char *call);
lode_status_t fabric_ucx_status(ucs_status_t code, const char *call);

/** Where other processes of this host find a memory file; it has no name, so a killed job leaves none behind. */
typedef struct fabric_memfile {
    int64_t pid;
    uint64_t inode;
    int32_t fd; /**< in that process; −1: none */
} fabric_memfile_t;

/** What ranks tell each other at the start, fixed part. What it says of slot and place is filled by who admits it. */
typedef struct fabric_card {
    uint64_t version; /**< of messages and of this struct */
    uint64_t who;     /**< see epoch.h */
    uint64_t domain;  /**< hash of the name of its failure domain */
    uint64_t node, arena_base, arena_bytes, reply_capacity;
    uint64_t share; /**< the same number: they share memory */
    uint32_t slot;
    uint32_t nonce;        /**< tells two processes of a slot apart */
    uint32_t rank_is_node; /**< node is made of domain and slot */
    uint32_t local_rank;
    fabric_memfile_t arena;                           /**< for ranks that share memory with it */
    uint32_t service_bytes, client_bytes, rkey_bytes; /**< of what follows the card: two addresses, a key */
    char host[64];
} fabric_card_t;

/** One direction to one peer: an endpoint of one of our workers. Touched by that worker's thread alone. */
typedef struct fabric_link {
    lode_fabric_h fabric;
    uint32_t rank, incarnation;
    bool failed; /**< set by the error handler; closed from outside of it */
    bool closed; /**< and not opened again for this incarnation */
    ucp_ep_h ep; /**< NULL: none (this rank itself, or closed) */
} fabric_link_t;

/** A process and the slot it has or had. */
typedef struct fabric_slot {
    uint64_t who; /**< see epoch.h; 0: the slot was never used */
    bool member;
    uint32_t joined; /**< number of the epoch that brought it */
    fabric_card_t card;
    uint8_t *blob; /**< what follows the card: two addresses, a key */
} fabric_slot_t;

typedef struct fabric_peer {
    fabric_link_t asks;    /**< client: our client worker → its service worker */
    fabric_link_t answers; /**< service: our service worker → its client worker */
    fabric_link_t beats;   /**< service: our service worker → its service worker; opened when first needed */
    uint32_t beating;      /**< service: heartbeats on their way to it */
    uint32_t incarnation;  /**< client: of the process that asks.ep, rkey, mapped and its card belong to; 0: none */
    size_t mapped_bytes;   /**< client */
    uint32_t replies;      /**< service: reply buffers on their way to it */
    ucp_rkey_h rkey;       /**< client: of its arena, for asks.ep */
    const uint8_t *mapped; /**< client: its arena in this process, if it is on this host */
    bool one_sided;
    uint64_t avoid_until_ns;          /**< client: it was silent too long; others first until then */
    uint64_t heard_ns;                /**< client: of its last answer to a fetch */
    uint32_t requests;                /**< client: fetch requests that UCX or a fetch still holds */
    uint32_t asked;                   /**< client: of those, the ones that a fetch waits for */
    uint32_t gets;                    /**< client: one-sided reads under way */
    uint32_t zombies;                 /**< client: calls given up whose payload UCX still holds */
    size_t credit;                    /**< client: reply bytes asked for and not landed */
    _Atomic uint64_t bytes_in, calls; /**< client writes, for statistics */
} fabric_peer_t;

/** Memory that is bound to this process's NUMA nodes and registered with UCX. */
typedef struct fabric_region {
    uint8_t *base; /**< NULL: none */
    size_t bytes;
    ucp_mem_h memh;
    int fd; /**< of the memory file behind it, −1: private memory */
} fabric_region_t;

/** The message of a process that has no more to ask. */
typedef struct fabric_farewell {
    uint32_t rank, incarnation;
} fabric_farewell_t;

typedef enum fabric_landing_state { LANDING_FREE, LANDING_HELD, LANDING_QUARANTINED } fabric_landing_state_t;

/** A landing buffer. writers: UCX operations that may still write to it. */
typedef struct fabric_landing {
    fabric_landing_state_t state;
    uint32_t writers;
} fabric_landing_t;

/** Objects found by the id that goes out with a message and comes back with its answer. */
typedef struct fabric_table {
    void **objects;
    uint32_t count, capacity;
} fabric_table_t;

/** Counters for tests and for `info`. */
typedef struct fabric_counters {
    uint64_t late_replies; /**< answers to questions that were given up */
    uint64_t quarantines;
    uint64_t deadlines;
    uint64_t hedged; /**< requests whose items were asked of other owners as well */
    _Atomic uint64_t malformed;
    _Atomic uint64_t sleeps;
    _Atomic uint64_t refused;
} fabric_counters_t;

enum { FABRIC_SERVED_SECONDS = 8 };
/** Records packed for others; the service thread writes. */
typedef struct fabric_served {
    _Atomic uint64_t bytes;
    struct {
        _Atomic uint64_t second, bytes; /**< of the clock; in it */
    } seconds[FABRIC_SERVED_SECONDS];
} fabric_served_t;

typedef struct fabric_call fabric_call_t;
typedef struct fabric_request fabric_request_t;
typedef struct fabric_fetching fabric_fetching_t;
typedef struct fabric_service fabric_service_t;
typedef struct fabric_membership fabric_membership_t;

struct lode_fabric {
    lode_fabric_params_t params;
    /* MPI */
    MPI_Comm comm, node_comm;
    uint32_t rank, local_rank, incarnation, nonce;
    uint32_t capacity;      /**< of all tables over slots */
    _Atomic uint32_t ranks; /**< slots in use */
    uint32_t born;          /**< ranks of the MPI job; 0: this process joined */
    /* members */
    lode_member_t *members; /**< (capacity) */
    pthread_mutex_t slots_lock;
    bool settling;                   /**< the table is between two epochs; under slots_lock */
    fabric_slot_t *slots;            /**< (capacity) */
    fabric_card_t *cards;            /**< (capacity) client: of the processes it is connected to */
    _Atomic uint64_t *share;         /**< (capacity) */
    _Atomic uint32_t *incarnations;  /**< (capacity) */
    _Atomic bool *alive;             /**< (capacity) */
    _Atomic uint64_t *reports;       /**< (capacity) failed endpoints, for the service thread */
    _Atomic uint64_t *heard_ns;      /**< (capacity) last heartbeat */
    _Atomic uint32_t *goodbye;       /**< (capacity) incarnation that has no more to ask of anybody */
    _Atomic uint32_t lost;           /**< how many processes were */
    _Atomic uint32_t changes;        /**< of members, lost or new */
    _Atomic uint32_t epoch, decider; /**< as agreed */
    _Atomic uint64_t lease_until_ns;
    _Atomic bool expelled, stirred; /**< stirred: the membership has something to do */
    _Atomic bool leaving;           /**< endpoint errors are goodbyes from now on */
    _Atomic bool parting;           /**< connections are not opened any more */
    const char *path;
    char path_reason[192];
    lode_affinity_t near; /**< what of this host is near its GPU; node −1: nothing is known */
    bool adapters;        /**< all ranks have an adapter near their GPUs */
    char landing_reason[192];
    bool landing_device;
    /* UCX */
    ucp_context_h context;
    ucp_worker_h client, service_worker;
    fabric_peer_t *peers;
    fabric_region_t arena, landing, replies;
    size_t reply_capacity;
    /* service */
    fabric_service_t *service;
    fabric_membership_t *membership;
    pthread_mutex_t serve_lock; /**< handlers.serve runs once at a time: also a call to the own rank takes it */
    /* client */
    uint32_t changes_seen;
    uint64_t sequence;   /**< of ids; begins anywhere, so that two processes of a slot use others */
    uint64_t swept_ns;   /**< when deadlines were looked at last */
    uint64_t listens_ns; /**< since when a fetch is waited for: silence before is not the owners' */
    uint64_t moved_ns;   /**< when something last happened */
    fabric_table_t calls, requests;
    fabric_call_t *calls_free, *calls_done, *calls_done_last;
    uint32_t calls_active;
    void (*meanwhile)(void *context); /**< NULL: nothing to do while answers are waited for */
    void *meanwhile_context;
    lode_admission_h admissions; /**< all that have begun and are not freed */
    size_t calls_bytes;
    fabric_fetching_t *fetchings; /**< (FABRIC_FETCHES) */
    fabric_request_t *requests_free;
    uint32_t requests_peer_max; /**< bound of fabric_peer_t.requests */
    fabric_landing_t landings[LODE_LANDINGS];
    uint32_t flushes; /**< of fabric_links_wire() under way */
    message_bump_t bump;
    _Alignas(16) uint8_t bump_memory[FABRIC_BUMP_BYTES];
    fabric_counters_t counters;
    fabric_served_t served;
    fabric_farewell_t farewell;
    struct {
        void *base;
        size_t bytes;
        int fd;
    } shared[FABRIC_SHARED_MAX];
    uint32_t shared_count;
};

/* bootstrap.c */
/** Workers, arena and landing buffers: what needs neither rank nor peers. */
lode_status_t fabric_prepare_alone(lode_fabric_h fabric);
/** Tables for fabric->capacity slots, and what serves them. */
lode_status_t fabric_prepare_tables(lode_fabric_h fabric);
lode_status_t fabric_params_check(const lode_fabric_params_t *params);
/** This process's card, filled but for slot and place; and what follows it, which the caller frees. */
lode_status_t fabric_introduce(lode_fabric_h fabric, fabric_card_t *card, uint8_t **blob);
lode_fabric_h fabric_alloc(const lode_fabric_params_t *params);
void fabric_free(lode_fabric_h fabric);
/** MPI_Barrier during which both workers progress; ends early with LODE_ERR_PEER_LOST when a member is lost. */
lode_status_t fabric_barrier(lode_fabric_h fabric, bool service_too, uint64_t timeout_ns);

/* memory.c */
/** Memory that this process may still take, in bytes: the machine's and its control group's. */
uint64_t fabric_memory_available(void);
lode_status_t fabric_memory_check(lode_fabric_h fabric);
/** Whether other ranks of this host may map this rank's arena. */
bool fabric_arena_shared(lode_fabric_h fabric);
/** @p shared: a memory file that other ranks of this host can map. Not touched; huge pages where there are some. */
lode_status_t fabric_region_create(lode_fabric_h fabric, size_t bytes, bool shared, fabric_region_t *region);
void fabric_region_destroy(lode_fabric_h fabric, fabric_region_t *region);

/* near.c */
/** Find what is near the GPU; every rank comes to the same about adapters. Collective. */
lode_status_t fabric_near_find(lode_fabric_h fabric);
/** What UCX can do with device memory, and so where records land. */
lode_status_t fabric_landing_choose(lode_fabric_h fabric);

/* shared.c */
/** @p flags: MFD_HUGETLB or 0. */
lode_status_t fabric_memfile_create(size_t bytes, unsigned flags, int *fd);
lode_status_t fabric_memfile_describe(int fd, fabric_memfile_t *file);
/** Open another process's file. */
lode_status_t fabric_memfile_open(const fabric_memfile_t *file, int *fd);
void fabric_shared_destroy(lode_fabric_h fabric);

/* members.c */
/** A peer's process does not answer any more. @p certain: it has ended. */
void fabric_member_lost(lode_fabric_h fabric, uint32_t rank, uint32_t incarnation, bool certain, const char *cause);
/** Client: whether a rank lives and this thread's connection to it is of its present incarnation. */
static inline bool fabric_reachable(lode_fabric_h fabric, uint32_t rank)
{
    return rank < fabric->ranks && atomic_load_explicit(&fabric->alive[rank], memory_order_acquire) &&
           fabric->peers[rank].incarnation == atomic_load_explicit(&fabric->incarnations[rank], memory_order_relaxed);
}
/** Whether a message that names this incarnation (0: the first) comes from the process that has the slot. */
bool fabric_is_current(lode_fabric_h fabric, uint32_t rank, uint32_t incarnation);

/* slots.c */
/** Bytes after a card. */
size_t fabric_card_blob(const fabric_card_t *card);
/** A card and what follows it, out of bytes from outside. @return bytes taken, 0 if that is no card. */
size_t fabric_card_parse(const uint8_t *bytes, size_t count, fabric_card_t *card, const uint8_t **blob);
/** Enter a process into a slot: table, member, incarnation. The slot is not alive yet. */
lode_status_t fabric_slot_install(lode_fabric_h fabric, uint32_t slot, const fabric_card_t *card, const uint8_t *blob,
                                  uint32_t joined);
/** Service: open the links of its thread to the process in a slot, after closing those to the one before. */
lode_status_t fabric_slot_serve(lode_fabric_h fabric, uint32_t slot);
/** The same, and the rank is alive from then on, unless that fails. */
void fabric_slot_open(lode_fabric_h fabric, uint32_t slot);
/** Service: the link for heartbeats, opened; NULL if there is none any more. */
ucp_ep_h fabric_slot_beats(lode_fabric_h fabric, uint32_t slot);
/** Client: connect to the processes that took slots, let go of those that left. @return false: once more, soon. */
bool fabric_slots_follow(lode_fabric_h fabric);
void fabric_slots_destroy(lode_fabric_h fabric);

/* beat.c: membership, on the service thread */
lode_status_t fabric_membership_create(lode_fabric_h fabric);
/** Before the thread runs: begin with the members that the table of slots has. */
void fabric_membership_begin(lode_fabric_h fabric);
void fabric_membership_round(lode_fabric_h fabric, uint64_t now);
void fabric_membership_destroy(lode_fabric_h fabric);
/**
 * A process that wants to join, from the call that brought its card; the same call may come again. Any thread.
 * @param[out] done  1: it is a member, and the others know
 */
lode_status_t fabric_membership_offer(lode_fabric_h fabric, const void *card, size_t bytes, uint32_t *done);

/* endpoint.c */
/** Have @p handler called, with the fabric as its argument, for messages of this id to a worker. */
lode_status_t fabric_listen(lode_fabric_h fabric, ucp_worker_h worker, unsigned id, ucp_am_recv_callback_t handler);
lode_status_t fabric_link_create(fabric_link_t *link, ucp_worker_h worker, const uint8_t *address);
/** Wait until every endpoint can send: flush both workers while both progress. */
lode_status_t fabric_links_wire(lode_fabric_h fabric, uint64_t timeout_ns);
/** Close a failed endpoint; from its worker's thread, outside of its callbacks. */
void fabric_link_close(fabric_link_t *link);
/** Close all, drain for a bounded time. */
void fabric_links_destroy(lode_fabric_h fabric);

/* path.c */
/** Whether ranks of this host may read each other's memory: UCX_TLS is not set, or names shared memory. */
bool fabric_may_share(void);
bool fabric_may_tcp(void);
/** Map a rank's arena, if it is on this host and may be. */
void fabric_path_map(lode_fabric_h fabric, uint32_t rank);
void fabric_path_unmap(lode_fabric_h fabric, uint32_t rank);
void fabric_path_destroy(lode_fabric_h fabric);
lode_status_t fabric_path_choose(lode_fabric_h fabric);

/* service.c */
lode_status_t fabric_service_create(lode_fabric_h fabric);
lode_status_t fabric_service_start(lode_fabric_h fabric);
void fabric_service_stop(lode_fabric_h fabric);
bool fabric_service_runs(lode_fabric_h fabric);
/** Tell the living that this rank has no more to ask, and serve them until they say the same, but not for ever. */
void fabric_farewell(lode_fabric_h fabric);
void fabric_service_destroy(lode_fabric_h fabric);
/** handlers.serve under its lock, its error put into the reply. */
void fabric_serve(lode_fabric_h fabric, uint32_t from, const Lodemark__Call *call, const void *payload, size_t bytes,
                  Lodemark__Reply *reply);

/* progress.c */
/** One round of client progress: messages, lost members, deadlines, fetches. @return whether anything moved. */
bool fabric_round(lode_fabric_h fabric);
/** A round; then, if nothing moves for a while, sleep until something does, or @p until_ns at the latest. */
void fabric_wait(lode_fabric_h fabric, uint64_t until_ns);
/** Between two polls of a thread that has been idle for so long, and not long enough to sleep. */
void fabric_pause(uint64_t idle_ns);
/** Sleep on a worker until it has something to do. @return at once if it has. */
void fabric_sleep(ucp_worker_h worker, uint64_t timeout_ns, _Atomic uint64_t *sleeps);
/** Enter an object; @return its index, FABRIC_NONE without memory. */
uint32_t fabric_table_add(fabric_table_t *table, void *object);
/** An id that was never used, naming slot @p slot of a table. */
uint64_t fabric_id(lode_fabric_h fabric, uint32_t slot);
/** The object in the slot that @p id names, or NULL. Whether it still has that id is the caller's to check. */
void *fabric_table_find(const fabric_table_t *table, uint64_t id);

/* call.c */
lode_status_t fabric_calls_create(lode_fabric_h fabric);
void fabric_calls_destroy(lode_fabric_h fabric);
/** Those whose caller did not wait for their answer. */
void fabric_admissions_destroy(lode_fabric_h fabric);
void fabric_calls_sweep(lode_fabric_h fabric, uint64_t now, bool lost);
/** Run done of the calls that have ended. @return whether there were any. */
bool fabric_calls_finish(lode_fabric_h fabric);

/* fetch.c */
lode_status_t fabric_fetches_create(lode_fabric_h fabric);
void fabric_fetches_destroy(lode_fabric_h fabric);
/** Send what credits allow. @return whether anything was sent. */
bool fabric_fetches_pump(lode_fabric_h fabric);
/** Give up what missed its deadline, or, if @p lost, what was asked of lost members. */
void fabric_fetches_sweep(lode_fabric_h fabric, uint64_t now, bool lost);

/* request.c, gets.c: messages' way in */
ucs_status_t fabric_on_fetch_reply(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                                   const ucp_am_recv_param_t *param);
ucs_status_t fabric_on_reply(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                             const ucp_am_recv_param_t *param);

static inline uint32_t fabric_reply_count(lode_fabric_h fabric)
{
    return FABRIC_REPLIES_SHARED + FABRIC_REPLIES_RANK * fabric->capacity;
}

/** Fields that every send of ours sets. */
static inline ucp_request_param_t fabric_send_param(ucp_send_nbx_callback_t done, void *user, uint32_t flags)
{
    return (ucp_request_param_t){.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = flags,
                                 .cb.send = done,
                                 .user_data = user};
}

#endif
