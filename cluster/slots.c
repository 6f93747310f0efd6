/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots change hands: a process leaves, another takes its number. The service thread enters the new one into the
 * table and opens its own links; the caller's thread follows in its next round, after it has ended what it had asked
 * of the old one.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fabric_inside.h"

/** Most bytes of an address or a key; UCX's are below 4 KiB. */
#define PART_BYTES_MAX 65536u

size_t fabric_card_blob(const fabric_card_t *card)
{
    return (size_t)card->service_bytes + card->client_bytes + card->rkey_bytes;
}

size_t fabric_card_parse(const uint8_t *bytes, size_t count, fabric_card_t *card, const uint8_t **blob)
{
    if (count < sizeof *card)
        return 0;
    memcpy(card, bytes, sizeof *card);
    if (card->version != FABRIC_CARD_VERSION || card->service_bytes == 0 || card->service_bytes > PART_BYTES_MAX ||
        card->client_bytes == 0 || card->client_bytes > PART_BYTES_MAX || card->rkey_bytes == 0 ||
        card->rkey_bytes > PART_BYTES_MAX || fabric_card_blob(card) > count - sizeof *card)
        return 0;
    card->host[sizeof card->host - 1] = 0;
    *blob = bytes + sizeof *card;
    return sizeof *card + fabric_card_blob(card);
}

/** Number of its failure domain: that of the first slot which has the same, or the next. */
static uint32_t node_index(lode_fabric_h fabric, uint32_t slot, uint64_t node)
{
    uint32_t next = 0;
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        const lode_member_t *member = &fabric->members[r];
        if (r == slot || member->arena_bytes == 0)
            continue;
        if (member->node == node)
            return member->node_index;
        if (member->node_index >= next)
            next = member->node_index + 1;
    }
    return next;
}

lode_status_t fabric_slot_install(lode_fabric_h fabric, uint32_t slot, const fabric_card_t *card, const uint8_t *blob,
                                  uint32_t joined)
{
    fabric_slot_t *entry = &fabric->slots[slot];
    size_t bytes = fabric_card_blob(card);
    uint8_t *copy = malloc(bytes);
    if (!copy)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for the addresses of rank %u", bytes, slot);
    memcpy(copy, blob, bytes);
    pthread_mutex_lock(&fabric->slots_lock);
    free(entry->blob);
    *entry = (fabric_slot_t){.who = card->who, .member = true, .joined = joined, .card = *card, .blob = copy};
    pthread_mutex_unlock(&fabric->slots_lock);
    fabric->members[slot] = (lode_member_t){.node = card->node,
                                            .arena_bytes = card->arena_bytes,
                                            .node_index = node_index(fabric, slot, card->node),
                                            .local_rank = card->local_rank};
    memcpy(fabric->members[slot].host, card->host, sizeof card->host);
    atomic_store(&fabric->share[slot], card->share);
    atomic_store(&fabric->incarnations[slot], epoch_incarnation(card->who));
    if (slot >= fabric->ranks)
        atomic_store(&fabric->ranks, slot + 1);
    return LODE_OK;
}

/* A process that ended meanwhile cannot be connected to: it is lost as soon as it is there. */
void fabric_slot_open(lode_fabric_h fabric, uint32_t slot)
{
    lode_status_t status = fabric_slot_serve(fabric, slot);
    atomic_store(&fabric->alive[slot], true);
    if (status != LODE_OK)
        fabric_member_lost(fabric, slot, lode_fabric_incarnation(fabric, slot), true, lode_error_message());
}

lode_status_t fabric_slot_serve(lode_fabric_h fabric, uint32_t slot)
{
    fabric_peer_t *peer = &fabric->peers[slot];
    const fabric_slot_t *entry = &fabric->slots[slot]; /* this thread alone writes it */
    fabric_link_close(&peer->answers);
    fabric_link_close(&peer->beats);
    fabric_link_t fresh = {.fabric = fabric, .rank = slot, .incarnation = epoch_incarnation(entry->who)};
    peer->answers = peer->beats = fresh;
    if (slot == fabric->rank)
        return LODE_OK;
    return fabric_link_create(&peer->answers, fabric->service_worker, entry->blob + entry->card.service_bytes);
}

ucp_ep_h fabric_slot_beats(lode_fabric_h fabric, uint32_t slot)
{
    fabric_link_t *link = &fabric->peers[slot].beats;
    if (link->closed || link->failed || link->ep || !fabric->slots[slot].blob)
        return link->failed ? NULL : link->ep;
    /* With a connection half made when the worker goes, UCX aborts: none is opened by or to one that leaves. */
    if (atomic_load(&fabric->parting) || atomic_load(&fabric->goodbye[slot]) == link->incarnation)
        return NULL;
    if (fabric_link_create(link, fabric->service_worker, fabric->slots[slot].blob) != LODE_OK) {
        lode_debug("heartbeats to rank %u: %s", slot, lode_error_message());
        link->closed = true;
    }
    return link->ep;
}

/** @return whether nothing is left of the connection to the process before. */
static bool let_go(lode_fabric_h fabric, uint32_t slot)
{
    fabric_peer_t *peer = &fabric->peers[slot];
    fabric_link_close(&peer->asks);
    fabric_path_unmap(fabric, slot);
    peer->one_sided = false;
    if (peer->gets > 0)
        return false; /* they name the key */
    if (peer->rkey)
        ucp_rkey_destroy(peer->rkey);
    peer->rkey = NULL;
    return true;
}

/** Connect to the process that has the slot now. */
static lode_status_t connect_to(lode_fabric_h fabric, uint32_t slot)
{
    fabric_peer_t *peer = &fabric->peers[slot];
    pthread_mutex_lock(&fabric->slots_lock);
    const fabric_slot_t *entry = &fabric->slots[slot];
    uint32_t incarnation = epoch_incarnation(entry->who);
    const fabric_card_t *card = &fabric->cards[slot];
    lode_status_t status = LODE_OK;
    fabric->cards[slot] = entry->card;
    if (slot != fabric->rank) {
        peer->asks = (fabric_link_t){.fabric = fabric, .rank = slot, .incarnation = incarnation};
        status = fabric_link_create(&peer->asks, fabric->client, entry->blob);
        if (status == LODE_OK)
            status = FABRIC_UCX(
                ucp_ep_rkey_unpack(peer->asks.ep, entry->blob + card->service_bytes + card->client_bytes, &peer->rkey));
    }
    pthread_mutex_unlock(&fabric->slots_lock);
    if (status != LODE_OK)
        fabric_link_close(&peer->asks); /* without the key nothing may be read by it */
    peer->incarnation = incarnation;
    return status;
}

bool fabric_slots_follow(lode_fabric_h fabric)
{
    bool done = true;
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        fabric_peer_t *peer = &fabric->peers[r];
        if (!lode_fabric_alive(fabric, r)) {
            if (peer->asks.failed)
                fabric_link_close(&peer->asks);
            fabric_path_unmap(fabric, r);
            continue;
        }
        if (fabric_reachable(fabric, r))
            continue;
        if (!let_go(fabric, r)) {
            done = false;
            continue;
        }
        if (connect_to(fabric, r) != LODE_OK) {
            fabric_member_lost(fabric, r, fabric->peers[r].incarnation, true, lode_error_message());
            continue;
        }
        atomic_store_explicit(&peer->bytes_in, 0, memory_order_relaxed);
        atomic_store_explicit(&peer->calls, 0, memory_order_relaxed);
        peer->avoid_until_ns = 0;
        if (fabric->path && fabric->params.path != LODE_PATH_BATCHED) { /* at the start, path.c finds out by trying */
            fabric_path_map(fabric, r);
            peer->one_sided = r != fabric->rank && (peer->mapped || fabric->params.path == LODE_PATH_ONE_SIDED);
        }
    }
    return done;
}

void fabric_slots_destroy(lode_fabric_h fabric)
{
    for (uint32_t r = 0; fabric->slots && r < fabric->capacity; r++)
        free(fabric->slots[r].blob);
    free(fabric->slots);
    fabric->slots = NULL;
}
