/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/landing.h"

bool lode_landing_choose(const lode_landing_facts_t *facts, char reason[192])
{
    const char *why = !facts->gpu        ? "this rank has no GPU"
                      : !facts->ucx_cuda ? "this UCX was built without CUDA"
                      : !facts->checked_there
                          ? "UCX could write to the GPU, but records are checked by the host before they are used"
                          : "UCX writes to the GPU, and records are checked there";
    snprintf(reason, 192, "%s", why);
    return facts->gpu && facts->ucx_cuda && facts->checked_there;
}
