/* SPDX-License-Identifier: Apache-2.0 */
/* Whether there are broadcasts between GPUs. What makes them is broadcast_nccl.c, or broadcast_none.c. */
#include "cluster/broadcast.h"

#include <string.h>

lode_replication_t lode_replication_of(const char *text)
{
    return strcmp(text, "nccl") == 0   ? LODE_REPLICATE_NCCL
           : strcmp(text, "host") == 0 ? LODE_REPLICATE_HOST
                                       : LODE_REPLICATE_AUTO;
}

/* Two ranks of one GPU. */
static bool find_twins(const lode_broadcast_card_t *cards, uint32_t ranks, uint32_t *one, uint32_t *other)
{
    for (*one = 0; *one < ranks; ++*one)
        for (*other = *one + 1; *other < ranks; ++*other)
            if (strcmp(cards[*one].uuid, cards[*other].uuid) == 0)
                return true;
    return false;
}

/* Why not, if anything is in the way of ranks that would. */
static lode_status_t find_obstacle(const lode_broadcast_card_t *cards, uint32_t ranks, char reason[192])
{
    uint32_t one, other;
    for (uint32_t r = 0; r < ranks; r++)
        if (!cards[r].uuid[0] || !cards[r].version) {
            snprintf(reason, 192, "rank %u: %.150s", r, cards[r].why_not);
            return LODE_ERR_UNSUPPORTED;
        }
    for (uint32_t r = 1; r < ranks; r++)
        if (cards[r].version != cards[0].version) {
            snprintf(reason, 192, "rank %u has version %u of NCCL and rank 0 has %u", r, cards[r].version,
                     cards[0].version);
            return LODE_ERR_UNSUPPORTED;
        }
    if (find_twins(cards, ranks, &one, &other)) {
        snprintf(reason, 192, "ranks %u and %u share the GPU %.47s, and NCCL needs one for each rank", one, other,
                 cards[one].uuid);
        return LODE_ERR_INVALID;
    }
    return LODE_OK;
}

lode_status_t lode_broadcast_choose(const lode_broadcast_card_t *cards, uint32_t ranks, bool *nccl, char reason[192])
{
    uint32_t wants = ranks, refuses = ranks; /* the first of each */
    for (uint32_t r = ranks; r-- > 0;) {
        wants = cards[r].wish == LODE_REPLICATE_NCCL ? r : wants;
        refuses = cards[r].wish == LODE_REPLICATE_HOST ? r : refuses;
    }
    *nccl = false;
    if (refuses < ranks && wants < ranks)
        return lode_fail(LODE_ERR_INVALID,
                         "rank %u asks for replication by NCCL and rank %u for the host path; give all ranks the same",
                         wants, refuses);
    if (refuses < ranks) {
        snprintf(reason, 192, "rank %u asked for the host path", refuses);
        return LODE_OK;
    }
    lode_status_t status = find_obstacle(cards, ranks, reason);
    if (status != LODE_OK && wants < ranks)
        return lode_fail(status, "replication by NCCL was asked for: %s; or use --replication host", reason);
    if (status == LODE_OK && ranks == 1 && wants == ranks)
        snprintf(reason, 192, "there is one rank, and nobody to send to");
    else if (status == LODE_OK) {
        snprintf(reason, 192, "each of %u ranks has a GPU of its own, and NCCL %u", ranks, cards[0].version);
        *nccl = true;
    }
    return LODE_OK;
}
