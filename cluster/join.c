/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that no MPI started becomes a member. Its card goes to the decider by a call of the rank that it turned
 * to; the epoch that takes it in brings the card to all others; the invitation brings all others' cards to it.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

/** How often the decider is asked whether it is done. */
#define ASK_NS 5000000u
/** How long to wait after it was lost, or refused for a while. */
#define AGAIN_NS 50000000u

#define INVITATION_VERSION 0x6c6f6469u

/** Then, for each slot: an entry, and card and blob if it has ever been used. */
typedef struct invitation {
    uint32_t version, capacity, slots, slot, number, zero;
} invitation_t;

typedef struct invited {
    uint64_t who;
    uint32_t joined, member, bytes, zero; /**< bytes of card and blob that follow */
} invited_t;

/* ------------------------------------------------------------------ newcomer */

static uint32_t fresh_nonce(void)
{
    uint64_t random = lode_mix(lode_now_ns(), (uint64_t)getpid()) ^ (uint64_t)(uintptr_t)&random;
    return (uint32_t)(lode_mix(random, 1) >> 32) | 1;
}

lode_status_t lode_fabric_prepare(const lode_fabric_params_t *params, lode_fabric_h *out, void **out_card,
                                  size_t *card_bytes)
{
    fabric_card_t card;
    uint8_t *blob = NULL, *bytes = NULL;
    LODE_TRY(fabric_params_check(params));
    lode_fabric_h fabric = fabric_alloc(params);
    if (!fabric)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for the fabric", sizeof *fabric);
    lode_status_t status = fabric_memory_check(fabric);
    if (status == LODE_OK)
        status = fabric_prepare_alone(fabric);
    if (status == LODE_OK)
        status = fabric_introduce(fabric, &card, &blob);
    if (status != LODE_OK)
        goto destroy;
    card.nonce = fabric->nonce = fresh_nonce();
    bytes = malloc(sizeof card + fabric_card_blob(&card));
    if (!bytes) {
        status = lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for a card", sizeof card + fabric_card_blob(&card));
        goto destroy;
    }
    memcpy(bytes, &card, sizeof card);
    memcpy(bytes + sizeof card, blob, fabric_card_blob(&card));
    free(blob);
    *out = fabric;
    *out_card = bytes;
    *card_bytes = sizeof card + fabric_card_blob(&card);
    return LODE_OK;
destroy:
    free(blob);
    fabric_free(fabric);
    return status;
}

static lode_status_t bad_invitation(void)
{
    return lode_fail(LODE_ERR_FORMAT, "this is no invitation of a cluster of this version for this process");
}

/** Enter one slot from an invitation. @return bytes taken, 0 if they are none. */
static size_t enter_slot(lode_fabric_h fabric, uint32_t slot, const uint8_t *at, size_t left)
{
    invited_t entry;
    fabric_card_t card;
    const uint8_t *blob;
    if (left < sizeof entry)
        return 0;
    memcpy(&entry, at, sizeof entry);
    if (entry.bytes > left - sizeof entry || (entry.member && entry.bytes == 0))
        return 0;
    fabric->slots[slot].who = entry.who;
    if (entry.bytes == 0)
        return sizeof entry;
    if (fabric_card_parse(at + sizeof entry, entry.bytes, &card, &blob) != entry.bytes || card.who != entry.who ||
        fabric_slot_install(fabric, slot, &card, blob, entry.joined) != LODE_OK)
        return 0;
    fabric->slots[slot].member = entry.member;
    return sizeof entry + entry.bytes;
}

static lode_status_t enter_all(lode_fabric_h fabric, const invitation_t *head, const uint8_t *at, size_t left)
{
    for (uint32_t r = 0; r < head->slots; r++) {
        size_t taken = enter_slot(fabric, r, at, left);
        if (taken == 0)
            return bad_invitation();
        at += taken;
        left -= taken;
    }
    const fabric_slot_t *own = &fabric->slots[fabric->rank];
    if (!own->member || own->card.nonce != fabric->nonce)
        return bad_invitation();
    atomic_store(&fabric->ranks, head->slots);
    fabric->cards[fabric->rank] = own->card;
    fabric->incarnation = epoch_incarnation(own->who);
    for (uint32_t r = 0; r < head->slots; r++) {
        if (fabric->slots[r].member)
            fabric_slot_open(fabric, r);
    }
    return LODE_OK;
}

lode_status_t lode_fabric_enter(lode_fabric_h fabric, const void *invitation, size_t bytes)
{
    invitation_t head;
    if (fabric->capacity != 0)
        return lode_fail(LODE_ERR_INVALID, "this process has entered a cluster already, or was started by MPI");
    if (bytes < sizeof head)
        return bad_invitation();
    memcpy(&head, invitation, sizeof head);
    if (head.version != INVITATION_VERSION || head.capacity > EPOCH_SLOTS_MAX || head.slots > head.capacity ||
        head.slot >= head.slots || head.number == 0)
        return bad_invitation();
    fabric->capacity = head.capacity;
    fabric->rank = head.slot;
    atomic_store(&fabric->epoch, head.number);
    LODE_TRY(fabric_prepare_tables(fabric));
    LODE_TRY(enter_all(fabric, &head, (const uint8_t *)invitation + sizeof head, bytes - sizeof head));
    fabric->path = "batched";
    fabric_slots_follow(fabric);
    uint32_t mapped = 0;
    for (uint32_t r = 0; r < head.slots; r++)
        mapped += fabric->peers[r].mapped != NULL;
    if (mapped > 0)
        fabric->path = mapped + 1 == lode_fabric_alive_count(fabric) ? "one-sided" : "mixed";
    snprintf(fabric->path_reason, sizeof fabric->path_reason,
             "joined a running cluster: %u arenas are mapped from this host, the other ranks pack replies", mapped);
    return LODE_OK;
}

/* -------------------------------------------------------------------- member */

/** Everything this rank knows of the slots, for the one that took @p slot. Under slots_lock. */
static lode_status_t invite(lode_fabric_h fabric, uint32_t slot, void **out, size_t *out_bytes)
{
    invitation_t head = {.version = INVITATION_VERSION,
                         .capacity = fabric->capacity,
                         .slots = fabric->ranks,
                         .slot = slot,
                         .number = atomic_load(&fabric->epoch)};
    size_t bytes = sizeof head;
    for (uint32_t r = 0; r < head.slots; r++) {
        const fabric_slot_t *entry = &fabric->slots[r];
        bytes += sizeof(invited_t) + (entry->blob ? sizeof entry->card + fabric_card_blob(&entry->card) : 0);
    }
    uint8_t *invitation = malloc(bytes), *at = invitation;
    if (!invitation)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for an invitation", bytes);
    memcpy(at, &head, sizeof head);
    at += sizeof head;
    for (uint32_t r = 0; r < head.slots; r++) {
        const fabric_slot_t *entry = &fabric->slots[r];
        size_t blob = entry->blob ? fabric_card_blob(&entry->card) : 0;
        invited_t invited = {.who = entry->who,
                             .joined = entry->joined,
                             .member = entry->member,
                             .bytes = entry->blob ? (uint32_t)(sizeof entry->card + blob) : 0};
        memcpy(at, &invited, sizeof invited);
        at += sizeof invited;
        if (!entry->blob)
            continue;
        memcpy(at, &entry->card, sizeof entry->card);
        memcpy(at + sizeof entry->card, entry->blob, blob);
        at += sizeof entry->card + blob;
    }
    *out = invitation;
    *out_bytes = bytes;
    return LODE_OK;
}

/** Look for the newcomer among the members. @return whether it is one; then *status says what the invitation came to.
 */
static bool is_in(lode_fabric_h fabric, uint32_t nonce, lode_status_t *status, void **invitation, size_t *bytes)
{
    bool found = false;
    pthread_mutex_lock(&fabric->slots_lock);
    for (uint32_t r = 0; r < fabric->ranks && !found && !fabric->settling; r++) {
        found = fabric->slots[r].member && fabric->slots[r].card.nonce == nonce;
        if (found)
            *status = invite(fabric, r, invitation, bytes);
    }
    pthread_mutex_unlock(&fabric->slots_lock);
    return found;
}

/** An admission under way: the decider is asked again and again whether it is done. */
struct lode_admission {
    struct lode_admission *next;
    lode_fabric_h fabric;
    uint8_t *card;
    size_t card_bytes;
    uint32_t nonce, to, done;
    uint64_t end_ns, ask_ns; /**< when it fails, and when the decider is asked next */
    bool asking;             /**< a call is under way, whose answer needs this memory */
    bool ended;
    lode_status_t status; /**< of the last answer */
    char message[400];
};

lode_status_t lode_fabric_admit_begin(lode_fabric_h fabric, const void *bytes, size_t count, lode_admission_h *out)
{
    fabric_card_t card;
    const uint8_t *blob;
    if (fabric_card_parse(bytes, count, &card, &blob) != count || card.nonce == 0)
        return lode_fail(LODE_ERR_FORMAT, "%zu bytes that are no card of a process of this version", count);
    lode_admission_h admission = calloc(1, sizeof *admission);
    uint8_t *copy = malloc(count);
    if (!admission || !copy) {
        free(admission);
        free(copy);
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for a process that wants to join", count);
    }
    memcpy(copy, bytes, count);
    *admission =
        (struct lode_admission){.next = fabric->admissions,
                                .fabric = fabric,
                                .card = copy,
                                .card_bytes = count,
                                .nonce = card.nonce,
                                .to = atomic_load(&fabric->decider),
                                .end_ns = lode_now_ns() + (uint64_t)fabric->params.call_deadline_ms * 1000000u};
    *out = fabric->admissions = admission;
    return LODE_OK;
}

static void admission_free(lode_admission_h admission)
{
    lode_admission_h *at = &admission->fabric->admissions;
    while (*at != admission)
        at = &(*at)->next;
    *at = admission->next;
    free(admission->card);
    free(admission);
}

void lode_fabric_admit_end(lode_admission_h *admission)
{
    (*admission)->ended = true;
    if (!(*admission)->asking)
        admission_free(*admission);
    *admission = NULL;
}

void fabric_admissions_destroy(lode_fabric_h fabric)
{
    while (fabric->admissions)
        admission_free(fabric->admissions);
}

static void on_offered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    lode_admission_h admission = context;
    (void)from;
    admission->asking = false;
    if (admission->ended) {
        admission_free(admission);
        return;
    }
    admission->status = status;
    admission->done = status == LODE_OK && reply->size;
    admission->ask_ns = lode_now_ns() + (status == LODE_OK ? ASK_NS : AGAIN_NS);
    if (status == LODE_OK)
        return;
    snprintf(admission->message, sizeof admission->message, "%s", lode_error_message());
    /* not before: the newcomer itself may be the next decider, and is not here yet */
    admission->to = atomic_load(&admission->fabric->decider);
}

static lode_status_t ask_decider(lode_admission_h admission)
{
    Lodemark__Join body = LODEMARK__JOIN__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    call.body_case = LODEMARK__CALL__BODY_JOIN;
    call.join = &body;
    admission->asking = true;
    lode_status_t status = lode_fabric_call(admission->fabric, admission->to, &call, admission->card,
                                            admission->card_bytes, on_offered, admission);
    if (status != LODE_OK)
        on_offered(admission, admission->to, status, NULL);
    return status;
}

lode_status_t lode_fabric_admit_poll(lode_admission_h admission, void **invitation, size_t *bytes)
{
    lode_fabric_h fabric = admission->fabric;
    lode_status_t status = LODE_OK;
    uint64_t now = lode_now_ns();
    *invitation = NULL;
    if (admission->asking)
        return LODE_OK;
    if (admission->status != LODE_OK &&
        (admission->status != LODE_ERR_PEER_LOST || lode_fabric_expelled(fabric) || now >= admission->end_ns))
        return lode_fail(admission->status, "%s", admission->message);
    if (admission->done && is_in(fabric, admission->nonce, &status, invitation, bytes))
        return status;
    if (now >= admission->end_ns)
        return lode_fail(LODE_ERR_TIMEOUT, "a process that wants to join was not taken in within %u ms",
                         fabric->params.call_deadline_ms);
    if (now >= admission->ask_ns)
        ask_decider(admission); /* what came of it is looked at next time */
    return LODE_OK;
}

lode_status_t lode_fabric_admit(lode_fabric_h fabric, const void *card, size_t card_bytes, void **invitation,
                                size_t *invitation_bytes)
{
    lode_admission_h admission;
    LODE_TRY(lode_fabric_admit_begin(fabric, card, card_bytes, &admission));
    for (;;) {
        void *found;
        lode_status_t status = lode_fabric_admit_poll(admission, &found, invitation_bytes);
        if (status != LODE_OK || found) {
            lode_fabric_admit_end(&admission);
            *invitation = status == LODE_OK ? found : *invitation;
            return status;
        }
        fabric_wait(fabric, lode_now_ns() + ASK_NS);
    }
}
