/* SPDX-License-Identifier: Apache-2.0 */
/* In place of broadcast_nccl.c where nccl.h was not there to compile it. */
#include "cluster/broadcast.h"

static lode_status_t refuse(void)
{
    return lode_fail(LODE_ERR_UNSUPPORTED, "this build has no NCCL: nccl.h was not found");
}

lode_status_t lode_broadcast_library(uint32_t *version)
{
    (void)version;
    return refuse();
}

lode_status_t lode_broadcast_identify(lode_broadcast_id_t *id)
{
    (void)id;
    return refuse();
}

lode_status_t lode_broadcast_create(const lode_broadcast_id_t *id, uint32_t ranks, uint32_t rank,
                                    lode_broadcast_h *broadcast)
{
    (void)id, (void)ranks, (void)rank, (void)broadcast;
    return refuse();
}

lode_status_t lode_broadcast_poll(lode_broadcast_h broadcast, bool *ready)
{
    (void)broadcast, (void)ready;
    return refuse();
}

lode_status_t lode_broadcast_send(lode_broadcast_h broadcast, uint32_t root, void *buffer, size_t bytes, void *stream)
{
    (void)broadcast, (void)root, (void)buffer, (void)bytes, (void)stream;
    return refuse();
}

void lode_broadcast_abort(lode_broadcast_h *broadcast)
{
    *broadcast = NULL;
}
