/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file affinity.h
 * @brief What of a machine is near a GPU: its NUMA node, that node's cores, a network adapter. Pure, over a topology.
 */
#ifndef LODE_CLUSTER_AFFINITY_H
#define LODE_CLUSTER_AFFINITY_H

#include <hwloc.h>

#include "base/base.h"

typedef struct lode_affinity {
    char gpu[16];     /**< PCI address, "0000:17:00.0" */
    int node;         /**< NUMA node by the system's number; −1: not known, or the machine has but one */
    char cores[256];  /**< of that node, as hwloc writes sets; "": not known */
    char adapter[40]; /**< as UCX names it, "mlx5_0:1"; "": none, or more than one is as near */
    char why[176];    /**< one sentence about node and adapter */
} lode_affinity_t;

/**
 * A topology with PCI devices. The caller destroys it.
 * @return ::LODE_ERR_UNSUPPORTED (hwloc cannot read this machine)
 */
lode_status_t lode_affinity_load(hwloc_topology_t *topology);
/**
 * What is near the GPU at this PCI address. An adapter is only named if it is InfiniBand or RoCE with a port that is
 * up, on the GPU's own NUMA node, and the only such there, or the only one behind the same PCI bridge.
 * @return ::LODE_ERR_NOT_FOUND (no such device here; containers may hide it), ::LODE_ERR_INVALID (no PCI address)
 */
lode_status_t lode_affinity_find(hwloc_topology_t topology, const char *gpu, lode_affinity_t *affinity);
/** The i-th NVIDIA GPU that the topology shows. @return false: there are no more */
bool lode_affinity_gpu(hwloc_topology_t topology, uint32_t i, char gpu[16]);

#endif
