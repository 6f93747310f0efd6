/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fetch: every item on its way from owner to owner until one gives it.
 *
 * Items wait in a queue an owner; the pump turns queues into requests as far as credits go. An owner that
 * was silent for too long is avoided for a while: items that have another owner ask that one first, and come
 * back to it when nobody else has them.
 *
 * Too long is first the hedging time, after which the next owner is asked as well (by message only: both answers are
 * copied to the landing buffer by this thread, so the second cannot spoil what the first has brought); then the
 * deadline, after which an owner's answer counts no more.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fetch_inside.h"

/** How long an owner that was silent for too long is avoided, unless it answers something in time before. */
#define AVOID_NS 1000000000u
/** Requests of a peer that a fetch may hold, at the least. */
#define REQUESTS_PEER_MIN 16
#define REQUESTS_PEER_MAX 256
#define ATTEMPTS_MAX 250
/** Items routed before what there is is sent. */
#define PUMP_ITEMS 512
/** Most times the usual deadline that a request may take. */
#define PATIENCE_MOST 8

static const char *const cause_texts[] = {
    [FETCH_NO_CAUSE] = "not asked",       [FETCH_LOST] = "lost",
    [FETCH_DEADLINE] = "missed deadline", [FETCH_MISSING] = "does not hold it",
    [FETCH_REFUSED] = "refused",          [FETCH_CHECK] = "records fail their check",
    [FETCH_BUSY] = "takes no data",       [FETCH_MEMORY] = "no memory here",
};

lode_status_t fabric_fetches_create(lode_fabric_h fabric)
{
    size_t requests = 2 * fabric->params.credit_bytes / fabric->params.reply_bytes;
    fabric->requests_peer_max = requests < REQUESTS_PEER_MIN   ? REQUESTS_PEER_MIN
                                : requests > REQUESTS_PEER_MAX ? REQUESTS_PEER_MAX
                                                               : (uint32_t)requests;
    fabric->fetchings = calloc(FABRIC_FETCHES, sizeof *fabric->fetchings);
    for (uint32_t i = 0; fabric->fetchings && i < FABRIC_FETCHES; i++) {
        fabric->fetchings[i].fabric = fabric;
        fabric->fetchings[i].queues = malloc(fabric->capacity * sizeof *fabric->fetchings[i].queues);
        if (!fabric->fetchings[i].queues)
            return lode_fail(LODE_ERR_NO_MEMORY, "fetch queues for %u ranks", fabric->capacity);
        for (uint32_t r = 0; r < fabric->capacity; r++)
            fabric->fetchings[i].queues[r] = (fetch_queue_t){FABRIC_NONE, FABRIC_NONE, 0};
    }
    return fabric->fetchings ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "fetches");
}

void fabric_fetches_destroy(lode_fabric_h fabric)
{
    for (uint32_t i = 0; fabric->fetchings && i < FABRIC_FETCHES; i++) {
        free(fabric->fetchings[i].ways);
        free(fabric->fetchings[i].queues);
    }
    free(fabric->fetchings);
    fabric->fetchings = NULL;
    requests_destroy(fabric);
}

/* ------------------------------------------------------------------ routing */

static void enqueue(fabric_fetching_t *fetching, uint32_t item)
{
    fetch_queue_t *queue = &fetching->queues[fetching->ways[item].rank];
    fetching->ways[item].next = FABRIC_NONE;
    if (queue->first == FABRIC_NONE)
        queue->first = item;
    else
        fetching->ways[queue->last].next = item;
    queue->last = item;
    queue->bytes += fetching->ways[item].bytes;
    fetching->queued++;
    fetching->ways[item].pending++;
}

/** Take the first item of a queue, which still counts among its pending. */
static uint32_t dequeue(fabric_fetching_t *fetching, uint32_t rank)
{
    uint32_t item = fetching->queues[rank].first;
    fetching->queues[rank].first = fetching->ways[item].next;
    fetching->queued--;
    return item;
}

static void note_cause(fetch_way_t *way, uint32_t attempt, fetch_cause_t cause)
{
    if (attempt < FETCH_CAUSES)
        way->causes = (way->causes & ~(15u << 4 * attempt)) | (uint32_t)cause << 4 * attempt;
}

/** The next owner to ask for an item. @return false when there is none. */
static bool next_source(fabric_fetching_t *fetching, uint32_t item, lode_fetch_source_t *source)
{
    lode_fabric_h fabric = fetching->fabric;
    lode_fetch_t *fetch = fetching->fetch;
    fetch_way_t *way = &fetching->ways[item];
    for (;;) {
        if (way->attempt >= ATTEMPTS_MAX || !fetch->source(fetch->context, &fetch->items[item], way->attempt, source)) {
            if (way->avoided == 0)
                return false;
            way->flags |= ITEM_SECOND_ROUND;
            way->attempt = (uint8_t)__builtin_ctz(way->avoided);
            way->avoided &= (uint16_t)(way->avoided - 1);
            if (!fetch->source(fetch->context, &fetch->items[item], way->attempt, source))
                return false;
        }
        uint32_t attempt = way->attempt;
        /* in the second round only attempts put off before are left; the next call finds the next of them */
        way->attempt = way->flags & ITEM_SECOND_ROUND ? ATTEMPTS_MAX : (uint8_t)(attempt + 1);
        way->asked = (uint8_t)attempt;
        if (!fabric_reachable(fabric, source->rank)) {
            note_cause(way, attempt, FETCH_LOST);
        } else if (!(way->flags & ITEM_SECOND_ROUND) && attempt < 16 &&
                   fabric->peers[source->rank].avoid_until_ns > fabric->swept_ns) {
            note_cause(way, attempt, FETCH_DEADLINE);
            way->avoided |= (uint16_t)(1u << attempt);
        } else {
            return true;
        }
    }
}

/** Take records from this rank's own shard. @return FETCH_NO_CAUSE, or why that could not be. */
static fetch_cause_t take_own(fabric_fetching_t *fetching, uint32_t index)
{
    lode_fabric_h fabric = fetching->fabric;
    lode_fetch_t *fetch = fetching->fetch;
    const lode_fetch_item_t *item = &fetch->items[index];
    lode_wire_item_t end = {.mask = item->mask, .head = item->head};
    const uint8_t *page = fabric->params.handlers.page(fabric->params.context, item->block, fetch->layer, item->page,
                                                       message_item_end(&end, fetch->record_bytes));
    if (!page)
        return FETCH_MISSING;
    const uint8_t *head = page + (size_t)item->head * LODE_PAGE_TOKENS * fetch->record_bytes;
    uint8_t *to = fetch->landing + item->landing;
    for (uint64_t left = item->mask; left; left &= left - 1, to += fetch->record_bytes)
        memcpy(to, head + (size_t)__builtin_ctzll(left) * fetch->record_bytes, fetch->record_bytes);
    return fetch->verify(fetch->context, item, fetch->landing + item->landing) ? FETCH_NO_CAUSE : FETCH_CHECK;
}

static void point_way(fabric_fetching_t *fetching, uint32_t index, const lode_fetch_source_t *source)
{
    const lode_fetch_t *fetch = fetching->fetch;
    fetch_way_t *way = &fetching->ways[index];
    lode_wire_item_t end = {.mask = fetch->items[index].mask, .head = fetch->items[index].head};
    uint64_t bytes = message_item_end(&end, fetch->record_bytes);
    uint64_t arena = fetching->fabric->cards[source->rank].arena_bytes;
    way->rank = source->rank;
    way->offset = source->offset;
    way->has_offset = source->has_offset && bytes <= arena && source->offset <= arena - bytes;
    way->flags &= (uint8_t)~ITEM_BATCHED;
}

/** Send an item to an owner's queue, or take it if that is this rank. @return false if it could not be taken. */
static bool go_to(fabric_fetching_t *fetching, uint32_t index, const lode_fetch_source_t *source)
{
    if (source->rank != fetching->fabric->rank) {
        point_way(fetching, index, source);
        enqueue(fetching, index);
        return true;
    }
    fetch_cause_t cause = take_own(fetching, index);
    note_cause(&fetching->ways[index], fetching->ways[index].asked, cause);
    if (cause == FETCH_NO_CAUSE)
        fetch_item_landed(fetching, index, source->rank);
    return cause == FETCH_NO_CAUSE;
}

/**
 * All owners of an item were asked in vain. One that lives and only missed its deadline may be far away, or its link
 * slow: then all are asked once more, with longer deadlines, as long as a call would wait. Not by a rank that is cut
 * off itself: others can do better.
 */
static bool begin_again(fabric_fetching_t *fetching, uint32_t index)
{
    fetch_way_t *way = &fetching->ways[index];
    bool slow = false;
    for (uint32_t a = 0; a < FETCH_CAUSES; a++)
        slow |= (way->causes >> 4 * a & 15) == FETCH_DEADLINE;
    if (!slow || lode_now_ns() >= fetching->give_up_ns || lode_fabric_fenced(fetching->fabric))
        return false;
    *way = (fetch_way_t){.bytes = way->bytes};
    if (fetching->patience < PATIENCE_MOST)
        fetching->patience *= 2;
    return true;
}

/** Send an item to its next owner; without one it is lost. */
static void route(fabric_fetching_t *fetching, uint32_t index)
{
    lode_fetch_t *fetch = fetching->fetch;
    lode_fetch_source_t source = {0};
    do {
        while (next_source(fetching, index, &source)) {
            if (go_to(fetching, index, &source))
                return;
        }
    } while (begin_again(fetching, index));
    fetching->ways[index].flags |= ITEM_LOST;
    fetching->lost++;
    if (!fetch->lost)
        fetch->lost = &fetch->items[index];
}

void fetch_item_landed(fabric_fetching_t *fetching, uint32_t index, uint32_t rank)
{
    lode_fetch_t *fetch = fetching->fetch;
    fetching->ways[index].flags |= ITEM_LANDED;
    fetching->landed++;
    fetch->bytes += fetching->ways[index].bytes;
    _Atomic uint64_t *in = &fetching->fabric->peers[rank].bytes_in;
    atomic_store_explicit(in, atomic_load_explicit(in, memory_order_relaxed) + fetching->ways[index].bytes,
                          memory_order_relaxed);
}

void fetch_item_failed(fabric_fetching_t *fetching, uint32_t index, uint32_t rank, fetch_cause_t cause)
{
    fetch_way_t *way = &fetching->ways[index];
    way->pending--;
    if (way->flags & ITEM_LANDED)
        return;
    note_cause(way, rank == way->rank ? way->asked : way->hedged, cause);
    if (way->pending == 0)
        route(fetching, index);
}

void fetch_item_again(fabric_fetching_t *fetching, uint32_t index)
{
    fetching->ways[index].pending--;
    enqueue(fetching, index);
}

/** The fetch has failed: an item is lost that its caller cannot go on without. */
static bool has_failed(const fabric_fetching_t *fetching)
{
    return fetching->lost > 0 && !fetching->fetch->lose;
}

static void landing_put(lode_fabric_h fabric, fabric_landing_t *landing)
{
    landing->state = landing->writers > 0 ? LANDING_QUARANTINED : LANDING_FREE;
    if (landing->writers > 0)
        fabric->counters.quarantines++;
}

/* ------------------------------------------------------------------ pumping */

static bool item_one_sided(const fabric_fetching_t *fetching, uint32_t index)
{
    const fetch_way_t *way = &fetching->ways[index];
    return fetching->fabric->peers[way->rank].one_sided && way->has_offset && !(way->flags & ITEM_BATCHED);
}

static void fail_queue(fabric_fetching_t *fetching, uint32_t rank, fetch_cause_t cause)
{
    /* routing may enter items again, but never for the rank that just failed them before the end of this list */
    uint32_t last = fetching->queues[rank].last, item;
    do {
        item = dequeue(fetching, rank);
        fetch_item_failed(fetching, item, rank, cause);
    } while (item != last);
}

/** Another owner to ask while the one asked last is silent: only one that is published and not known to be slow. */
static bool hedge_source(fabric_fetching_t *fetching, uint32_t index, lode_fetch_source_t *source)
{
    lode_fabric_h fabric = fetching->fabric;
    fetch_way_t *way = &fetching->ways[index], kept = *way;
    if (next_source(fetching, index, source) && source->published &&
        fabric->peers[source->rank].avoid_until_ns <= fabric->swept_ns)
        return true;
    *way = kept;
    return false;
}

/**
 * Items that wait for a rank that was silent for too long ask their other owners first. While the rank is only
 * suspected (it missed no deadline), that goes for published owners alone.
 */
static void put_off_queue(fabric_fetching_t *fetching, uint32_t rank, bool suspected)
{
    uint32_t item = fetching->queues[rank].first, next;
    fetching->queues[rank].first = FABRIC_NONE;
    for (; item != FABRIC_NONE; item = next) {
        fetch_way_t *way = &fetching->ways[item];
        lode_fetch_source_t source;
        uint8_t asked = way->asked;
        next = way->next;
        fetching->queued--;
        way->pending--;
        if (way->flags & ITEM_LANDED)
            continue;
        bool hedges = way->pending > 0; /* another owner was asked before, and may still give it */
        if ((way->flags & ITEM_SECOND_ROUND) || asked >= 16 ||
            (suspected && !hedges && !hedge_source(fetching, item, &source))) {
            enqueue(fetching, item);
            continue;
        }
        note_cause(way, asked, FETCH_DEADLINE);
        way->avoided |= (uint16_t)(1u << asked);
        if (hedges)
            continue;
        if (!suspected || !go_to(fetching, item, &source))
            route(fetching, item);
    }
}

/** First item of a queue that has not landed meanwhile, by the owner that it was asked of before. */
static uint32_t next_waiting(fabric_fetching_t *fetching, uint32_t rank)
{
    const fetch_queue_t *queue = &fetching->queues[rank];
    while (queue->first != FABRIC_NONE && (fetching->ways[queue->first].flags & ITEM_LANDED))
        fetching->ways[dequeue(fetching, rank)].pending--;
    return queue->first;
}

/** Fill one request from a peer's queue with items of one kind, and send it. */
static bool ask(fabric_fetching_t *fetching, uint32_t rank)
{
    lode_fabric_h fabric = fetching->fabric;
    uint32_t item = next_waiting(fetching, rank);
    if (item == FABRIC_NONE)
        return false;
    bool one_sided = item_one_sided(fetching, item);
    fabric_request_t *request = request_take(fabric, fetching, rank, one_sided);
    if (!request) {
        fail_queue(fetching, rank, FETCH_MEMORY);
        return false;
    }
    while (item != FABRIC_NONE && item_one_sided(fetching, item) == one_sided && request_has_room(request, item)) {
        request_add(request, dequeue(fetching, rank));
        item = next_waiting(fetching, rank);
    }
    fabric->peers[rank].credit += request->bytes;
    fetching->fetch->owners |= UINT64_C(1) << (rank % 64);
    if (one_sided) {
        gets_post(request);
    } else {
        fetching->fetch->requests++;
        request_send(request);
    }
    return true;
}

static bool pump_peer(fabric_fetching_t *fetching, uint32_t rank)
{
    lode_fabric_h fabric = fetching->fabric;
    fabric_peer_t *peer = &fabric->peers[rank];
    bool any = false;
    while (fetching->queues[rank].first != FABRIC_NONE && !has_failed(fetching)) {
        if (!fabric_reachable(fabric, rank)) {
            fail_queue(fetching, rank, FETCH_LOST);
        } else if (peer->requests >= fabric->requests_peer_max && peer->asked == 0) {
            fail_queue(fetching, rank, FETCH_BUSY); /* all it may hold was given up, and UCX does not let go */
        } else if (peer->requests >= fabric->requests_peer_max || peer->credit >= fabric->params.credit_bytes) {
            break;
        } else {
            any |= ask(fetching, rank);
        }
    }
    return any;
}

bool fabric_fetches_pump(lode_fabric_h fabric)
{
    bool any = false;
    for (uint32_t f = 0; f < FABRIC_FETCHES; f++) {
        fabric_fetching_t *fetching = &fabric->fetchings[f];
        if (!fetching->fetch)
            continue;
        for (fabric_request_t *request = fetching->active, *next; request; request = next) {
            next = request->next;
            if (request->one_sided && fabric->peers[request->rank].gets < FABRIC_GETS_MAX &&
                request->reading < request->count)
                any |= gets_post(request);
        }
        for (uint32_t r = 0; r < fabric->ranks && fetching->queued > 0; r++)
            any |= pump_peer(fetching, r);
    }
    return any;
}

/*
 * A one-sided read was given up and may still write to its place, which the next owner's records will take.
 * So the fetch moves to another landing buffer, with what has landed; reads that are under way start anew there.
 */
static void move_landing(fabric_fetching_t *fetching)
{
    lode_fabric_h fabric = fetching->fabric;
    lode_fetch_t *fetch = fetching->fetch;
    uint32_t to = 0;
    while (to < LODE_LANDINGS && fabric->landings[to].state != LANDING_FREE)
        to++;
    fetching->stuck = to == LODE_LANDINGS;
    if (fetching->stuck)
        return;
    for (fabric_request_t *request = fetching->active, *next; request; request = next) {
        next = request->next;
        if (!request->one_sided)
            continue;
        for (uint32_t i = 0; i < request->count; i++)
            fetch_item_again(fetching, request->items[i]);
        request_end(request, FETCH_NO_CAUSE);
    }
    uint8_t *old = fetch->landing;
    fetch->landing = fabric->landing.base + to * lode_fabric_landing_bytes(fabric);
    for (uint32_t i = 0; i < fetch->count; i++) {
        const lode_fetch_item_t *item = &fetch->items[i];
        if (fetching->ways[i].flags & ITEM_LANDED)
            memcpy(fetch->landing + item->landing, old + item->landing, fetching->ways[i].bytes);
    }
    fabric->landings[to].state = LANDING_HELD;
    landing_put(fabric, fetching->landing);
    fetching->landing = &fabric->landings[to];
    fetching->spoilt = false;
}

/** Ask the next owners, too, for what a silent one was asked; what waits for it asks them alone. */
static void hedge(fabric_request_t *request, uint64_t now)
{
    fabric_fetching_t *fetching = request->fetching;
    lode_fabric_h fabric = request->fabric;
    bool any = false;
    request->hedged_ns = now;
    for (uint32_t i = 0; i < request->count; i++) {
        fetch_way_t *way = &fetching->ways[request->items[i]];
        lode_fetch_source_t source;
        uint8_t asked = request->rank == way->rank ? way->asked : way->hedged;
        if ((way->flags & ITEM_LANDED) || way->pending > 1 || !hedge_source(fetching, request->items[i], &source))
            continue;
        way->hedged = asked;
        any |= go_to(fetching, request->items[i], &source);
        way->flags |= ITEM_BATCHED;
    }
    if (!any)
        return;
    fabric->counters.hedged++;
    fabric->peers[request->rank].avoid_until_ns = now + AVOID_NS;
    put_off_queue(fetching, request->rank, true);
}

/** Whether an owner has said nothing for so long that others should be asked too. */
static bool is_silent(const fabric_request_t *request, uint64_t now)
{
    const struct lode_fabric *fabric = request->fabric;
    uint64_t since = request->asked_ns, heard = fabric->peers[request->rank].heard_ns;
    since = heard > since ? heard : since;
    since = fabric->listens_ns > since ? fabric->listens_ns : since;
    since = request->hedged_ns > since ? request->hedged_ns : since; /* others that were slow may be so no more */
    return fabric->params.hedge_ms && !request->one_sided && now > since &&
           now - since >= (uint64_t)fabric->params.hedge_ms * 1000000u;
}

static void sweep_one(fabric_fetching_t *fetching, uint64_t now, bool lost)
{
    lode_fabric_h fabric = fetching->fabric;
    for (fabric_request_t *request = fetching->active, *next; request; request = next) {
        next = request->next;
        if (lost && !fabric_reachable(fabric, request->rank)) {
            request_end(request, FETCH_LOST);
        } else if (fetching->idle) {
            continue;
        } else if (now >= request->deadline_ns) {
            fabric->counters.deadlines++;
            fabric->peers[request->rank].avoid_until_ns = now + AVOID_NS;
            lode_debug("rank %u missed the deadline of a fetch of %zu bytes", request->rank, request->bytes);
            uint32_t rank = request->rank;
            request_end(request, FETCH_DEADLINE);
            put_off_queue(fetching, rank, false);
        } else if (is_silent(request, now)) {
            hedge(request, now);
        }
    }
    if (fetching->spoilt)
        move_landing(fetching);
}

void fabric_fetches_sweep(lode_fabric_h fabric, uint64_t now, bool lost)
{
    for (uint32_t f = 0; f < FABRIC_FETCHES; f++) {
        if (fabric->fetchings[f].fetch)
            sweep_one(&fabric->fetchings[f], now, lost);
    }
}

/* -------------------------------------------------------------- public side */

static fabric_fetching_t *find_free(lode_fabric_h fabric)
{
    for (uint32_t f = 0; f < FABRIC_FETCHES; f++) {
        if (!fabric->fetchings[f].fetch)
            return &fabric->fetchings[f];
    }
    return NULL;
}

static lode_status_t ways_reserve(fabric_fetching_t *fetching, uint32_t count)
{
    if (count <= fetching->capacity)
        return LODE_OK;
    uint32_t capacity = count + count / 2;
    fetch_way_t *ways = realloc(fetching->ways, capacity * sizeof *ways);
    if (!ways)
        return lode_fail(LODE_ERR_NO_MEMORY, "a fetch of %u items", count);
    fetching->ways = ways;
    fetching->capacity = capacity;
    return LODE_OK;
}

/** Check the caller's items, and set out one way each. */
static lode_status_t ways_begin(fabric_fetching_t *fetching, const lode_fetch_t *fetch)
{
    size_t room = lode_fabric_landing_bytes(fetching->fabric);
    if (fetch->record_bytes < MESSAGE_RECORD_MIN || fetch->record_bytes > MESSAGE_RECORD_MAX)
        return lode_fail(LODE_ERR_INVALID, "records of %u bytes; %d to %d can be fetched", fetch->record_bytes,
                         MESSAGE_RECORD_MIN, MESSAGE_RECORD_MAX);
    LODE_TRY(ways_reserve(fetching, fetch->count));
    for (uint32_t i = 0; i < fetch->count; i++) {
        const lode_fetch_item_t *item = &fetch->items[i];
        uint32_t bytes = message_tokens(item->mask) * fetch->record_bytes;
        if (item->mask == 0)
            return lode_fail(LODE_ERR_INVALID, "fetch item %u asks for no token", i);
        if (item->landing > room || bytes > room - item->landing)
            return lode_fail(LODE_ERR_INVALID, "fetch item %u lands at byte %u of a landing buffer of %zu", i,
                             item->landing, room);
        fetching->ways[i] = (fetch_way_t){.bytes = bytes};
    }
    return LODE_OK;
}

/** A free landing buffer; waits while those not held are in quarantine. */
static lode_status_t landing_take(lode_fabric_h fabric, uint32_t *taken)
{
    uint64_t end = lode_now_ns() + (uint64_t)fabric->params.fetch_deadline_ms * 1000000u;
    for (;;) {
        uint32_t held = 0;
        for (uint32_t i = 0; i < LODE_LANDINGS; i++) {
            if (fabric->landings[i].state == LANDING_FREE) {
                *taken = i;
                return LODE_OK;
            }
            held += fabric->landings[i].state == LANDING_HELD;
        }
        if (held == LODE_LANDINGS)
            return lode_fail(LODE_ERR_INVALID, "all %d landing buffers are held; release fetches first", LODE_LANDINGS);
        if (lode_now_ns() >= end)
            return lode_fail(LODE_ERR_TIMEOUT,
                             "all landing buffers are in quarantine: one-sided reads that missed their deadline "
                             "may still write to them");
        fabric_wait(fabric, end);
    }
}

uint32_t lode_fabric_landings_free(lode_fabric_h fabric, uint32_t *late)
{
    uint32_t free = 0;
    *late = 0;
    for (uint32_t i = 0; i < LODE_LANDINGS; i++) {
        free += fabric->landings[i].state == LANDING_FREE;
        *late += fabric->landings[i].state == LANDING_QUARANTINED;
    }
    return free;
}

lode_status_t lode_fabric_fetch(lode_fabric_h fabric, lode_fetch_t *fetch)
{
    uint32_t landing = 0;
    fabric_fetching_t *fetching = find_free(fabric);
    if (!fetching)
        return lode_fail(LODE_ERR_INVALID, "%d fetches are under way; wait for one first", FABRIC_FETCHES);
    LODE_TRY(ways_begin(fetching, fetch));
    LODE_TRY(landing_take(fabric, &landing));
    fabric->landings[landing].state = LANDING_HELD;
    fetching->fetch = fetch;
    fetching->landing = &fabric->landings[landing];
    fetching->queued = fetching->landed = fetching->lost = 0;
    fetching->patience = 1;
    fetching->give_up_ns = fetch->ahead ? 0 : lode_now_ns() + (uint64_t)fabric->params.call_deadline_ms * 1000000u;
    fetching->spoilt = fetching->stuck = false;
    fetching->idle = fetch->ahead;
    fetch->landing = fabric->landing.base + landing * lode_fabric_landing_bytes(fabric);
    fetch->bytes = fetch->requests = fetch->owners = 0;
    fetch->retries = 0;
    fetch->lost = NULL;
    fetch->state = fetching;
    fabric->moved_ns = lode_now_ns();
    for (uint32_t i = 0; i < fetch->count && !has_failed(fetching); i++) {
        route(fetching, i);
        if (i % PUMP_ITEMS == PUMP_ITEMS - 1)
            fabric_fetches_pump(fabric); /* owners pack while the rest is routed */
    }
    fabric_fetches_pump(fabric);
    return LODE_OK;
}

/** Take a fetch out: requests that are left are nobody's, queues are empty. */
static void close_fetch(fabric_fetching_t *fetching)
{
    while (fetching->active)
        request_end(fetching->active, FETCH_NO_CAUSE);
    for (uint32_t r = 0; r < fetching->fabric->capacity; r++)
        fetching->queues[r] = (fetch_queue_t){FABRIC_NONE, FABRIC_NONE, 0};
    fetching->fetch->state = NULL;
    fetching->fetch = NULL;
}

/** "rank 1: lost; rank 2: missed deadline": why nobody gave the first lost item. */
static void explain(fabric_fetching_t *fetching)
{
    lode_fetch_t *fetch = fetching->fetch;
    const fetch_way_t *way = &fetching->ways[fetch->lost - fetch->items];
    size_t used = 0;
    lode_fetch_source_t source;
    snprintf(fetch->why, sizeof fetch->why, "it has no owner");
    for (uint32_t a = 0; a < FETCH_CAUSES && fetch->source(fetch->context, fetch->lost, a, &source); a++) {
        int length = snprintf(fetch->why + used, sizeof fetch->why - used, "%srank %u: %s", used ? "; " : "",
                              source.rank, cause_texts[way->causes >> 4 * a & 15]);
        if (length < 0 || (size_t)length >= sizeof fetch->why - used)
            break;
        used += (size_t)length;
    }
}

/** Why a fetch did not end well, or LODE_OK. */
static lode_status_t outcome(fabric_fetching_t *fetching)
{
    const lode_fetch_t *fetch = fetching->fetch;
    if (fetch->lost)
        explain(fetching);
    if (has_failed(fetching))
        return lode_fail(LODE_ERR_PAGE_LOST, "block %016llx, layer %u, page %u: no owner could give it (%s)",
                         (unsigned long long)fetch->lost->block, fetch->layer, fetch->lost->page, fetch->why);
    if (fetching->stuck)
        return lode_fail(LODE_ERR_TIMEOUT, "one-sided reads missed their deadline, and all other landing buffers "
                                           "are held or in quarantine");
    return LODE_OK;
}

lode_status_t lode_fabric_fetch_wait(lode_fabric_h fabric, lode_fetch_t *fetch)
{
    fabric_fetching_t *fetching = fetch->state;
    if (!fetching)
        return lode_fail(LODE_ERR_INVALID, "this fetch is not under way");
    uint64_t horizon = (uint64_t)fabric->params.fetch_deadline_ms * 1000000u;
    fabric->listens_ns = lode_now_ns();
    for (fabric_request_t *request = fetching->active; fetching->idle && request; request = request->next)
        request->deadline_ns = fabric->listens_ns + horizon;
    fetching->idle = false;
    while (!has_failed(fetching) && !fetching->stuck && fetching->landed + fetching->lost < fetch->count)
        fabric_wait(fabric, lode_now_ns() + horizon);
    lode_status_t status = outcome(fetching);
    for (uint32_t i = 0; status == LODE_OK && fetching->lost > 0 && i < fetch->count; i++) {
        if (fetching->ways[i].flags & ITEM_LOST)
            fetch->lose(fetch->context, &fetch->items[i]);
    }
    close_fetch(fetching);
    if (status != LODE_OK)
        lode_fabric_fetch_release(fabric, fetch);
    return status;
}

void lode_fabric_fetch_release(lode_fabric_h fabric, lode_fetch_t *fetch)
{
    if (!fetch->landing)
        return;
    if (fetch->state)
        close_fetch(fetch->state);
    size_t index = (size_t)(fetch->landing - fabric->landing.base) / lode_fabric_landing_bytes(fabric);
    landing_put(fabric, &fabric->landings[index]);
    fetch->landing = NULL;
}
