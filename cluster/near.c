/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank with a GPU has its memory, threads and network near to; and whether its records can land on the GPU. */
#include <string.h>

#include "cluster/fabric_inside.h"
#include "cluster/landing.h"

/* ---------------------------------------------------------------------- near */

static lode_status_t find_here(lode_fabric_h fabric)
{
    char address[16] = "";
    hwloc_topology_t topology;
    const lode_fabric_params_t *params = &fabric->params;
    if (!params->gpu)
        return LODE_OK;
    if (!params->gpu(params->context, fabric->local_rank, address))
        return params->near_or_fail ? lode_fail(LODE_ERR_UNSUPPORTED,
                                                "memory is to be near the GPU, and this rank has none that it can use")
                                    : LODE_OK;
    lode_status_t status = lode_affinity_load(&topology);
    if (status == LODE_OK) {
        status = lode_affinity_find(topology, address, &fabric->near);
        hwloc_topology_destroy(topology);
    }
    if (status == LODE_OK) {
        lode_info("%s", fabric->near.why);
        return LODE_OK;
    }
    if (params->near_or_fail)
        return lode_fail_within(status, "memory is to be near the GPU: ");
    snprintf(fabric->near.why, sizeof fabric->near.why, "%.170s", lode_error_message());
    lode_info("memory is not bound to a GPU's NUMA node: %s", fabric->near.why);
    return LODE_OK;
}

lode_status_t fabric_near_find(lode_fabric_h fabric)
{
    LODE_TRY(lode_fabric_worst(fabric, find_here(fabric)));
    /* One rank without an adapter could not be reached by those that use theirs alone. */
    int mine = fabric->near.adapter[0] != 0, all = 0;
    LODE_TRY(FABRIC_MPI(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, fabric->comm)));
    fabric->adapters = all;
    return LODE_OK;
}

const lode_affinity_t *lode_fabric_near(lode_fabric_h fabric)
{
    return &fabric->near;
}

/* -------------------------------------------------------------------- landing */

lode_status_t fabric_landing_choose(lode_fabric_h fabric)
{
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    LODE_TRY(FABRIC_UCX(ucp_context_query(fabric->context, &attributes)));
    lode_landing_facts_t facts = {.gpu = fabric->near.gpu[0] != 0,
                                  .ucx_cuda = (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0,
                                  .checked_there = LODE_LANDING_CHECKED_THERE};
    fabric->landing_device = lode_landing_choose(&facts, fabric->landing_reason);
    lode_debug("records land in %s: %s", fabric->landing_device ? "device memory" : "host memory",
               fabric->landing_reason);
    return LODE_OK;
}

const char *lode_fabric_landing_memory(lode_fabric_h fabric, const char **reason)
{
    *reason = fabric->landing_reason;
    return fabric->landing_device ? "device memory" : "host memory";
}
