/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file plain_device.h
 * @brief A device of memory and streams alone, without kernels: what moves bytes can be tested with it.
 *
 * Streams are lazy: what is enqueued is done when somebody asks for an event or waits, so that what forgets to wait
 * sees poison. An operation may take several askings (plain_stream_push()).
 */
#ifndef LODE_TESTS_PLAIN_DEVICE_H
#define LODE_TESTS_PLAIN_DEVICE_H

#include "kernels/device.h"

extern const lode_device_ops_t plain_device;
/** Its one device. */
extern const lode_device_h plain_device_handle;
/** Allocations that are not freed. */
uint32_t plain_device_left(void);
/** From here on so many allocations succeed, then none; UINT32_MAX: all do. */
void plain_device_room(uint32_t allocations);
/** Enqueue what is asked until it says that it is over. */
__attribute__((visibility("default"))) void plain_stream_push(void *stream, bool (*poll)(void *), void *context);

#endif
