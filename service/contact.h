/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file contact.h
 * @brief How client and service find and know each other: contact file, token, addresses.
 */
#ifndef LODE_SERVICE_CONTACT_H
#define LODE_SERVICE_CONTACT_H

#include "base/base.h"
#include "service/session.h"

/** Where a rank takes clients. */
typedef struct service_contact {
    uint32_t rank;
    uint32_t port;
    char host[64];
    char address[64]; /**< numeric IPv4 */
} service_contact_t;

/** Write the contact file under another name and rename it, so that nobody reads half of it. */
lode_status_t service_contacts_write(const char *path, const service_contact_t *ranks, uint32_t count);
/** @param[out] ranks  of malloc, (count) with count ≥ 1 @return LODE_ERR_IO, LODE_ERR_FORMAT */
lode_status_t service_contacts_read(const char *path, service_contact_t **ranks, uint32_t *count);
/** "" as path: LODEMARK_CLUSTER. The file's path, or NULL. */
const char *service_contacts_path(const char *given);

typedef struct service_token {
    uint8_t bytes[SESSION_TOKEN_MAX];
    uint32_t length;
} service_token_t;

/**
 * The token: of @p file; else of LODEMARK_TOKEN_FILE; else of LODEMARK_TOKEN.
 * @param make  a file that is not there is made: 32 random bytes as hex, readable by its owner alone
 * @return LODE_ERR_REFUSED if none is said, LODE_ERR_IO, LODE_ERR_FORMAT (empty, or too long)
 */
lode_status_t service_token_get(const char *file, bool make, service_token_t *token);
/** In a time that does not depend on where they differ. */
bool service_token_equal(const service_token_t *token, const void *bytes, size_t length);

/**
 * Where to listen: "ADDRESS", "ADDRESS:PORT", or a network "10.77.0.0/24[:PORT]" in which this host has an address.
 * @param[out] bind       the address to listen at
 * @param[out] advertise  the address to tell clients: another one if it is 0.0.0.0
 */
lode_status_t service_address_parse(const char *text, char bind[64], char advertise[64], uint16_t *port);

#endif
