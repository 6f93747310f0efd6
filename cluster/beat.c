/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Membership at work: what epoch.c decides, carried by messages between service threads.
 *
 * Messages carry the cards of processes that their receiver may not know: those that joined after the epoch it is
 * known to have, and the one that is about to.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fabric_inside.h"

/** Messages to one peer that UCX holds; a peer that does not read gets no more. */
#define BEATS_MOST 4u
#define CANDIDATES 16u
#define OFFERS 8u
#define RETRY_NS 50000000u
/** How long a process may take from its entry to its first heartbeat. */
#define GRACE_NS 2000000000u
/** How long a newcomer waits for those who do not say that they know it. */
#define KNOWN_NS 500000000u

typedef struct beat {
    struct beat *next;
    lode_fabric_h fabric;
    uint32_t to;
    size_t capacity, bytes;
    uint8_t *data;
    epoch_wire_t wire;
} beat_t;

/** A process that may become a member: its card and what follows. */
typedef struct candidate {
    fabric_card_t card;
    uint8_t *blob; /**< NULL: none */
} candidate_t;

/** A process that asked this rank, as decider, to be let in. Guarded by slots_lock. */
typedef struct offer {
    candidate_t process;
    uint64_t since_ns, joined_ns;
    bool done;
} offer_t;

struct fabric_membership {
    epoch_view_t view;
    epoch_arrays_t arrays;
    uint64_t ticked_ns;
    beat_t *free;
    candidate_t candidates[CANDIDATES];
    uint32_t candidate_next;
    offer_t offers[OFFERS];
};

static uint64_t who_of(uint64_t slot)
{
    return slot & ~EPOCH_MEMBER;
}

/* --------------------------------------------------------------- candidates */

static candidate_t *candidate_find(fabric_membership_t *membership, uint32_t slot, uint64_t who)
{
    for (uint32_t i = 0; i < CANDIDATES; i++) {
        candidate_t *candidate = &membership->candidates[i];
        if (candidate->blob && candidate->card.slot == slot && candidate->card.who == who)
            return candidate;
    }
    return NULL;
}

static bool candidate_copy(candidate_t *to, const fabric_card_t *card, const uint8_t *blob)
{
    uint8_t *copy = malloc(fabric_card_blob(card));
    if (!copy)
        return false;
    memcpy(copy, blob, fabric_card_blob(card));
    free(to->blob);
    *to = (candidate_t){*card, copy};
    return true;
}

static void candidate_add(fabric_membership_t *membership, const fabric_card_t *card, const uint8_t *blob)
{
    if (candidate_find(membership, card->slot, card->who))
        return;
    uint32_t i = 0;
    while (i < CANDIDATES && membership->candidates[i].blob)
        i++;
    if (i == CANDIDATES) /* the oldest goes; whoever still wants it brings its card again */
        i = membership->candidate_next++ % CANDIDATES;
    if (!candidate_copy(&membership->candidates[i], card, blob))
        lode_warn("no memory for the card of a process that wants rank %u", card->slot);
}

/** Forget those whose slot has gone to them or to a later one. */
static void candidates_prune(lode_fabric_h fabric)
{
    for (uint32_t i = 0; i < CANDIDATES; i++) {
        candidate_t *candidate = &fabric->membership->candidates[i];
        if (!candidate->blob ||
            epoch_incarnation(candidate->card.who) > epoch_incarnation(fabric->slots[candidate->card.slot].who))
            continue;
        free(candidate->blob);
        candidate->blob = NULL;
    }
}

/* ---------------------------------------------------------------- receiving */

/** Whether all members of a set are known, so that it can be adopted. */
static bool all_known(lode_fabric_h fabric, const uint64_t *set, uint32_t slots)
{
    for (uint32_t r = 0; r < slots; r++) {
        if ((set[r] & EPOCH_MEMBER) && fabric->slots[r].who != who_of(set[r]) &&
            !candidate_find(fabric->membership, r, who_of(set[r])))
            return false;
    }
    return true;
}

static bool take_cards(lode_fabric_h fabric, const uint8_t *data, size_t bytes, uint32_t cards)
{
    for (; cards > 0; cards--) {
        fabric_card_t card;
        const uint8_t *blob;
        size_t taken = fabric_card_parse(data, bytes, &card, &blob);
        if (taken == 0 || card.slot >= fabric->capacity)
            return false;
        if (fabric->slots[card.slot].who != card.who)
            candidate_add(fabric->membership, &card, blob);
        data += taken;
        bytes -= taken;
    }
    return true;
}

static ucs_status_t on_beat(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                            const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    fabric_membership_t *membership = fabric->membership;
    epoch_beat_t beat;
    uint32_t cards = 0;
    size_t taken = 0;
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV))
        taken = epoch_unpack(header, header_bytes, data, bytes, fabric->capacity, &membership->arrays, &beat, &cards);
    if (taken == 0 || !take_cards(fabric, (const uint8_t *)data + taken, bytes - taken, cards)) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("dropped a message about members of %zu bytes that is none", header_bytes + bytes);
        return UCS_OK;
    }
    uint32_t number = membership->view.number;
    if ((beat.number > number && !all_known(fabric, beat.set, beat.slots)) ||
        (beat.number >= number && beat.value && !all_known(fabric, beat.value, beat.slots)))
        return UCS_OK; /* its sender learns from our messages which cards we miss */
    uint64_t now = lode_now_ns();
    if (fabric->slots[beat.from].who == beat.who)
        atomic_store_explicit(&fabric->heard_ns[beat.from], now, memory_order_relaxed);
    epoch_receive(&membership->view, &beat, now);
    atomic_store_explicit(&fabric->stirred, true, memory_order_relaxed);
    return UCS_OK;
}

/* ------------------------------------------------------------------ sending */

static void beat_free(beat_t *beat)
{
    lode_fabric_h fabric = beat->fabric;
    fabric->peers[beat->to].beating--;
    beat->next = fabric->membership->free;
    fabric->membership->free = beat;
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    (void)status; /* a failed endpoint tells its error handler */
    beat_free(user);
    ucp_request_free(request);
}

static beat_t *beat_take(lode_fabric_h fabric, size_t bytes)
{
    beat_t *beat = fabric->membership->free;
    if (beat)
        fabric->membership->free = beat->next;
    else if (!(beat = calloc(1, sizeof *beat)))
        return NULL;
    if (beat->capacity < bytes) {
        free(beat->data);
        beat->data = malloc(bytes);
        beat->capacity = beat->data ? bytes : 0;
    }
    if (beat->capacity < bytes) {
        beat->next = fabric->membership->free;
        fabric->membership->free = beat;
        return NULL;
    }
    beat->fabric = fabric;
    beat->bytes = bytes;
    return beat;
}

/** The card of a member that the receiver may not know; NULL: it does. */
static const fabric_card_t *news_of(lode_fabric_h fabric, const epoch_beat_t *beat, uint32_t slot, uint32_t known,
                                    const uint8_t **blob)
{
    const fabric_slot_t *entry = &fabric->slots[slot];
    const uint64_t *wanted[] = {beat->value, beat->accepted_set, NULL};
    for (uint32_t i = 0; i < 2; i++) {
        if (!wanted[i] || !(wanted[i][slot] & EPOCH_MEMBER) || who_of(wanted[i][slot]) == entry->who)
            continue;
        candidate_t *candidate = candidate_find(fabric->membership, slot, who_of(wanted[i][slot]));
        *blob = candidate ? candidate->blob : NULL;
        return candidate ? &candidate->card : NULL;
    }
    *blob = entry->blob;
    return entry->member && entry->joined > 1 && entry->joined > known ? &entry->card : NULL;
}

/** Pack the message for a peer, and the cards that go with it. NULL without memory. */
static beat_t *beat_pack(lode_fabric_h fabric, uint32_t to, uint64_t now)
{
    epoch_view_t *view = &fabric->membership->view;
    uint32_t known = view->peers[to].number, cards = 0;
    epoch_beat_t message;
    const uint8_t *blob;
    epoch_fill(view, to, now, &message);
    size_t at = epoch_wire_bytes(&message), bytes = at;
    for (uint32_t r = 0; r < message.slots; r++) {
        const fabric_card_t *card = r == to ? NULL : news_of(fabric, &message, r, known, &blob);
        bytes += card ? sizeof *card + fabric_card_blob(card) : 0;
        cards += card != NULL;
    }
    beat_t *beat = beat_take(fabric, bytes);
    if (!beat)
        return NULL;
    epoch_pack(&message, cards, &beat->wire, beat->data);
    for (uint32_t r = 0; r < message.slots && cards > 0; r++) {
        const fabric_card_t *card = r == to ? NULL : news_of(fabric, &message, r, known, &blob);
        if (!card)
            continue;
        memcpy(beat->data + at, card, sizeof *card);
        memcpy(beat->data + at + sizeof *card, blob, fabric_card_blob(card));
        at += sizeof *card + fabric_card_blob(card);
    }
    return beat;
}

static void beat_send(lode_fabric_h fabric, uint32_t to, uint64_t now)
{
    ucp_ep_h ep = fabric_slot_beats(fabric, to);
    if (!ep || fabric->peers[to].beating >= BEATS_MOST) {
        fabric->membership->view.peers[to].due = false; /* the next one says it all */
        return;
    }
    beat_t *beat = beat_pack(fabric, to, now);
    if (!beat)
        return;
    beat->to = to;
    fabric->peers[to].beating++;
    ucp_request_param_t param = fabric_send_param(on_sent, beat, UCP_AM_SEND_FLAG_EAGER);
    ucs_status_ptr_t request =
        ucp_am_send_nbx(ep, FABRIC_AM_BEAT, &beat->wire, sizeof beat->wire, beat->data, beat->bytes, &param);
    if (!UCS_PTR_IS_PTR(request))
        beat_free(beat);
}

/* ------------------------------------------------------------------- joining */

/** The slot for a newcomer; EPOCH_NO_SLOT, EPOCH_LATER. */
static uint32_t slot_for(lode_fabric_h fabric, const offer_t *offer, uint64_t now)
{
    const epoch_view_t *view = &fabric->membership->view;
    bool kin[EPOCH_SLOTS_MAX];
    for (uint32_t r = 0; r < view->slots; r++)
        kin[r] = fabric->slots[r].card.domain == offer->process.card.domain;
    return epoch_slot(view, kin, offer->since_ns, now);
}

/** Fill in what depends on the slot. */
static void place(fabric_card_t *card, uint32_t slot, uint64_t before)
{
    uint32_t incarnation = epoch_incarnation(before) + 1;
    card->slot = slot;
    card->who = epoch_who(incarnation, card->nonce);
    card->node = card->rank_is_node ? lode_mix(card->domain, slot + 1) : card->domain;
    card->share = (uint64_t)incarnation << 32 | slot; /* nobody else's: those of the MPI job are below 2^32 */
    card->local_rank = 0;
}

/** Whether a process was a member and is none any more. Under slots_lock. */
static bool was_lost(lode_fabric_h fabric, uint32_t nonce)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (!fabric->slots[r].member && fabric->slots[r].card.nonce == nonce)
            return true;
    }
    return false;
}

/** Under slots_lock. */
static bool is_full(lode_fabric_h fabric)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (!fabric->slots[r].member)
            return false;
    }
    return fabric->ranks == fabric->capacity;
}

static fabric_slot_t *slot_of_nonce(lode_fabric_h fabric, uint32_t nonce)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (fabric->slots[r].member && fabric->slots[r].card.nonce == nonce && nonce != 0)
            return &fabric->slots[r];
    }
    return NULL;
}

lode_status_t fabric_membership_offer(lode_fabric_h fabric, const void *bytes, size_t count, uint32_t *done)
{
    fabric_card_t card;
    const uint8_t *blob;
    if (fabric_card_parse(bytes, count, &card, &blob) == 0 || card.nonce == 0)
        return lode_fail(LODE_ERR_FORMAT, "%zu bytes that are no card of a process of this version", count);
    lode_status_t status = LODE_OK;
    offer_t *free_offer = NULL, *found = NULL;
    pthread_mutex_lock(&fabric->slots_lock);
    for (uint32_t i = 0; i < OFFERS && !found; i++) {
        offer_t *offer = &fabric->membership->offers[i];
        if (!offer->process.blob)
            free_offer = offer;
        else if (offer->process.card.nonce == card.nonce)
            found = offer;
    }
    if (!found &&
        atomic_load(&fabric->decider) != fabric->rank) /* who was let in may decide now, and is not here yet */
        status = lode_fail(LODE_ERR_PEER_LOST, "rank %u does not decide who is a member; rank %u does", fabric->rank,
                           atomic_load(&fabric->decider));
    else if (was_lost(fabric, card.nonce))
        status = lode_fail(LODE_ERR_INVALID, "the process that wants to join was a member and is lost");
    else if (!found && is_full(fabric))
        status = lode_fail(LODE_ERR_FULL, "all %u slots have a living rank; the cluster was started with max-ranks %u",
                           fabric->capacity, fabric->capacity);
    else if (!found && !free_offer)
        status = lode_fail(LODE_ERR_FULL, "%u processes want to join at once; try again", OFFERS);
    else if (!found && !candidate_copy(&free_offer->process, &card, blob))
        status = lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for a process that wants to join", count);
    else if (!found)
        free_offer->since_ns = lode_now_ns();
    if (status == LODE_OK)
        *done = found && found->done;
    pthread_mutex_unlock(&fabric->slots_lock);
    atomic_store(&fabric->stirred, true);
    ucp_worker_signal(fabric->service_worker);
    return status;
}

/** Whether all who are well have said that they know the present epoch. */
static bool all_follow(const epoch_view_t *view, uint32_t newcomer)
{
    for (uint32_t r = 0; r < view->slots; r++) {
        if (r != view->self && r != newcomer && epoch_member(view, r) && view->verdicts[r] == EPOCH_WELL &&
            view->peers[r].number < view->number)
            return false;
    }
    return true;
}

static void offer_end(offer_t *offer)
{
    free(offer->process.blob);
    *offer = (offer_t){0};
}

/** Let one in after the other; forget those that are in, after a while. Under slots_lock. */
static void offers_pump(lode_fabric_h fabric, uint64_t now)
{
    fabric_membership_t *membership = fabric->membership;
    uint64_t most = (uint64_t)fabric->params.call_deadline_ms * 1000000u;
    for (uint32_t i = 0; i < OFFERS; i++) {
        offer_t *offer = &membership->offers[i];
        if (!offer->process.blob)
            continue;
        const fabric_slot_t *in = slot_of_nonce(fabric, offer->process.card.nonce);
        if (in) {
            offer->joined_ns = offer->joined_ns ? offer->joined_ns : now;
            offer->done |=
                now - offer->joined_ns > KNOWN_NS || all_follow(&membership->view, (uint32_t)(in - fabric->slots));
        } else if (offer->joined_ns) {
            offer_end(offer); /* it was a member; another process may want its slot */
            continue;
        } else if (membership->view.join_who == 0 && epoch_decider(&membership->view) == fabric->rank) {
            fabric_card_t card = offer->process.card;
            uint32_t slot = slot_for(fabric, offer, now);
            if (slot < membership->view.capacity) {
                place(&card, slot, fabric->slots[slot].who);
                candidate_add(membership, &card, offer->process.blob);
                epoch_join(&membership->view, slot, card.who);
            }
        }
        if (now - offer->since_ns > 2 * most)
            offer_end(offer);
    }
}

/* ------------------------------------------------------------------ settling */

static void say_lost(lode_fabric_h fabric, uint32_t slot, uint32_t number)
{
    if (!atomic_exchange(&fabric->alive[slot], false))
        return;
    atomic_fetch_add(&fabric->lost, 1);
    lode_warn("rank %u (%s) is lost: epoch %u goes on without it", slot, fabric->members[slot].host, number);
}

static void settle_new(lode_fabric_h fabric, uint32_t slot, uint64_t who)
{
    uint32_t number = fabric->membership->view.number;
    candidate_t *candidate = candidate_find(fabric->membership, slot, who);
    say_lost(fabric, slot, number);
    if (!candidate || fabric_slot_install(fabric, slot, &candidate->card, candidate->blob, number) != LODE_OK) {
        lode_error("rank %u is not connected: %s", slot, candidate ? lode_error_message() : "its card did not come");
        return;
    }
    atomic_store(&fabric->heard_ns[slot], 0);
    atomic_store(&fabric->reports[slot], 0);
    fabric_slot_open(fabric, slot);
    lode_info("rank %u is process %u now, on %s: epoch %u", slot, epoch_incarnation(who), candidate->card.host, number);
}

/** A process is no member any more, or came and went without this rank's knowing. */
static void settle_gone(lode_fabric_h fabric, uint32_t slot, uint64_t who)
{
    fabric_slot_t *entry = &fabric->slots[slot];
    pthread_mutex_lock(&fabric->slots_lock);
    entry->member = false;
    if (entry->who != who) {
        free(entry->blob);
        entry->blob = NULL;
        entry->who = who;
    }
    pthread_mutex_unlock(&fabric->slots_lock);
    say_lost(fabric, slot, fabric->membership->view.number);
}

static void settling(lode_fabric_h fabric, bool begins)
{
    pthread_mutex_lock(&fabric->slots_lock);
    fabric->settling = begins;
    if (!begins)
        atomic_store(&fabric->epoch, fabric->membership->view.number);
    pthread_mutex_unlock(&fabric->slots_lock);
}

/** Make the tables follow the set that was agreed on. */
static void settle(lode_fabric_h fabric)
{
    const epoch_view_t *view = &fabric->membership->view;
    if (atomic_load(&fabric->epoch) == view->number)
        return;
    settling(fabric, true);
    for (uint32_t r = 0; r < view->slots; r++) {
        const fabric_slot_t *entry = &fabric->slots[r];
        bool member = epoch_member(view, r);
        if (r == fabric->rank)
            continue;
        if (member && who_of(view->set[r]) != entry->who)
            settle_new(fabric, r, who_of(view->set[r]));
        else if (!member && (entry->member || who_of(view->set[r]) != entry->who))
            settle_gone(fabric, r, who_of(view->set[r]));
    }
    candidates_prune(fabric);
    settling(fabric, false);
    atomic_fetch_add(&fabric->changes, 1);
    lode_info("epoch %u: %u ranks live", view->number, lode_fabric_alive_count(fabric));
}

static void publish(lode_fabric_h fabric)
{
    const epoch_view_t *view = &fabric->membership->view;
    atomic_store_explicit(&fabric->lease_until_ns, view->lease_until_ns, memory_order_release);
    atomic_store_explicit(&fabric->decider, epoch_decider(view), memory_order_release);
    if (view->expelled && !atomic_exchange(&fabric->expelled, true))
        lode_error("the others went on without rank %u, which was silent for too long: it is no member any more",
                   fabric->rank);
}

/* -------------------------------------------------------------------- rounds */

static void take_reports(lode_fabric_h fabric, uint64_t now)
{
    epoch_view_t *view = &fabric->membership->view;
    for (uint32_t r = 0; r < view->slots; r++) {
        uint64_t report = atomic_load_explicit(&fabric->reports[r], memory_order_relaxed);
        if (report == 0)
            continue;
        report = atomic_exchange(&fabric->reports[r], 0);
        if (report >> 2 == epoch_incarnation(fabric->slots[r].who))
            epoch_failed(view, r, (report & 3) == 2, now);
    }
}

void fabric_membership_round(lode_fabric_h fabric, uint64_t now)
{
    fabric_membership_t *membership = fabric->membership;
    epoch_view_t *view = &membership->view;
    uint64_t period = view->params.beat_ns && view->params.beat_ns < 2 * RETRY_NS ? view->params.beat_ns / 2 : RETRY_NS;
    bool stirred = atomic_load_explicit(&fabric->stirred, memory_order_relaxed);
    if ((!stirred && now - membership->ticked_ns < period) || atomic_load(&fabric->leaving) ||
        atomic_load(&fabric->expelled))
        return;
    atomic_store(&fabric->stirred, false);
    membership->ticked_ns = now;
    settle(fabric); /* messages may have brought an epoch */
    take_reports(fabric, now);
    pthread_mutex_lock(&fabric->slots_lock);
    offers_pump(fabric, now);
    pthread_mutex_unlock(&fabric->slots_lock);
    epoch_tick(view, now);
    settle(fabric);
    publish(fabric);
    for (uint32_t r = 0; r < view->slots; r++) {
        if (view->peers[r].due && r != fabric->rank)
            beat_send(fabric, r, now);
    }
}

lode_status_t fabric_membership_create(lode_fabric_h fabric)
{
    fabric_membership_t *membership = calloc(1, sizeof *membership);
    uint32_t capacity = fabric->capacity;
    uint64_t suspect = (uint64_t)fabric->params.suspect_ms * 1000000u;
    epoch_params_t params = {.beat_ns = (uint64_t)fabric->params.beat_ms * 1000000u,
                             .suspect_ns = suspect,
                             .lease_ns = (uint64_t)fabric->params.lease_ms * 1000000u,
                             .retry_ns = RETRY_NS,
                             .grace_ns = GRACE_NS};
    if (!membership)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for the membership", sizeof *membership);
    fabric->membership = membership;
    LODE_TRY(epoch_create(&membership->view, &params, capacity));
    membership->arrays.set = calloc(capacity, sizeof *membership->arrays.set);
    membership->arrays.accepted_set = calloc(capacity, sizeof *membership->arrays.accepted_set);
    membership->arrays.value = calloc(capacity, sizeof *membership->arrays.value);
    membership->arrays.verdicts = calloc(capacity, sizeof *membership->arrays.verdicts);
    if (!membership->arrays.set || !membership->arrays.accepted_set || !membership->arrays.value ||
        !membership->arrays.verdicts)
        return lode_fail(LODE_ERR_NO_MEMORY, "messages about %u ranks", capacity);
    return fabric_listen(fabric, fabric->service_worker, FABRIC_AM_BEAT, on_beat);
}

void fabric_membership_begin(lode_fabric_h fabric)
{
    fabric_membership_t *membership = fabric->membership;
    uint64_t *set = membership->arrays.set;
    memset(set, 0, fabric->capacity * sizeof *set);
    for (uint32_t r = 0; r < fabric->ranks; r++)
        set[r] = fabric->slots[r].who | (fabric->slots[r].member ? EPOCH_MEMBER : 0);
    epoch_begin(&membership->view, fabric->rank, atomic_load(&fabric->epoch), set, fabric->ranks, lode_now_ns());
    publish(fabric);
}

static void beats_free(beat_t *beat)
{
    while (beat) {
        beat_t *next = beat->next;
        free(beat->data);
        free(beat);
        beat = next;
    }
}

void fabric_membership_destroy(lode_fabric_h fabric)
{
    fabric_membership_t *membership = fabric->membership;
    if (!membership)
        return;
    beats_free(membership->free);
    for (uint32_t i = 0; i < CANDIDATES; i++)
        free(membership->candidates[i].blob);
    for (uint32_t i = 0; i < OFFERS; i++)
        free(membership->offers[i].process.blob);
    free(membership->arrays.set);
    free(membership->arrays.accepted_set);
    free(membership->arrays.value);
    free(membership->arrays.verdicts);
    epoch_destroy(&membership->view);
    free(membership);
    fabric->membership = NULL;
}
