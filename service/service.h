/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file service.h
 * @brief A rank that serves clients: what lodemarkd runs.
 *
 * Two threads. The *front* owns the sockets: it accepts, asks for the token, reads requests, answers pings and sends
 * replies, also while the rank computes. The *engine*, the thread that calls service_run(), runs the requests one at a
 * time, in turns over the sessions, and tends the cluster in between. Clients of this host hand their steps over in
 * shared memory (mailbox.h), past the front.
 */
#ifndef LODE_SERVICE_H
#define LODE_SERVICE_H

#include "service/contact.h"

typedef struct service *service_h;

typedef struct service_params {
    lode_cluster_h cluster; /**< of lode_cluster_join(); stays the caller's, outlives the service */
    const char *bind;       /**< see service_address_parse() */
    uint32_t clients;       /**< most at once */
    uint64_t staging_bytes; /**< most memory for requests that are coming in, all clients together */
    uint32_t spin_us;       /**< how long the engine polls before it sleeps */
    service_token_t token;
} service_params_t;

/** Listen; nobody is taken in before service_open(). */
lode_status_t service_create(const service_params_t *params, service_h *service);
/** Where this rank listens. */
void service_contact(service_h service, service_contact_t *contact);
/** Take clients in from now on, telling them of all these ranks. @p ranks is copied. */
lode_status_t service_open(service_h service, const service_contact_t *ranks, uint32_t count);
/** Serve until service_stop(). @return why it ended otherwise: the other ranks went on without this one. */
lode_status_t service_run(service_h service);
/** Have service_run() return soon. Any thread, and signal handlers. */
void service_stop(service_h service);
/** Say goodbye to all clients, give back what they held, free. */
void service_destroy(service_h *service);

/* ---------------------------------------------------------- ranks that join */

/**
 * As a client of a rank, bring the card of a process that wants to become a rank, and its invitation back.
 * @param[out] invitation  of malloc
 */
lode_status_t service_admit(lode_cluster_h client, const void *card, size_t card_bytes, void **invitation,
                            size_t *invitation_bytes);
/** Tell ranks where this one takes clients. Those that do not answer are left out. */
void service_announce(const service_contact_t *ranks, uint32_t count, const service_token_t *token,
                      const service_contact_t *self);

#endif
