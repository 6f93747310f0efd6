/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file replicate.h
 * @brief Landmarks from GPU to GPU by broadcasts, beside their way through the hosts.
 *
 * The node's store is the truth, and every rank's mirror of it on a GPU can be filled from it. Where every rank has a
 * GPU of its own, a rank that has published many tiles also broadcasts them: it reads them from its store once, and the
 * others' buses stay free. What comes in *rounds* lies in slots in device memory until the thread that steps takes it
 * into its mirror, between two steps or at the beginning of one; what nobody takes soon enough is overwritten, and
 * comes from the store.
 *
 * One thread a rank takes part in rounds, all ranks in the same order: the leader numbers them (cluster/rounds.h). At
 * the first thing that goes wrong (a member lost or come, a round that does not end, an error of NCCL or CUDA) the rank
 * aborts its communicator, says why, and does without from then on. No step and no append waits for a broadcast.
 *
 * NCCL itself has never run here: docs/operations.md.
 */
#ifndef LODE_ATTEND_REPLICATE_H
#define LODE_ATTEND_REPLICATE_H

#include "cluster/broadcast.h"
#include "kernels/device.h"

typedef struct lode_replica *lode_replica_h;
struct lode_cluster;
struct lode_block;

typedef struct lode_replica_params {
    lode_replication_t wish;
    const lode_device_ops_t *ops; /**< NULL: this rank has no GPU */
    lode_device_h device;         /**< borrowed until the destroy */
    const char *uuid;             /**< of the device */
    const char *why_not;          /**< without a GPU: why; may be NULL */
    uint32_t slots;               /**< 0: the default */
    size_t slot_bytes;            /**< 0: the default */
    size_t least_bytes;           /**< a publish of fewer bytes of new tiles is not worth a round; 0: the default */
    uint32_t deadline_ms;         /**< of a round; 0: the default */
    uint32_t connect_ms;          /**< 0: the default */
} lode_replica_params_t;

/** Whole tiles of a layer of a block, of all its heads, in device memory. */
typedef struct lode_replica_piece {
    uint64_t block;
    uint32_t layer;
    uint32_t heads;
    uint64_t first, end;  /**< landmarks; multiples of LODE_TILE */
    const uint8_t *tiles; /**< of head 0 from landmark `first` on, as in the store */
    size_t head_stride;   /**< bytes from one head's tiles to the next's */
    uint32_t slot;
} lode_replica_piece_t;

typedef struct lode_replica_stats {
    bool nccl;          /**< rounds are being made */
    char reason[192];   /**< why, or why not */
    uint64_t sent;      /**< rounds of which this rank was the root */
    uint64_t arrived;   /**< rounds, its own included */
    uint64_t bytes;     /**< of those */
    uint64_t taken;     /**< by the thread that steps */
    uint64_t overwrote; /**< not taken in time */
} lode_replica_stats_t;

/**
 * Collective over the ranks that MPI started; a process that joined later gets the host path. With LODE_REPLICATE_AUTO
 * what cannot be done is the reason for the host path; with LODE_REPLICATE_NCCL it is an error, on every rank.
 * @return ::LODE_ERR_INVALID (two ranks on one GPU), ::LODE_ERR_UNSUPPORTED, ::LODE_ERR_DEVICE, ::LODE_ERR_TIMEOUT
 */
lode_status_t lode_replica_create(struct lode_cluster *cluster, const lode_replica_params_t *params,
                                  lode_replica_h *replica);
/** Stop taking part, and tell the others; give the device's memory back. Before the device and the fabric go. */
void lode_replica_close(lode_replica_h replica);
/** Free what is left, after the fabric, whose handlers ask for it. NULL is fine. */
void lode_replica_destroy(lode_replica_h *replica);
/** Any thread. */
void lode_replica_stats(lode_replica_h replica, lode_replica_stats_t *stats);

/* ------------------------------------------------ the thread that steps and appends */

/**
 * The oldest piece that has come. Never waits, NULL gives none.
 * A mirror that has exactly the landmarks before `first` can append the piece by copies within the device; one that has
 * all up to `end` ignores it; one that lacks some before ignores it too.
 * @return whether there was one; it stays in place until it is given back, by one lode_replica_give_back() each
 */
bool lode_replica_next(lode_replica_h replica, lode_replica_piece_t *piece);
/** What reads the piece, if anything does, was enqueued on @p stream; NULL is the default stream, as CUDA has it. */
void lode_replica_give_back(lode_replica_h replica, const lode_replica_piece_t *piece, lode_device_stream_t stream);
/** After a layer of a block was published up to `tokens`: offer what is new to the others. It cannot fail. */
void lode_replica_offer(lode_replica_h replica, struct lode_block *block, uint32_t layer, uint64_t tokens);

/* ------------------------------------------------ the service thread */

lode_status_t lode_replica_serve(lode_replica_h replica, uint32_t from, const Lodemark__Call *call,
                                 Lodemark__Reply *reply);

#endif
