/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file epoch.h
 * @brief Who is a member: how ranks that see different things agree on numbered sets.
 *
 * Pure: no clock, no messages, no threads. Whoever drives it passes times in, sends what epoch_fill() gives to the
 * peers that are due, and hands in what arrives. Messages are whole states, so that any of them may be lost, come
 * twice or late.
 *
 * An epoch is a number and a set. The members of epoch n choose the set of n + 1 by voting as in Paxos (Lamport, "The
 * part-time parliament", 1998): the decider, the lowest member that is not lost, prepares a ballot, collects promises,
 * then votes for one set. A set is chosen by
 *   - more than half of the members, or half of them with the lowest among them; or
 *   - all members that live, where each of them holds all the others for dead *for certain*.
 * The second lets a rank outlive most of the others. It is as safe as that certainty, see epoch_failed(). From a peer
 * held for dead no message is taken any more, so none that is still on its way can tell of a choice that the survivors
 * do not know.
 *
 * Leases tell a rank that is cut off that the others may have gone on. A member follows one decider; the decider's
 * lease counts from the time that a quorum of followers is known to have heard it, a follower's from the time that
 * the decider is known to have heard it, and ends no later than the decider's. As long as a lease is no longer than
 * the silence after which ranks are suspected, a rank that is stopped or cut off is fenced before it is removed: a
 * voter holds to its vote for a lease, a vote counts for as long, and a decider waits for the leases that it gave to
 * those it takes out. (A newcomer begins with a lease that nobody gave it. And where everything fails all the time,
 * one simulated run in about a thousand removed a rank that still had a lease. Sets stay unique all the same.)
 */
#ifndef LODE_CLUSTER_EPOCH_H
#define LODE_CLUSTER_EPOCH_H

#include "base/base.h"

/**
 * A slot in a set: bit 63 whether its process is a member, 31 bits incarnation, 32 bits that tell two processes apart
 * that were offered the same slot. The process stays named when it is no member any more. 0: the slot was never used.
 */
#define EPOCH_MEMBER (UINT64_C(1) << 63)
#define EPOCH_SLOTS_MAX 4096u

static inline uint64_t epoch_who(uint32_t incarnation, uint32_t nonce)
{
    return (uint64_t)(incarnation & INT32_MAX) << 32 | nonce;
}
static inline uint32_t epoch_incarnation(uint64_t slot)
{
    return (uint32_t)(slot >> 32) & INT32_MAX;
}

/** What one rank thinks of another. */
typedef enum epoch_verdict {
    EPOCH_WELL,
    EPOCH_SILENT, /**< no heartbeat for too long; well again when one comes */
    EPOCH_FAILED, /**< its endpoint failed; it may live */
    EPOCH_DEAD    /**< its process is gone for certain */
} epoch_verdict_t;

typedef enum epoch_phase { EPOCH_IDLE, EPOCH_PREPARE, EPOCH_ACCEPT } epoch_phase_t;

/** The receiver is to answer. */
#define EPOCH_ASK 1u

typedef struct epoch_params {
    uint64_t beat_ns;    /**< 0: no heartbeats; every failed endpoint is a death, nobody is silent or fenced */
    uint64_t suspect_ns; /**< 0: silence is nothing */
    uint64_t lease_ns;
    uint64_t retry_ns; /**< until a question is asked again */
    uint64_t grace_ns; /**< for ranks that start */
} epoch_params_t;

/** A message: the sender's whole state. Arrays are (slots), borrowed. */
typedef struct epoch_beat {
    uint32_t from, slots, number, decider, phase, flags;
    uint64_t who;
    uint64_t stamp; /**< the sender's clock */
    uint64_t echo;  /**< stamp of the last message it had from the receiver, 0: none */
    uint64_t lease_left_ns;
    uint64_t promised, accepted, ballot;
    const uint64_t *set;
    const uint8_t *verdicts;
    const uint64_t *accepted_set; /**< NULL: accepted is 0 */
    const uint64_t *value;        /**< what the ballot is about; NULL unless phase is EPOCH_ACCEPT */
} epoch_beat_t;

typedef struct epoch_peer {
    uint64_t heard_ns, failed_ns, sent_ns;
    uint64_t claimed_ns; /**< since when another member says that it failed; 0: none does */
    uint64_t stamp;      /**< of its last message */
    uint64_t acked_ns;   /**< our stamp that it is known to have seen while it followed us */
    uint32_t claimer;
    uint32_t number;   /**< its epoch, as far as known */
    uint64_t voted_ns; /**< our question that its vote answers */
    bool watched, vote;
    bool agrees; /**< holds for dead all that we do */
    bool ghost;  /**< was removed, perhaps lives and does not know it */
    bool due;    /**< to be sent a message */
} epoch_peer_t;

typedef struct epoch_support {
    uint64_t acked_ns;
    uint32_t weight;
} epoch_support_t;

typedef struct epoch_view {
    epoch_params_t params;
    uint32_t self, capacity;
    uint32_t slots; /**< in use: the last that is not 0, and those before */
    uint64_t who;
    uint32_t number;
    bool expelled;
    uint64_t *set;          /**< (capacity) */
    uint8_t *verdicts;      /**< (capacity) epoch_verdict_t of members */
    epoch_peer_t *peers;    /**< (capacity) */
    uint64_t promised;      /**< voter: no lower ballot is taken */
    uint64_t accepted;      /**< voter: ballot of accepted_set; 0: none */
    uint64_t *accepted_set; /**< (capacity) */
    epoch_phase_t phase;    /**< proposer */
    uint64_t ballot, seen, best, begin_ns;
    uint64_t release_ns; /**< when the last lease of those that are to go has ended */
    uint32_t bound_to;   /**< voter: whom it gave its vote, and follows until then */
    uint64_t bound_until_ns;
    uint64_t *value; /**< (capacity) */
    uint32_t join_slot;
    uint64_t join_who; /**< 0: nobody wants in */
    uint64_t lease_until_ns, grace_until_ns, ticked_ns;
    epoch_support_t *support; /**< (capacity) scratch */
} epoch_view_t;

lode_status_t epoch_create(epoch_view_t *view, const epoch_params_t *params, uint32_t capacity);
void epoch_destroy(epoch_view_t *view);
/** Begin as @p self, a member of this set. */
void epoch_begin(epoch_view_t *view, uint32_t self, uint32_t number, const uint64_t *set, uint32_t slots, uint64_t now);
/** A message came. Its arrays may point anywhere but into the view. */
void epoch_receive(epoch_view_t *view, const epoch_beat_t *beat, uint64_t now);
/**
 * An endpoint to a member failed. @p certain: in a way that only the end of its process brings about. So it is taken
 * too if its heartbeats had come until then: a network that fails takes longer than suspect_ms to make a connection
 * fail, the kernel of a process that ended does it at once.
 */
void epoch_failed(epoch_view_t *view, uint32_t slot, bool certain, uint64_t now);
#define EPOCH_NO_SLOT UINT32_MAX
#define EPOCH_LATER (UINT32_MAX - 1)
/**
 * Decider: the slot for a process that asked for one at @p since: a dead one of its kin, a new one, any dead one.
 * EPOCH_LATER: one of its kin is a member still, and may be the one in whose place it came, which ended a moment ago:
 * it is held for lost, or has not answered since. @param kin  (capacity) whether a slot is, or was, of its failure
 * domain
 */
uint32_t epoch_slot(const epoch_view_t *view, const bool *kin, uint64_t since, uint64_t now);
/** Decider: have a process made a member in a slot that no living member has. Forgotten with the next epoch. */
void epoch_join(epoch_view_t *view, uint32_t slot, uint64_t who);
/** Time passes: silence, ballots, leases; marks the peers that are due. */
void epoch_tick(epoch_view_t *view, uint64_t now);
/** The message for a peer, who is not due then. Borrows the view's arrays until its next change. */
void epoch_fill(epoch_view_t *view, uint32_t to, uint64_t now, epoch_beat_t *beat);

bool epoch_member(const epoch_view_t *view, uint32_t slot);
/** Lowest member that is not lost, as this one sees it. */
uint32_t epoch_decider(const epoch_view_t *view);
bool epoch_fenced(const epoch_view_t *view, uint64_t now);
/** Whether something waits for answers, so that time must be told of soon also without heartbeats. */
bool epoch_busy(const epoch_view_t *view);

/* ------------------------------------------------------------- on the wire */

/** Fixed part; then set, accepted_set and value as they are there, verdicts, and cards, which are the caller's. */
typedef struct epoch_wire {
    uint32_t version, from, slots, number, decider, phase, flags, parts, cards, zero;
    uint64_t who, stamp, echo, lease_left_ns, promised, accepted, ballot;
} epoch_wire_t;

/** Room for the arrays of a message, each (capacity). */
typedef struct epoch_arrays {
    uint64_t *set, *accepted_set, *value;
    uint8_t *verdicts;
} epoch_arrays_t;

/** Bytes of a message's arrays. */
size_t epoch_wire_bytes(const epoch_beat_t *beat);
void epoch_pack(const epoch_beat_t *beat, uint32_t cards, epoch_wire_t *wire, uint8_t *data);
/**
 * @param[out] arrays  what the message says; beat points into them
 * @return bytes of data taken; 0: this is no message for so many slots
 */
size_t epoch_unpack(const void *header, size_t header_bytes, const uint8_t *data, size_t bytes, uint32_t capacity,
                    const epoch_arrays_t *arrays, epoch_beat_t *beat, uint32_t *cards);

#endif
