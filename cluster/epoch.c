/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "cluster/epoch.h"

/** A ballot: a count, and the slot of the rank that made it in the low bits. */
#define BALLOT_SLOT_BITS 12

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

lode_status_t epoch_create(epoch_view_t *view, const epoch_params_t *params, uint32_t capacity)
{
    *view = (epoch_view_t){.params = *params, .capacity = capacity};
    if (view->params.suspect_ns && view->params.lease_ns > view->params.suspect_ns)
        view->params.lease_ns = view->params.suspect_ns;
    view->set = calloc(capacity, sizeof *view->set);
    view->verdicts = calloc(capacity, sizeof *view->verdicts);
    view->peers = calloc(capacity, sizeof *view->peers);
    view->accepted_set = calloc(capacity, sizeof *view->accepted_set);
    view->value = calloc(capacity, sizeof *view->value);
    view->support = calloc(capacity, sizeof *view->support);
    if (view->set && view->verdicts && view->peers && view->accepted_set && view->value && view->support)
        return LODE_OK;
    epoch_destroy(view);
    return lode_fail(LODE_ERR_NO_MEMORY, "membership tables of %u ranks", capacity);
}

void epoch_destroy(epoch_view_t *view)
{
    free(view->set);
    free(view->verdicts);
    free(view->peers);
    free(view->accepted_set);
    free(view->value);
    free(view->support);
    *view = (epoch_view_t){0};
}

/* ------------------------------------------------------------------ reading */

bool epoch_member(const epoch_view_t *view, uint32_t slot)
{
    return slot < view->slots && (view->set[slot] & EPOCH_MEMBER);
}

static bool is_other(const epoch_view_t *view, uint32_t slot)
{
    return slot != view->self && epoch_member(view, slot);
}

/** The first member from @p slot on that is not lost; capacity if there is none. This rank is never lost to itself. */
static uint32_t well_from(const epoch_view_t *view, uint32_t slot)
{
    for (; slot < view->slots; slot++) {
        if (epoch_member(view, slot) && (slot == view->self || view->verdicts[slot] == EPOCH_WELL))
            return slot;
    }
    return view->capacity;
}

uint32_t epoch_decider(const epoch_view_t *view)
{
    return well_from(view, 0);
}

/** Whether two ranks send each other heartbeats: decider and successor with all, the others with these two. */
static bool are_near(const epoch_view_t *view, uint32_t slot)
{
    uint32_t first = well_from(view, 0), second = well_from(view, first + 1);
    return view->self == first || view->self == second || slot == first || slot == second;
}

bool epoch_fenced(const epoch_view_t *view, uint64_t now)
{
    return view->params.beat_ns && now > view->lease_until_ns;
}

/** Of the members in their order: the first breaks a tie. */
static uint32_t weight(bool *lowest)
{
    uint32_t weighs = *lowest ? 3 : 2;
    *lowest = false;
    return weighs;
}

/** Whether a vote counts: a voter holds to it for a lease. */
static bool has_vote(const epoch_view_t *view, uint32_t slot, uint64_t now)
{
    const epoch_peer_t *peer = &view->peers[slot];
    return peer->vote && (slot == view->self || !view->params.beat_ns || now < peer->voted_ns + view->params.lease_ns);
}

/** Whether the votes make a quorum, see epoch.h. */
static bool is_chosen(const epoch_view_t *view, uint64_t now)
{
    uint32_t all = 0, votes = 0;
    bool lowest = true, living = true;
    for (uint32_t r = 0; r < view->slots; r++) {
        if (!epoch_member(view, r))
            continue;
        uint32_t weighs = weight(&lowest);
        bool self = r == view->self, votes_for = has_vote(view, r, now);
        all += weighs;
        votes += votes_for ? weighs : 0;
        if (self ? !votes_for : view->verdicts[r] != EPOCH_DEAD && !(votes_for && view->peers[r].agrees))
            living = false;
    }
    return 2 * votes > all || living;
}

/* ----------------------------------------------------------------- adopting */

static void clear_votes(epoch_view_t *view)
{
    for (uint32_t r = 0; r < view->slots; r++)
        view->peers[r].vote = false;
}

static void all_due(epoch_view_t *view)
{
    for (uint32_t r = 0; r < view->slots; r++)
        view->peers[r].due |= is_other(view, r);
}

static void adopt_slot(epoch_view_t *view, uint32_t slot, uint64_t after, uint64_t now)
{
    uint64_t before = view->set[slot];
    epoch_peer_t *peer = &view->peers[slot];
    if ((before & ~EPOCH_MEMBER) != (after & ~EPOCH_MEMBER)) { /* another process */
        *peer = (epoch_peer_t){.heard_ns = now + view->params.grace_ns};
        view->verdicts[slot] = EPOCH_WELL;
    } else if ((before & EPOCH_MEMBER) && !(after & EPOCH_MEMBER)) {
        peer->ghost = peer->due = view->verdicts[slot] <= EPOCH_SILENT;
    }
    peer->claimed_ns = 0;
    peer->agrees = peer->vote = false;
    view->set[slot] = after;
    if (after && slot >= view->slots)
        view->slots = slot + 1;
}

static void adopt(epoch_view_t *view, uint32_t number, const uint64_t *set, uint32_t slots, uint64_t now)
{
    for (uint32_t r = 0; r < slots || r < view->slots; r++)
        adopt_slot(view, r, r < slots ? set[r] : 0, now);
    view->number = number;
    view->promised = view->accepted = view->ballot = view->seen = view->best = 0;
    view->phase = EPOCH_IDLE;
    view->begin_ns = view->bound_until_ns = 0;
    view->join_who = 0;
    view->expelled = view->set[view->self] != (view->who | EPOCH_MEMBER);
}

void epoch_begin(epoch_view_t *view, uint32_t self, uint32_t number, const uint64_t *set, uint32_t slots, uint64_t now)
{
    view->self = self;
    view->who = set[self] & ~EPOCH_MEMBER;
    adopt(view, number, set, slots, now);
    view->grace_until_ns = now + view->params.grace_ns;
    view->lease_until_ns = now + later(view->params.lease_ns, view->params.grace_ns);
}

/* ----------------------------------------------------------------- deciding */

/** Whether the decider takes a member out. */
static bool is_removable(const epoch_view_t *view, uint32_t slot, uint64_t now)
{
    const epoch_peer_t *peer = &view->peers[slot];
    epoch_verdict_t verdict = view->verdicts[slot];
    uint64_t patience = view->params.beat_ns ? view->params.suspect_ns : 0;
    if (verdict == EPOCH_DEAD || verdict == EPOCH_SILENT)
        return true;
    if (verdict == EPOCH_FAILED)
        return now >= peer->failed_ns + patience;
    const epoch_peer_t *self = &view->peers[view->self];
    if (self->claimed_ns && self->claimer == slot && now >= self->claimed_ns + patience)
        return true; /* it does without the decider, which cannot be */
    if (peer->claimed_ns == 0 || now < peer->claimed_ns + patience)
        return false;
    /* Two that cannot reach each other: the higher one goes. */
    const epoch_peer_t *claimer = &view->peers[peer->claimer];
    return !(claimer->claimed_ns && claimer->claimer == slot && peer->claimer > slot);
}

/** The set that this rank would choose. @return whether it is another than there is. */
static bool wish(const epoch_view_t *view, uint64_t *value, uint64_t now)
{
    bool other = false;
    memcpy(value, view->set, view->capacity * sizeof *value);
    for (uint32_t r = 0; r < view->slots; r++) {
        if (is_other(view, r) && is_removable(view, r, now)) {
            value[r] &= ~EPOCH_MEMBER;
            other = true;
        }
    }
    uint32_t slot = view->join_slot;
    if (view->join_who && !(value[slot] & EPOCH_MEMBER) &&
        epoch_incarnation(view->join_who) > epoch_incarnation(value[slot])) {
        value[slot] = view->join_who | EPOCH_MEMBER;
        other = true;
    }
    return other;
}

static void give_up(epoch_view_t *view, uint64_t now)
{
    view->phase = EPOCH_IDLE;
    view->begin_ns = now + view->params.retry_ns * (1 + view->self % 4) / 2;
}

static void vote_self(epoch_view_t *view)
{
    clear_votes(view);
    view->peers[view->self].vote = true;
    all_due(view);
}

/** From when on none of those that the value leaves out can have a lease of this rank's: it gives them none any more.
 */
static uint64_t release(const epoch_view_t *view)
{
    uint64_t last = 0;
    for (uint32_t r = 0; r < view->slots && view->params.beat_ns; r++) {
        if (is_other(view, r) && view->verdicts[r] != EPOCH_DEAD && !(view->value[r] & EPOCH_MEMBER))
            last = later(last, view->peers[r].heard_ns + view->params.lease_ns);
    }
    return last;
}

/** Go on as far as the votes allow. */
static void advance(epoch_view_t *view, uint64_t now)
{
    if (view->phase == EPOCH_PREPARE && is_chosen(view, now)) {
        if (view->best == 0 && !wish(view, view->value, now)) { /* what was wrong is right again */
            give_up(view, now);
            return;
        }
        view->phase = EPOCH_ACCEPT;
        view->accepted = view->ballot;
        memcpy(view->accepted_set, view->value, view->capacity * sizeof *view->value);
        view->release_ns = release(view);
        vote_self(view);
    }
    if (view->phase == EPOCH_ACCEPT && now >= view->release_ns && is_chosen(view, now)) {
        adopt(view, view->number + 1, view->value, view->capacity, now);
        all_due(view);
    }
}

/** Begin a ballot if there is something to decide. value serves as scratch until a set is found. */
static void propose(epoch_view_t *view, uint64_t now)
{
    if (view->phase != EPOCH_IDLE)
        advance(view, now); /* one that was waited for may have died */
    if (view->phase != EPOCH_IDLE || now < view->begin_ns || !wish(view, view->value, now))
        return;
    uint64_t count = (later(view->promised, view->seen) >> BALLOT_SLOT_BITS) + 1;
    view->ballot = view->promised = count << BALLOT_SLOT_BITS | view->self;
    view->phase = EPOCH_PREPARE;
    view->best = view->accepted;
    if (view->best)
        memcpy(view->value, view->accepted_set, view->capacity * sizeof *view->value);
    vote_self(view);
    advance(view, now);
}

/* ---------------------------------------------------------------- receiving */

/** A set as it came, in an array of ours. */
static void take_set(const epoch_view_t *view, uint64_t *to, const uint64_t *set, uint32_t slots)
{
    memset(to, 0, view->capacity * sizeof *to);
    memcpy(to, set, slots * sizeof *to);
}

/** Whether a voter lets this rank decide: only when it, too, misses all that come before it. */
static bool is_followed(const epoch_view_t *view, const epoch_beat_t *beat)
{
    for (uint32_t r = 0; r < beat->from; r++) {
        bool lost = view->verdicts[r] != EPOCH_WELL || (!view->params.beat_ns && beat->verdicts[r] >= EPOCH_FAILED);
        if (epoch_member(view, r) && (r == view->self || !lost))
            return false;
    }
    return true;
}

static void vote(epoch_view_t *view, const epoch_beat_t *beat, uint64_t now)
{
    if (beat->phase == EPOCH_PREPARE && beat->ballot > view->promised && is_followed(view, beat)) {
        view->promised = beat->ballot;
    } else if (beat->phase == EPOCH_ACCEPT && beat->ballot >= view->promised && beat->value) {
        view->promised = view->accepted = beat->ballot;
        take_set(view, view->accepted_set, beat->value, beat->slots);
    }
    if (beat->phase != EPOCH_IDLE && beat->ballot == view->promised) {
        view->bound_to = beat->from;
        view->bound_until_ns = now + view->params.lease_ns;
    }
    if (view->phase != EPOCH_IDLE && view->promised > view->ballot)
        give_up(view, now);
}

static void count_vote(epoch_view_t *view, const epoch_beat_t *beat, uint64_t now)
{
    epoch_peer_t *peer = &view->peers[beat->from];
    view->seen = later(view->seen, beat->promised);
    if (view->phase == EPOCH_IDLE)
        return;
    if (beat->promised > view->ballot) {
        give_up(view, now);
        return;
    }
    if (view->phase == EPOCH_PREPARE && beat->promised == view->ballot) {
        peer->vote = true;
        peer->voted_ns = beat->echo;
        if (beat->accepted > view->best && beat->accepted_set) {
            view->best = beat->accepted;
            take_set(view, view->value, beat->accepted_set, beat->slots);
        }
    } else if (view->phase == EPOCH_ACCEPT && beat->accepted == view->ballot) {
        peer->vote = true;
        peer->voted_ns = beat->echo;
    }
    advance(view, now);
}

/** What the sender says of others. */
static void note_verdicts(epoch_view_t *view, const epoch_beat_t *beat, uint64_t now)
{
    bool agrees = true;
    for (uint32_t r = 0; r < view->slots; r++) {
        if (!epoch_member(view, r))
            continue;
        bool failed = r < beat->slots && beat->verdicts[r] >= EPOCH_FAILED;
        epoch_peer_t *peer = &view->peers[r];
        if (view->verdicts[r] == EPOCH_FAILED && failed && beat->verdicts[r] == EPOCH_DEAD && !epoch_fenced(view, now))
            view->verdicts[r] = EPOCH_DEAD; /* one that heard it saw it end, and this rank saw that something did */
        if (view->verdicts[r] == EPOCH_DEAD && !(r < beat->slots && beat->verdicts[r] == EPOCH_DEAD))
            agrees = false;
        if (failed && peer->claimed_ns == 0) {
            peer->claimed_ns = now;
            peer->claimer = beat->from;
        } else if (!failed && peer->claimed_ns && peer->claimer == beat->from) {
            peer->claimed_ns = 0;
        }
    }
    view->peers[beat->from].agrees = agrees;
}

static void note_leases(epoch_view_t *view, const epoch_beat_t *beat)
{
    epoch_peer_t *peer = &view->peers[beat->from];
    if (beat->echo == 0)
        return;
    if (beat->decider == view->self)
        peer->acked_ns = later(peer->acked_ns, beat->echo);
    if (beat->decider == beat->from && epoch_decider(view) == beat->from) {
        uint64_t left = view->params.lease_ns < beat->lease_left_ns ? view->params.lease_ns : beat->lease_left_ns;
        view->lease_until_ns = later(view->lease_until_ns, beat->echo + left);
    }
}

/** @return whether it comes from a member that is to be listened to; a process that is none any more learns it. */
static bool is_heard(epoch_view_t *view, const epoch_beat_t *beat)
{
    uint64_t slot = view->set[beat->from];
    if (slot == (beat->who | EPOCH_MEMBER))
        return true;
    if (slot == beat->who)
        view->peers[beat->from].due = true;
    return false;
}

void epoch_receive(epoch_view_t *view, const epoch_beat_t *beat, uint64_t now)
{
    if (view->expelled || beat->from == view->self || beat->from >= beat->slots || beat->slots > view->capacity)
        return;
    epoch_peer_t *peer = &view->peers[beat->from];
    if (view->set[beat->from] == (beat->who | EPOCH_MEMBER) && view->verdicts[beat->from] == EPOCH_DEAD)
        return; /* see epoch.h */
    if (beat->number > view->number && beat->set[beat->from] == (beat->who | EPOCH_MEMBER))
        adopt(view, beat->number, beat->set, beat->slots, now);
    if (view->expelled || !is_heard(view, beat))
        return;
    peer->heard_ns = later(peer->heard_ns, now);
    peer->stamp = later(peer->stamp, beat->stamp);
    peer->number = beat->number > peer->number ? beat->number : peer->number;
    if (view->verdicts[beat->from] == EPOCH_SILENT)
        view->verdicts[beat->from] = EPOCH_WELL;
    if (beat->flags & EPOCH_ASK || beat->number < view->number)
        peer->due = true;
    note_leases(view, beat);
    if (beat->number != view->number)
        return;
    note_verdicts(view, beat, now);
    vote(view, beat, now);
    count_vote(view, beat, now);
}

void epoch_failed(epoch_view_t *view, uint32_t slot, bool certain, uint64_t now)
{
    if (slot >= view->slots || slot == view->self)
        return;
    bool fresh = view->peers[slot].watched && now < view->peers[slot].heard_ns + view->params.suspect_ns;
    epoch_verdict_t verdict =
        !view->params.beat_ns || ((certain || fresh) && !epoch_fenced(view, now)) ? EPOCH_DEAD : EPOCH_FAILED;
    view->peers[slot].ghost = false;
    if (!epoch_member(view, slot) || view->verdicts[slot] >= verdict)
        return;
    view->verdicts[slot] = (uint8_t)verdict;
    view->peers[slot].failed_ns = now;
    for (uint32_t r = 0; r < view->slots; r++) { /* they must say so, too */
        view->peers[r].agrees = false;
        view->peers[r].due |= is_other(view, r) && are_near(view, r);
    }
}

/** Whether a member has answered what was sent after @p since. Without heartbeats its end would be known by then. */
static bool is_well_since(const epoch_view_t *view, uint32_t slot, uint64_t since, uint64_t now)
{
    if (slot == view->self)
        return true;
    if (view->verdicts[slot] != EPOCH_WELL)
        return false;
    return view->params.beat_ns ? view->peers[slot].acked_ns > since : now >= since + 2 * view->params.retry_ns;
}

uint32_t epoch_slot(const epoch_view_t *view, const bool *kin, uint64_t since, uint64_t now)
{
    uint32_t dead = EPOCH_NO_SLOT;
    bool doubt = false;
    for (uint32_t r = 0; r < view->slots; r++) {
        bool member = epoch_member(view, r);
        if (!member && kin[r])
            return r;
        if (!member)
            dead = dead == EPOCH_NO_SLOT ? r : dead;
        else if (kin[r])
            doubt |= !is_well_since(view, r, since, now);
    }
    if (doubt)
        return EPOCH_LATER;
    return view->slots < view->capacity ? view->slots : dead;
}

void epoch_join(epoch_view_t *view, uint32_t slot, uint64_t who)
{
    if (slot > view->slots || slot >= view->capacity)
        return; /* no gaps */
    view->join_slot = slot;
    view->join_who = who;
}

/* --------------------------------------------------------------------- time */

static void watch(epoch_view_t *view, uint64_t now)
{
    uint64_t suspect = view->params.suspect_ns;
    if (view->ticked_ns && now - view->ticked_ns > suspect / 2) /* it was this rank that stood still */
        view->grace_until_ns = later(view->grace_until_ns, now + suspect / 2);
    view->ticked_ns = now;
    for (uint32_t r = 0; r < view->slots; r++) {
        epoch_peer_t *peer = &view->peers[r];
        if (!is_other(view, r))
            continue;
        bool watched = are_near(view, r);
        if (watched && !peer->watched)
            peer->heard_ns = later(peer->heard_ns, now);
        peer->watched = watched;
        if (watched && view->verdicts[r] == EPOCH_WELL && now > view->grace_until_ns && now >= peer->heard_ns + suspect)
            view->verdicts[r] = EPOCH_SILENT;
    }
}

static int by_time(const void *a, const void *b)
{
    const epoch_support_t *left = a, *right = b;
    return left->acked_ns < right->acked_ns ? 1 : left->acked_ns > right->acked_ns ? -1 : 0;
}

/** As decider: the lease counts from the latest time that a quorum of followers is known to have heard of. */
static void renew(epoch_view_t *view, uint64_t now)
{
    uint32_t count = 0, all = 0, sum = 0;
    uint64_t living = now, since = 0; /* the earliest of all that live, and of the best quorum */
    bool lowest = true;
    if (epoch_decider(view) != view->self)
        return;
    for (uint32_t r = 0; r < view->slots; r++) {
        if (!epoch_member(view, r))
            continue;
        uint64_t acked = r == view->self ? now : view->peers[r].acked_ns;
        view->support[count] = (epoch_support_t){acked, weight(&lowest)};
        all += view->support[count++].weight;
        if (r != view->self && view->verdicts[r] != EPOCH_DEAD && !(view->peers[r].agrees && acked >= living))
            living = view->peers[r].agrees ? acked : 0;
    }
    qsort(view->support, count, sizeof *view->support, by_time);
    for (uint32_t i = 0; i < count && 2 * sum <= all; i++) {
        sum += view->support[i].weight;
        since = view->support[i].acked_ns;
    }
    since = later(since, living);
    if (since > 0)
        view->lease_until_ns = later(view->lease_until_ns, since + view->params.lease_ns);
}

/** Whether a peer owes an answer. */
static bool owes(const epoch_view_t *view, uint32_t slot)
{
    if (!is_other(view, slot) || view->verdicts[slot] == EPOCH_DEAD)
        return false;
    uint32_t decider = epoch_decider(view);
    if (decider == view->self)
        return view->peers[slot].number < view->number || (view->phase != EPOCH_IDLE && !view->peers[slot].vote);
    if (slot != decider || view->params.beat_ns)
        return false;
    for (uint32_t r = 0; r < view->slots; r++) {
        if (is_other(view, r) && view->verdicts[r] >= EPOCH_FAILED)
            return true; /* the decider is to take it out */
    }
    return false;
}

bool epoch_busy(const epoch_view_t *view)
{
    for (uint32_t r = 0; r < view->slots && !view->expelled; r++) {
        if (owes(view, r) || (is_other(view, r) && view->verdicts[r] >= EPOCH_FAILED))
            return true;
    }
    return view->join_who != 0 && !view->expelled;
}

static void mark_due(epoch_view_t *view, uint64_t now)
{
    for (uint32_t r = 0; r < view->slots; r++) {
        epoch_peer_t *peer = &view->peers[r];
        bool beats = view->params.beat_ns && r != view->self && (epoch_member(view, r) || peer->ghost) &&
                     view->verdicts[r] != EPOCH_DEAD && are_near(view, r);
        if ((beats && now >= peer->sent_ns + view->params.beat_ns) ||
            (owes(view, r) && now >= peer->sent_ns + view->params.retry_ns))
            peer->due = true;
    }
}

/**
 * A fenced rank whose links to the others have failed will not hear of them again: they may have gone on without it,
 * and it cannot find out.
 */
static bool is_stranded(const epoch_view_t *view, uint64_t now)
{
    uint32_t all = 0, left = 0;
    bool lowest = true;
    if (!epoch_fenced(view, now))
        return false;
    for (uint32_t r = 0; r < view->slots; r++) {
        if (!epoch_member(view, r))
            continue;
        uint32_t weighs = weight(&lowest);
        all += weighs;
        left += r == view->self || view->verdicts[r] < EPOCH_FAILED ? weighs : 0;
    }
    return 2 * left <= all;
}

void epoch_tick(epoch_view_t *view, uint64_t now)
{
    if (view->expelled)
        return;
    if (view->params.beat_ns) {
        if (view->params.suspect_ns)
            watch(view, now);
        renew(view, now);
        view->expelled = is_stranded(view, now);
    }
    if (epoch_decider(view) == view->self)
        propose(view, now);
    else if (view->phase != EPOCH_IDLE)
        give_up(view, now);
    mark_due(view, now);
}

void epoch_fill(epoch_view_t *view, uint32_t to, uint64_t now, epoch_beat_t *beat)
{
    epoch_peer_t *peer = &view->peers[to];
    bool fenced = epoch_fenced(view, now);
    uint32_t slots = view->slots, decider = epoch_decider(view);
    if (now < view->bound_until_ns && epoch_member(view, view->bound_to))
        decider = view->bound_to;
    if (view->phase == EPOCH_ACCEPT && !(view->value[to] & EPOCH_MEMBER))
        fenced = true; /* to one that is to go */
    while (slots < view->capacity && (view->value[slots] || view->accepted_set[slots]))
        slots++; /* somebody is offered a new slot */
    *beat = (epoch_beat_t){.from = view->self,
                           .slots = slots,
                           .number = view->number,
                           .decider = decider,
                           .phase = view->phase,
                           .flags = owes(view, to) ? EPOCH_ASK : 0,
                           .who = view->who,
                           .stamp = now,
                           .echo = peer->stamp,
                           .lease_left_ns = fenced || !view->params.beat_ns ? 0 : view->lease_until_ns - now,
                           .promised = view->promised,
                           .accepted = view->accepted,
                           .ballot = view->phase == EPOCH_IDLE ? 0 : view->ballot,
                           .set = view->set,
                           .verdicts = view->verdicts,
                           .accepted_set = view->accepted ? view->accepted_set : NULL,
                           .value = view->phase == EPOCH_ACCEPT ? view->value : NULL};
    peer->due = false;
    peer->sent_ns = now;
}
