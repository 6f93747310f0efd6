/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file landing.h
 * @brief Whether fetched records can land in a GPU's memory.
 *
 * UCX moves bytes into device memory where it was built with CUDA; that is asked of it at run time. It is not enough:
 * a record that was not checked (CRC over its bytes, its block, layer, head and token) must never be attended over, and
 * checks are the host's: fabric_fetch hands every landed item to its verify(). As long as no kernel checks records
 * where they land, they land in the host's memory, pinned so that the device reads them there.
 */
#ifndef LODE_CLUSTER_LANDING_H
#define LODE_CLUSTER_LANDING_H

#include "base/base.h"

/** No kernel of ours checks records on the device. */
enum { LODE_LANDING_CHECKED_THERE = 0 };

typedef struct lode_landing_facts {
    bool gpu;           /**< this rank has one */
    bool ucx_cuda;      /**< this UCX knows UCS_MEMORY_TYPE_CUDA */
    bool checked_there; /**< records can be checked in device memory */
} lode_landing_facts_t;

/** @param[out] reason  one sentence @return whether they land in device memory */
bool lode_landing_choose(const lode_landing_facts_t *facts, char reason[192]);

#endif
