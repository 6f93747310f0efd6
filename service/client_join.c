/* SPDX-License-Identifier: Apache-2.0 */
/* What a process that becomes a rank asks of others while it is none: it is a client then. */
#include <stdlib.h>
#include <string.h>

#include "service/client_inside.h"
#include "service/service.h"

#define ANSWER_NS UINT64_C(2000000000)

lode_status_t service_admit(lode_cluster_h client, const void *card, size_t card_bytes, void **invitation,
                            size_t *invitation_bytes)
{
    Lodemark__Admit body = LODEMARK__ADMIT__INIT;
    const struct client_part part = {card, card_bytes};
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .parts = &part, .count = 1, .again = true};
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_ADMIT;
    ask.call.admit = &body;
    LODE_TRY(client_ask(client, &ask));
    void *copy = malloc(ask.payload_bytes + 1);
    if (!copy)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for an invitation");
    memcpy(copy, ask.payload, ask.payload_bytes);
    *invitation = copy;
    *invitation_bytes = ask.payload_bytes;
    return LODE_OK;
}

static lode_status_t announce_to(const service_contact_t *rank, const service_token_t *token,
                                 const service_contact_t *self)
{
    Lodemark__Announce body = LODEMARK__ANNOUNCE__INIT;
    Lodemark__Contact contact = LODEMARK__CONTACT__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
    lode_cluster_h client;
    LODE_TRY(client_create(rank, 1, token, &client));
    contact.rank = self->rank;
    contact.port = self->port;
    contact.host = (char *)(uintptr_t)self->host;
    contact.address = (char *)(uintptr_t)self->address;
    body.contact = &contact;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_ANNOUNCE;
    ask.call.announce = &body;
    client->hung_ns = ANSWER_NS;
    lode_status_t status = client_connect(client, 0);
    if (status == LODE_OK)
        status = client_exchange(client, &ask);
    client_free(client);
    return status;
}

void service_announce(const service_contact_t *ranks, uint32_t count, const service_token_t *token,
                      const service_contact_t *self)
{
    for (uint32_t i = 0; i < count; i++)
        if (ranks[i].rank != self->rank && announce_to(&ranks[i], token, self) != LODE_OK)
            lode_debug("rank %u was not told of this one: %s", ranks[i].rank, lode_error_message());
}
