/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file broadcast.h
 * @brief Bytes from one GPU to all others: NCCL, loaded when it is needed, and whether it can be.
 *
 * A communicator is one thread's. None of its calls waits: NCCL's communicators are created non-blocking and polled, so
 * that a peer which has died or hangs leaves the caller free to abort. It must have the device of its buffers as its
 * current one when it creates a communicator.
 */
#ifndef LODE_CLUSTER_BROADCAST_H
#define LODE_CLUSTER_BROADCAST_H

#include "cluster/cluster.h"

/* ------------------------------------------------------------------ whether */

typedef enum lode_replication { LODE_REPLICATE_AUTO, LODE_REPLICATE_NCCL, LODE_REPLICATE_HOST } lode_replication_t;

/** "auto", "nccl", "host". */
lode_replication_t lode_replication_of(const char *text);

/** What every rank tells the others before they choose. */
typedef struct lode_broadcast_card {
    uint32_t wish;    /**< lode_replication_t */
    uint32_t version; /**< of NCCL, as it gives it; 0: there is none to use, and why_not says why */
    char uuid[48];    /**< of the rank's GPU; "": it has none, and why_not says why */
    char why_not[160];
} lode_broadcast_card_t;

/**
 * Whether ranks with these cards replicate by NCCL: only if each has a GPU of its own, and the same NCCL.
 * Pure: every rank comes to the same. With one rank there is nobody to send to, unless it is wished for.
 * @param[out] reason  one sentence
 * @return ::LODE_ERR_INVALID (NCCL was asked for and ranks share a GPU, or another rank asked for the host path),
 *         ::LODE_ERR_UNSUPPORTED (it was asked for and a rank lacks GPU or NCCL)
 */
lode_status_t lode_broadcast_choose(const lode_broadcast_card_t *cards, uint32_t ranks, bool *nccl, char reason[192]);

/* ------------------------------------------------------------------ library */

/** Version of the NCCL that can be loaded here. @return ::LODE_ERR_UNSUPPORTED: the message says what is missing. */
lode_status_t lode_broadcast_library(uint32_t *version);

/* ------------------------------------------------------------- communicators */

typedef struct lode_broadcast *lode_broadcast_h;
/** Names a communicator to be made; one rank makes it, all need it. */
typedef struct lode_broadcast_id {
    char bytes[128];
} lode_broadcast_id_t;

lode_status_t lode_broadcast_identify(lode_broadcast_id_t *id);
/** Begin to connect all ranks; poll until it is ready. */
lode_status_t lode_broadcast_create(const lode_broadcast_id_t *id, uint32_t ranks, uint32_t rank,
                                    lode_broadcast_h *broadcast);
/**
 * What became of the last call.
 * @param[out] ready  false: it is under way still, nothing else may be called but abort
 * @return ::LODE_ERR_DEVICE: a peer or this rank has failed; abort
 */
lode_status_t lode_broadcast_poll(lode_broadcast_h broadcast, bool *ready);
/**
 * Enqueue on @p stream (a cudaStream_t) that bytes at @p buffer, in device memory, become those of rank @p root. All
 * ranks, in the same order, with the same bytes and root. Poll until ready: only then is it in the stream.
 */
lode_status_t lode_broadcast_send(lode_broadcast_h broadcast, uint32_t root, void *buffer, size_t bytes, void *stream);
/** The end, whatever is under way: streams get free. Nulls the handle. */
void lode_broadcast_abort(lode_broadcast_h *broadcast);

#endif
