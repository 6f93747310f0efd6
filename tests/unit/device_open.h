/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device_open.h
 * @brief How tests of device operations begin: with device 0, which the thread has entered, a stream, and a seed.
 */
#ifndef LODE_DEVICE_OPEN_H
#define LODE_DEVICE_OPEN_H

#include <criterion/criterion.h>
#include <stdlib.h>

#include "kernels/device.h"

/** @param[out] before  the thread's device until now, for device_close() */
static inline void device_open(const lode_device_ops_t **ops, lode_device_h *device, int *before,
                               lode_device_stream_t *stream)
{
    cr_assert(lode_device_get("cuda", ops) == LODE_OK);
    cr_assert((*ops)->open(0, device) == LODE_OK, "%s", (*ops)->error());
    cr_assert((*ops)->enter(*device, before) == LODE_OK, "%s", (*ops)->error());
    cr_assert((*ops)->stream_create(*device, stream) == LODE_OK, "%s", (*ops)->error());
}

static inline void device_close(const lode_device_ops_t *ops, lode_device_h *device, int before,
                                lode_device_stream_t stream)
{
    ops->stream_destroy(stream);
    ops->leave(*device, before);
    ops->close(device);
}

/** LODEMARK_TEST_SEED=n repeats a failing run. */
static inline uint64_t device_seed(uint64_t otherwise)
{
    const char *text = getenv("LODEMARK_TEST_SEED");
    return text ? strtoull(text, NULL, 10) : otherwise;
}

#endif
