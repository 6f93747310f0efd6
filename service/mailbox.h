/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file mailbox.h
 * @brief Steps of clients on the rank's own host: one request and one reply at a time in shared memory.
 *
 * The rank makes both memory files: a mailbox a session, and one bell for all, which wakes the rank. They are sealed,
 * so that a client cannot shorten what the rank reads. Nothing in them is trusted: the rank copies a request out, then
 * checks it. Words that are slept on are futexes shared between processes.
 */
#ifndef LODE_SERVICE_MAILBOX_H
#define LODE_SERVICE_MAILBOX_H

#include <stdatomic.h>

#include "base/base.h"
#include "lodemark.pb-c.h"

/** Most of a packed message, and of a payload, that goes through a mailbox; more goes over the connection. */
#define MAILBOX_HEADER_BYTES (32u << 10)
#define MAILBOX_PAYLOAD_BYTES (1u << 20)

typedef struct mailbox_half {
    _Alignas(64) _Atomic uint32_t serial; /**< of the message; the writer sets it last. A futex. */
    _Atomic uint32_t sleeps;              /**< whoever waits for it sleeps, and wants to be woken */
    uint32_t header_bytes;
    uint32_t payload_bytes;
    _Alignas(64) uint8_t header[MAILBOX_HEADER_BYTES];
    _Alignas(64) uint8_t payload[MAILBOX_PAYLOAD_BYTES];
} mailbox_half_t;

typedef struct mailbox {
    mailbox_half_t request, reply;
    _Atomic uint32_t attached; /**< by the client, once it has mapped both files */
} mailbox_t;

typedef struct mailbox_bell {
    _Alignas(64) _Atomic uint32_t rung; /**< counts up. A futex. */
    _Atomic uint32_t sleeps;
    _Atomic uint32_t clients; /**< of the rank: with more than one, waiting means sleeping soon */
} mailbox_bell_t;

/** Make a sealed memory file and map it. Both are the caller's. */
lode_status_t mailbox_make(size_t bytes, int *fd, void **memory);
/** What another process of this host needs to open a file of this one. */
lode_status_t mailbox_describe(int fd, Lodemark__MemoryFile *file);
/** Map a file of another process. @return LODE_ERR_UNSUPPORTED where it cannot be reached, or is not what it says. */
lode_status_t mailbox_map(const Lodemark__MemoryFile *file, size_t bytes, void **memory);
/** A text that two processes share if and only if they run on one kernel. "" if unknown. */
void mailbox_host(char host[64]);

/** Sleep while *word is @p seen, at most so long. */
void mailbox_sleep(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns);
void mailbox_wake(_Atomic uint32_t *word);
/** Have the rank look. */
void mailbox_ring(mailbox_bell_t *bell);

#endif
