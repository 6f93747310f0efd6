/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From MPI ranks to connected peers. Every stage ends in lode_fabric_worst(), so that a rank that fails
 * takes the others out of the next collective instead of leaving them inside.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

#define CONNECT_NS 30000000000u
#define MESSAGE_BYTES 512
/** Runs of records that one send to a socket may name. UCX's buffers for sending bound it. */
#define TCP_RUNS "16"
/** How long a barrier may still take after a rank has closed its end: the slower ones are passing it. */
#define GOODBYE_NS 2000000000u

lode_status_t fabric_mpi_status(int code, const char *call)
{
    if (code == MPI_SUCCESS)
        return LODE_OK;
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int length;
    MPI_Error_string(code, text, &length);
    return lode_fail(LODE_ERR_MPI, "%.*s: %s", (int)strcspn(call, "("), call, text);
}

lode_status_t lode_fabric_worst(lode_fabric_h fabric, lode_status_t status)
{
    struct {
        int status, rank;
    } mine = {status, (int)fabric->rank}, worst;
    char text[MESSAGE_BYTES] = "";
    if (fabric->born == 0)
        return status;
    LODE_TRY(FABRIC_MPI(MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MINLOC, fabric->comm)));
    if (worst.status == LODE_OK)
        return LODE_OK;
    snprintf(text, sizeof text, "%s", lode_error_message());
    LODE_TRY(FABRIC_MPI(MPI_Bcast(text, sizeof text, MPI_CHAR, worst.rank, fabric->comm)));
    text[sizeof text - 1] = 0;
    if ((uint32_t)worst.rank == fabric->rank)
        return lode_fail((lode_status_t)worst.status, "%s", text);
    return lode_fail((lode_status_t)worst.status, "rank %d: %s", worst.rank, text);
}

lode_status_t lode_fabric_agree(lode_fabric_h fabric, const void *data, size_t bytes, bool *same, uint32_t *rank)
{
    uint64_t size = bytes;
    if (fabric->born == 0) {
        *same = true;
        *rank = 0;
        return LODE_OK;
    }
    LODE_TRY(FABRIC_MPI(MPI_Bcast(&size, 1, MPI_UINT64_T, 0, fabric->comm)));
    uint8_t *first = calloc(1, size + 1);
    lode_status_t status = first ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes to compare", bytes);
    status = lode_fabric_worst(fabric, status);
    if (status != LODE_OK)
        goto release;
    if (fabric->rank == 0)
        memcpy(first, data, bytes);
    status = FABRIC_MPI(MPI_Bcast(first, (int)size, MPI_BYTE, 0, fabric->comm));
    if (status != LODE_OK)
        goto release;
    int mine = size == bytes && memcmp(first, data, bytes) == 0 ? INT32_MAX : (int)fabric->rank, lowest;
    status = FABRIC_MPI(MPI_Allreduce(&mine, &lowest, 1, MPI_INT, MPI_MIN, fabric->comm));
    if (status != LODE_OK)
        goto release;
    *same = lowest == INT32_MAX;
    *rank = *same ? 0 : (uint32_t)lowest;
release:
    free(first);
    return status;
}

lode_status_t lode_fabric_gather(lode_fabric_h fabric, const void *mine, size_t bytes, void *all)
{
    if (fabric->born == 0) {
        memcpy(all, mine, bytes);
        return LODE_OK;
    }
    return FABRIC_MPI(MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, fabric->comm));
}

lode_status_t lode_fabric_spread(lode_fabric_h fabric, void *data, size_t bytes)
{
    return fabric->born == 0 ? LODE_OK : FABRIC_MPI(MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, fabric->comm));
}

uint32_t lode_fabric_born(lode_fabric_h fabric)
{
    return fabric->born;
}

lode_status_t fabric_barrier(lode_fabric_h fabric, bool service_too, uint64_t timeout_ns)
{
    MPI_Request request;
    LODE_TRY(FABRIC_MPI(MPI_Ibarrier(fabric->comm, &request)));
    uint64_t end = lode_now_ns() + timeout_ns, lost_at = 0;
    for (;;) {
        int done = 0;
        LODE_TRY(FABRIC_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE)));
        if (done)
            return LODE_OK;
        unsigned moved = ucp_worker_progress(fabric->client);
        if (service_too)
            moved += ucp_worker_progress(fabric->service_worker);
        if (moved == 0)
            usleep(100);
        uint64_t now = lode_now_ns();
        if (atomic_load(&fabric->lost) > 0 && lost_at == 0)
            lost_at = now;
        if (lost_at != 0 && now - lost_at > GOODBYE_NS)
            return lode_fail(LODE_ERR_PEER_LOST, "a rank was lost before all ranks came to a barrier");
        if (now > end)
            return lode_fail(LODE_ERR_TIMEOUT, "not all ranks came to a barrier within %.0f s",
                             (double)timeout_ns * 1e-9);
    }
}

/* ---------------------------------------------------------------------- MPI */

static lode_status_t join_mpi(lode_fabric_h fabric)
{
    int initialised = 0, rank, ranks, local, capacity = (int)fabric->params.max_ranks;
    MPI_Initialized(&initialised);
    if (!initialised)
        return lode_fail(LODE_ERR_MPI, "MPI is not initialised; call MPI_Init_thread before joining");
    LODE_TRY(FABRIC_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &fabric->comm)));
    LODE_TRY(FABRIC_MPI(MPI_Comm_set_errhandler(fabric->comm, MPI_ERRORS_RETURN)));
    LODE_TRY(FABRIC_MPI(MPI_Comm_rank(fabric->comm, &rank)));
    LODE_TRY(FABRIC_MPI(MPI_Comm_size(fabric->comm, &ranks)));
    LODE_TRY(
        FABRIC_MPI(MPI_Comm_split_type(fabric->comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &fabric->node_comm)));
    LODE_TRY(FABRIC_MPI(MPI_Comm_set_errhandler(fabric->node_comm, MPI_ERRORS_RETURN)));
    LODE_TRY(FABRIC_MPI(MPI_Comm_rank(fabric->node_comm, &local)));
    if (capacity == 0)
        capacity = ranks + (int)FABRIC_SPARE;
    LODE_TRY(FABRIC_MPI(MPI_Allreduce(MPI_IN_PLACE, &capacity, 1, MPI_INT, MPI_MIN, fabric->comm)));
    if (capacity > (int)EPOCH_SLOTS_MAX && ranks <= (int)EPOCH_SLOTS_MAX)
        capacity = (int)EPOCH_SLOTS_MAX;
    if (capacity < ranks)
        capacity = ranks;
    fabric->rank = (uint32_t)rank;
    fabric->ranks = fabric->born = (uint32_t)ranks;
    fabric->capacity = (uint32_t)capacity;
    fabric->local_rank = (uint32_t)local;
    if (ranks > (int)EPOCH_SLOTS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%d ranks; at most %u", ranks, EPOCH_SLOTS_MAX);
    return LODE_OK;
}

/* ---------------------------------------------------------------------- UCX */

/** Set an option of UCX unless the user did by its variable. UCX knows those of transports without their prefix here.
 */
static lode_status_t tune(ucp_config_t *config, const char *variable, const char *name, const char *value)
{
    return getenv(variable) ? LODE_OK : FABRIC_UCX(ucp_config_modify(config, name, value));
}

static lode_status_t context_create(lode_fabric_h fabric)
{
    ucp_config_t *config;
    /* UCX warns of settings for a transport that it does not use; beside shared memory it does not use TCP. */
    bool sockets = fabric_may_tcp() && (!getenv("UCX_TLS") || !fabric_may_share());
    LODE_TRY(FABRIC_UCX(ucp_config_read(NULL, NULL, &config)));
    lode_status_t status = tune(config, "UCX_KEEPALIVE_INTERVAL", "KEEPALIVE_INTERVAL", "1s");
    /*
     * UCX's shared-memory queues have many senders and one order: a sender that is killed or stopped between
     * taking a slot and filling it blocks the queue for all others. (Seen in 1 of 70 kills.) So messages go by
     * them only if UCX_TLS asks for it; the memory of neighbours is read without UCX, see path.c.
     */
    if (status == LODE_OK && !getenv("UCX_TLS"))
        status = tune(config, "UCX_TLS", "TLS", "^shm");
    else if (status == LODE_OK && fabric_may_share())
        status = tune(config, "UCX_MM_ERROR_HANDLING", "MM_ERROR_HANDLING", "y");
    /* A reply in one piece, so that UCX does not put it together in memory of its own first. */
    char piece[32];
    snprintf(piece, sizeof piece, "%zu", fabric->reply_capacity + 16 * MESSAGE_HEADER_MAX);
    if (status == LODE_OK && sockets)
        status = tune(config, "UCX_TCP_RX_SEG_SIZE", "RX_SEG_SIZE", piece);
    if (status == LODE_OK && sockets)
        status = tune(config, "UCX_TCP_MAX_IOV", "MAX_IOV", TCP_RUNS);
    /*
     * A connect() that waits holds all calls up while a host is dead, and UCX 1.13 aborts if it is refused on an
     * endpoint that takes over the connection of a peer that has just been killed.
     */
    if (status == LODE_OK && sockets)
        status = tune(config, "UCX_TCP_CONN_NB", "CONN_NB", "y");
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED |
                                         UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
                           .features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP,
                           .mt_workers_shared = 1,
                           .estimated_num_eps = 2 * (fabric->ranks ? fabric->ranks : 1)};
    /* Not where UCX_TLS is set: it may name transports that this adapter has not. */
    if (status == LODE_OK && fabric->adapters && !getenv("UCX_TLS"))
        status = tune(config, "UCX_NET_DEVICES", "NET_DEVICES", fabric->near.adapter);
    if (status == LODE_OK)
        status = FABRIC_UCX(ucp_init(&params, config, &fabric->context));
    ucp_config_release(config);
    return status;
}

static lode_status_t worker_create(lode_fabric_h fabric, ucp_worker_h *worker)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED,
                                  .events = UCP_WAKEUP_RX | UCP_WAKEUP_TX | UCP_WAKEUP_RMA | UCP_WAKEUP_AMO};
    lode_status_t status = FABRIC_UCX(ucp_worker_create(fabric->context, &params, worker));
    if (status != LODE_OK)
        return lode_fail_within(status,
                                "UCX found no memory or no network (is /dev/shm too small? then leave posix out "
                                "of UCX_TLS): ");
    ucp_worker_attr_t attributes = {.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
    LODE_TRY(FABRIC_UCX(ucp_worker_query(*worker, &attributes)));
    if (attributes.max_am_header < MESSAGE_HEADER_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "UCX takes headers of %zu bytes here and %d are needed; choose other transports by UCX_TLS",
                         attributes.max_am_header, MESSAGE_HEADER_MAX);
    return LODE_OK;
}

/* --------------------------------------------------------------- this rank */

lode_status_t fabric_params_check(const lode_fabric_params_t *params)
{
    if (params->arena_bytes == 0)
        return lode_fail(LODE_ERR_INVALID, "an arena of 0 bytes");
    if (params->landing_bytes < (size_t)LODE_PAGE_TOKENS * MESSAGE_RECORD_MAX)
        return lode_fail(LODE_ERR_INVALID, "landing buffers of %zu bytes; the least is %zu", params->landing_bytes,
                         (size_t)LODE_PAGE_TOKENS * MESSAGE_RECORD_MAX);
    if (params->reply_bytes == 0 || params->credit_bytes == 0 || params->fetch_deadline_ms == 0 ||
        params->call_deadline_ms == 0)
        return lode_fail(LODE_ERR_INVALID, "reply bytes, credits and deadlines must not be 0");
    return LODE_OK;
}

lode_status_t fabric_prepare_alone(lode_fabric_h fabric)
{
    const lode_fabric_params_t *params = &fabric->params;
    size_t least = (size_t)LODE_PAGE_TOKENS * MESSAGE_RECORD_MAX;
    fabric->reply_capacity = params->reply_bytes > least ? params->reply_bytes : least;
    LODE_TRY(context_create(fabric));
    LODE_TRY(fabric_landing_choose(fabric));
    LODE_TRY(worker_create(fabric, &fabric->client));
    LODE_TRY(worker_create(fabric, &fabric->service_worker));
    LODE_TRY(fabric_listen(fabric, fabric->client, FABRIC_AM_REPLY, fabric_on_reply));
    LODE_TRY(fabric_listen(fabric, fabric->client, FABRIC_AM_FETCH_REPLY, fabric_on_fetch_reply));
    LODE_TRY(fabric_region_create(fabric, params->arena_bytes, fabric_arena_shared(fabric), &fabric->arena));
    return fabric_region_create(fabric, params->landing_bytes * LODE_LANDINGS, false, &fabric->landing);
}

lode_status_t fabric_prepare_tables(lode_fabric_h fabric)
{
    uint32_t capacity = fabric->capacity;
    fabric->members = calloc(capacity, sizeof *fabric->members);
    fabric->slots = calloc(capacity, sizeof *fabric->slots);
    fabric->cards = calloc(capacity, sizeof *fabric->cards);
    fabric->peers = calloc(capacity, sizeof *fabric->peers);
    fabric->share = calloc(capacity, sizeof *fabric->share);
    fabric->incarnations = calloc(capacity, sizeof *fabric->incarnations);
    fabric->alive = calloc(capacity, sizeof *fabric->alive);
    fabric->reports = calloc(capacity, sizeof *fabric->reports);
    fabric->heard_ns = calloc(capacity, sizeof *fabric->heard_ns);
    fabric->goodbye = calloc(capacity, sizeof *fabric->goodbye);
    if (!fabric->members || !fabric->slots || !fabric->cards || !fabric->peers || !fabric->share ||
        !fabric->incarnations || !fabric->alive || !fabric->reports || !fabric->heard_ns || !fabric->goodbye)
        return lode_fail(LODE_ERR_NO_MEMORY, "tables of %u ranks", capacity);
    LODE_TRY(
        fabric_region_create(fabric, fabric->reply_capacity * fabric_reply_count(fabric), false, &fabric->replies));
    LODE_TRY(fabric_service_create(fabric));
    LODE_TRY(fabric_calls_create(fabric));
    return fabric_fetches_create(fabric);
}

/* --------------------------------------------------------------- who this is */

/** Addresses and key one after another. */
static lode_status_t join_parts(const ucp_address_t *service, const ucp_address_t *client, const void *rkey,
                                const fabric_card_t *card, uint8_t **blob)
{
    *blob = malloc(fabric_card_blob(card));
    if (!*blob)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes of addresses", fabric_card_blob(card));
    memcpy(*blob, service, card->service_bytes);
    memcpy(*blob + card->service_bytes, client, card->client_bytes);
    memcpy(*blob + card->service_bytes + card->client_bytes, rkey, card->rkey_bytes);
    return LODE_OK;
}

static void describe_self(lode_fabric_h fabric, fabric_card_t *card)
{
    char domain[80];
    gethostname(card->host, sizeof card->host - 1);
    snprintf(domain, sizeof domain, "%s",
             fabric->params.node && fabric->params.node[0] ? fabric->params.node : card->host);
    card->version = FABRIC_CARD_VERSION;
    card->domain = card->node = lode_hash_text(domain);
    card->rank_is_node = fabric->params.rank_is_node;
    card->arena_base = (uintptr_t)fabric->arena.base;
    card->arena_bytes = fabric->params.arena_bytes;
    card->reply_capacity = fabric->reply_capacity;
}

lode_status_t fabric_introduce(lode_fabric_h fabric, fabric_card_t *card, uint8_t **blob)
{
    ucp_address_t *service = NULL, *client = NULL;
    void *rkey = NULL;
    size_t service_bytes = 0, client_bytes = 0, rkey_bytes = 0;
    *card = (fabric_card_t){.arena.fd = -1};
    describe_self(fabric, card);
    lode_status_t status = FABRIC_UCX(ucp_worker_get_address(fabric->service_worker, &service, &service_bytes));
    if (status == LODE_OK)
        status = FABRIC_UCX(ucp_worker_get_address(fabric->client, &client, &client_bytes));
    if (status == LODE_OK)
        status = FABRIC_UCX(ucp_rkey_pack(fabric->context, fabric->arena.memh, &rkey, &rkey_bytes));
    if (status == LODE_OK && fabric->arena.fd >= 0)
        status = fabric_memfile_describe(fabric->arena.fd, &card->arena);
    card->service_bytes = (uint32_t)service_bytes;
    card->client_bytes = (uint32_t)client_bytes;
    card->rkey_bytes = (uint32_t)rkey_bytes;
    if (status == LODE_OK)
        status = join_parts(service, client, rkey, card, blob);
    if (service)
        ucp_worker_release_address(fabric->service_worker, service);
    if (client)
        ucp_worker_release_address(fabric->client, client);
    if (rkey)
        ucp_rkey_buffer_release(rkey);
    return status;
}

/* ------------------------------------------------------------- all of them */

/* Two collectives: the cards, which also say how much follows, then what follows, all in one buffer. */
static lode_status_t exchange(lode_fabric_h fabric, const fabric_card_t *card, const uint8_t *mine, uint8_t **blob,
                              size_t **offsets)
{
    LODE_TRY(
        FABRIC_MPI(MPI_Allgather(card, sizeof *card, MPI_BYTE, fabric->cards, sizeof *card, MPI_BYTE, fabric->comm)));
    int *counts = calloc((size_t)fabric->ranks * 2, sizeof *counts), *starts = counts + fabric->ranks;
    size_t total = 0;
    *offsets = calloc(fabric->ranks, sizeof **offsets);
    for (uint32_t r = 0; counts && *offsets && r < fabric->ranks; r++) {
        counts[r] = (int)fabric_card_blob(&fabric->cards[r]);
        starts[r] = (int)total;
        (*offsets)[r] = total;
        total += (size_t)counts[r];
    }
    *blob = malloc(total);
    bool enough = counts && *offsets && *blob && total < INT32_MAX;
    lode_status_t status =
        lode_fabric_worst(fabric, enough ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes of addresses", total));
    if (status == LODE_OK)
        status = FABRIC_MPI(
            MPI_Allgatherv(mine, counts[fabric->rank], MPI_BYTE, *blob, counts, starts, MPI_BYTE, fabric->comm));
    free(counts);
    return status;
}

/** Enter all ranks of the job and open the links of both threads to them. */
static lode_status_t connect_to(lode_fabric_h fabric, const uint8_t *blob, const size_t *offsets)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (fabric->cards[r].version != FABRIC_CARD_VERSION)
            return lode_fail(LODE_ERR_UNSUPPORTED, "rank %u runs another version of Lodemark", r);
        LODE_TRY(fabric_slot_install(fabric, r, &fabric->cards[r], blob + offsets[r], 1));
    }
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        LODE_TRY(fabric_slot_serve(fabric, r));
        atomic_store(&fabric->alive[r], true);
    }
    fabric_slots_follow(fabric);
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (!fabric_reachable(fabric, r))
            return LODE_ERR_UCX; /* the sentence is there */
    }
    return LODE_OK;
}

static lode_status_t connect_all(lode_fabric_h fabric)
{
    fabric_card_t card;
    uint8_t *blob = NULL, *mine = NULL;
    size_t *offsets = NULL;
    uint32_t share = fabric->rank;
    lode_status_t status = FABRIC_MPI(MPI_Bcast(&share, 1, MPI_UINT32_T, 0, fabric->node_comm));
    if (status == LODE_OK)
        status = fabric_introduce(fabric, &card, &mine);
    card.share = share;
    card.slot = fabric->rank;
    card.local_rank = fabric->local_rank;
    card.who = epoch_who(1, 0);
    if (fabric->params.rank_is_node)
        card.node = lode_mix(card.domain, fabric->rank + 1);
    status = lode_fabric_worst(fabric, status);
    if (status == LODE_OK)
        status = exchange(fabric, &card, mine, &blob, &offsets);
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, connect_to(fabric, blob, offsets));
    free(mine);
    free(blob);
    free(offsets);
    return status;
}

static lode_status_t wire_up(lode_fabric_h fabric)
{
    lode_status_t status = fabric_links_wire(fabric, CONNECT_NS);
    lode_status_t met = fabric_barrier(fabric, true, CONNECT_NS); /* others may need our progress still */
    return lode_fabric_worst(fabric, status != LODE_OK ? status : met);
}

/* -------------------------------------------------------------- public side */

void fabric_free(lode_fabric_h fabric)
{
    if (fabric->client && fabric->service_worker)
        fabric_links_destroy(fabric);
    fabric_path_destroy(fabric);
    /* What UCX still holds of requests to the dead comes back while the workers are destroyed. */
    if (fabric->client)
        ucp_worker_destroy(fabric->client);
    if (fabric->service_worker)
        ucp_worker_destroy(fabric->service_worker);
    fabric_fetches_destroy(fabric);
    fabric_calls_destroy(fabric);
    fabric_admissions_destroy(fabric);
    fabric_service_destroy(fabric);
    if (fabric->context) {
        fabric_region_destroy(fabric, &fabric->arena);
        fabric_region_destroy(fabric, &fabric->landing);
        fabric_region_destroy(fabric, &fabric->replies);
        ucp_cleanup(fabric->context);
    }
    fabric_shared_destroy(fabric);
    fabric_slots_destroy(fabric);
    free(fabric->members);
    free(fabric->cards);
    free(fabric->peers);
    free(fabric->share);
    free(fabric->incarnations);
    free(fabric->alive);
    free(fabric->reports);
    free(fabric->heard_ns);
    free(fabric->goodbye);
    pthread_mutex_destroy(&fabric->slots_lock);
    pthread_mutex_destroy(&fabric->serve_lock);
    free(fabric);
}

/* Collective, so not once a member is lost. */
static void leave_mpi(MPI_Comm comm, MPI_Comm node_comm)
{
    if (node_comm != MPI_COMM_NULL)
        MPI_Comm_free(&node_comm);
    if (comm != MPI_COMM_NULL)
        MPI_Comm_free(&comm);
}

lode_fabric_h fabric_alloc(const lode_fabric_params_t *params)
{
    lode_fabric_h fabric = calloc(1, sizeof *fabric);
    if (!fabric)
        return NULL;
    fabric->params = *params;
    fabric->comm = fabric->node_comm = MPI_COMM_NULL;
    fabric->incarnation = 1;
    fabric->near = (lode_affinity_t){.node = -1, .why = "this rank has no GPU, or joined later"};
    fabric->sequence = lode_mix(lode_now_ns(), (uint64_t)getpid()) >> 22;
    atomic_init(&fabric->epoch, 1);
    atomic_init(&fabric->lease_until_ns, UINT64_MAX);
    pthread_mutex_init(&fabric->serve_lock, NULL);
    pthread_mutex_init(&fabric->slots_lock, NULL);
    message_bump_init(&fabric->bump, fabric->bump_memory, sizeof fabric->bump_memory);
    return fabric;
}

lode_status_t lode_fabric_create(const lode_fabric_params_t *params, lode_status_t local_status, lode_fabric_h *out)
{
    MPI_Comm comm = MPI_COMM_NULL, node_comm = MPI_COMM_NULL;
    lode_fabric_h fabric = fabric_alloc(params);
    if (!fabric)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for the fabric", sizeof *fabric);
    lode_status_t status = join_mpi(fabric);
    if (status != LODE_OK)
        goto destroy;
    status = lode_fabric_worst(fabric, local_status != LODE_OK ? local_status : fabric_params_check(params));
    if (status == LODE_OK)
        status = fabric_near_find(fabric);
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, fabric_memory_check(fabric));
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, fabric_prepare_alone(fabric));
    if (status == LODE_OK)
        status = lode_fabric_worst(fabric, fabric_prepare_tables(fabric));
    if (status == LODE_OK)
        status = connect_all(fabric);
    if (status == LODE_OK)
        status = wire_up(fabric);
    if (status == LODE_OK)
        status = fabric_path_choose(fabric);
    if (status != LODE_OK)
        goto leave;
    *out = fabric;
    return LODE_OK;
leave: /* all ranks come here together: worst saw to that */
    comm = fabric->comm;
    node_comm = fabric->node_comm;
destroy:
    atomic_store(&fabric->leaving, true);
    fabric_free(fabric);
    leave_mpi(comm, node_comm);
    return status;
}

lode_status_t lode_fabric_start(lode_fabric_h fabric)
{
    return lode_fabric_worst(fabric, fabric_service_start(fabric));
}

/*
 * All alive: a barrier, so that whoever closes first does so when nobody needs it any more. From there on a
 * closed endpoint is a goodbye and not a loss. With a member lost no collective could ever end; the living
 * tell each other instead.
 */
void lode_fabric_destroy(lode_fabric_h *handle)
{
    lode_fabric_h fabric = *handle;
    if (!fabric)
        return;
    *handle = NULL;
    lode_fabric_calls_wait(fabric);
    bool together = lode_fabric_intact(fabric) && fabric->ranks == fabric->born;
    if (together) {
        atomic_store(&fabric->leaving, true);
        together = fabric_barrier(fabric, !fabric_service_runs(fabric), UINT64_MAX / 2) == LODE_OK;
    }
    atomic_store(&fabric->parting, !together);
    if (!together && fabric_service_runs(fabric) && !lode_fabric_expelled(fabric))
        fabric_farewell(fabric);
    atomic_store(&fabric->leaving, true);
    fabric_service_stop(fabric);
    if (together) { /* nobody's queues go while others still close their ends */
        fabric_links_destroy(fabric);
        together = fabric_barrier(fabric, true, CONNECT_NS) == LODE_OK;
    }
    MPI_Comm comm = fabric->comm, node_comm = fabric->node_comm;
    fabric_free(fabric);
    if (together)
        leave_mpi(comm, node_comm);
}
