/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting to a service, and what a client asks of its cluster. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "service/client_inside.h"

#define FIRST_NS UINT64_C(1000000000) /* how long a first connection is tried */

/* ------------------------------------------------------------------ cluster */

lode_status_t client_geometry(lode_cluster_h cluster, lode_geometry_t *geometry)
{
    Lodemark__GeometryAsk body = LODEMARK__GEOMETRY_ASK__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_GEOMETRY;
    ask.call.geometry = &body;
    if (!cluster->shaped) {
        lode_geometry_t made;
        LODE_TRY(client_ask(cluster, &ask));
        LODE_TRY(lode_geometry_unpack(ask.reply->geometry, &made));
        if (made.layers == 0 || made.head_dim == 0 || made.kv_head_end <= made.kv_head_begin || made.kv_heads == 0)
            return lode_fail(LODE_ERR_FORMAT, "the service says a geometry that makes no sense");
        cluster->geometry = made;
        cluster->shaped = true;
    }
    *geometry = cluster->geometry;
    return LODE_OK;
}

static lode_status_t client_shape(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    Lodemark__GeometrySet body;
    double rope[7];
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    lode_geometry_pack(geometry, rope, &body);
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_SHAPE;
    ask.call.shape = &body;
    return client_ask(cluster, &ask);
}

static lode_status_t client_query(lode_cluster_h cluster, lode_cluster_info_t *info)
{
    Lodemark__InfoAsk body = LODEMARK__INFO_ASK__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_INFO;
    ask.call.info = &body;
    LODE_TRY(client_ask(cluster, &ask));
    const Lodemark__ClusterInfo *said = ask.reply->info;
    if (!said || !session_text_is_fine(said->kernels) || !session_text_is_fine(said->path) ||
        !session_text_is_fine(said->path_reason))
        return lode_fail(LODE_ERR_FORMAT, "the service says nothing readable about itself");
    snprintf(cluster->kernels, sizeof cluster->kernels, "%s", said->kernels);
    snprintf(cluster->path, sizeof cluster->path, "%s", said->path);
    snprintf(cluster->path_reason, sizeof cluster->path_reason, "%s", said->path_reason);
    *info = (lode_cluster_info_t){.rank = said->rank,
                                  .ranks = said->ranks,
                                  .alive = said->alive,
                                  .nodes = said->nodes,
                                  .epoch = said->epoch,
                                  .arena_bytes = said->arena_bytes,
                                  .arena_used_bytes = said->arena_used_bytes,
                                  .landmark_bytes = said->landmark_bytes,
                                  .kernels = cluster->kernels,
                                  .device = "",
                                  .path = cluster->path,
                                  .path_reason = cluster->path_reason};
    return LODE_OK;
}

static lode_status_t client_rank_stats(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats)
{
    Lodemark__RankAsk body = LODEMARK__RANK_ASK__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    body.rank = rank;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_RANK_STATS;
    ask.call.rank_stats = &body;
    LODE_TRY(client_ask(cluster, &ask));
    return session_unpack_rank(ask.reply->rank, stats);
}

static lode_status_t client_tend(lode_cluster_h cluster, uint64_t budget_us, int *more)
{
    (void)cluster;
    (void)budget_us;
    *more = 0;
    return LODE_OK;
}

/* ------------------------------------------------------------ start and end */

void client_free(lode_cluster_h cluster)
{
    client_buffer_t *buffers[] = {&cluster->link.header, &cluster->link.payload, &cluster->request, &cluster->selection,
                                  &cluster->streams};
    client_close(cluster);
    if (cluster->spare.fd >= 0)
        close(cluster->spare.fd);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        free(buffers[i]->data);
    session_room_destroy(&cluster->room);
    free(cluster->contact_path);
    free(cluster->contacts);
    free(cluster);
}

static lode_status_t client_leave(lode_cluster_h *cluster)
{
    client_free(*cluster);
    *cluster = NULL;
    return LODE_OK;
}

static const lode_calls_t client_calls = {
    .leave = client_leave,
    .shape = client_shape,
    .geometry = client_geometry,
    .query = client_query,
    .ping = client_ping,
    .rank_stats = client_rank_stats,
    .tend = client_tend,
    .blocks = client_blocks,
    .block_create = client_block_create,
    .block_open = client_block_open,
    .block_append = client_block_append,
    .block_seal = client_block_seal,
    .block_crop = client_block_crop,
    .block_move = client_block_move,
    .block_drop = client_block_drop,
    .block_close = client_block_close,
    .block_tokens = client_block_tokens,
    .view_create = client_view_create,
    .view_destroy = client_view_destroy,
    .step = client_step,
    .step_enqueue = client_step_enqueue,
    .step_selection = client_step_selection,
};

/* Clients of one contact file begin with different ranks. */
lode_status_t client_create(const service_contact_t *ranks, uint32_t count, const service_token_t *token,
                            lode_cluster_h *out)
{
    lode_cluster_h cluster = calloc(1, sizeof *cluster);
    if (!cluster)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a cluster's handle");
    cluster->calls = &client_calls;
    cluster->link.fd = cluster->spare.fd = -1;
    cluster->token = *token;
    cluster->contacts = calloc(count, sizeof *cluster->contacts);
    cluster->contact_count = count;
    lode_status_t status = cluster->contacts ? session_room_create(&cluster->room, SESSION_UNPACK_BYTES)
                                             : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", count);
    if (status != LODE_OK) {
        client_free(cluster);
        return status;
    }
    for (uint32_t i = 0; i < count; i++)
        cluster->contacts[i].at = ranks[i];
    cluster->next_contact = (uint32_t)(lode_mix(lode_now_ns(), (uintptr_t)cluster) % count);
    *out = cluster;
    return LODE_OK;
}

static lode_status_t client_of_file(const char *contact, const char *token_file, lode_cluster_h *cluster)
{
    const char *path = service_contacts_path(contact);
    service_contact_t *ranks;
    service_token_t token;
    uint32_t count;
    if (!path)
        return lode_fail(LODE_ERR_INVALID, "which service? --cluster FILE or LODEMARK_CLUSTER names its contact file");
    LODE_TRY(service_contacts_read(path, &ranks, &count));
    lode_status_t status = service_token_get(token_file, false, &token);
    if (status == LODE_OK)
        status = client_create(ranks, count, &token, cluster);
    free(ranks);
    if (status == LODE_OK)
        (*cluster)->contact_path = realpath(path, NULL); /* the program may change its folder */
    return status;
}

static lode_status_t first_connection(lode_cluster_h cluster, const lode_options_t *options)
{
    const char *mailbox = lode_options_get(options, "mailbox");
    cluster->reconnect_ns = lode_options_count(options, "reconnect") * 1000000;
    cluster->hung_ns = lode_options_count(options, "hung") * 1000000;
    cluster->spin_ns = lode_options_count(options, "spin") * 1000;
    cluster->mailboxes = strcmp(mailbox, "no") != 0;
    LODE_TRY(client_connect(cluster, FIRST_NS));
    if (strcmp(mailbox, "yes") == 0 && !cluster->link.mailbox)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "rank %u is on another host, or its memory cannot be reached: there is no mailbox "
                         "(LODEMARK_MAILBOX=try does without)",
                         cluster->link.rank);
    return LODE_OK;
}

lode_status_t lode_cluster_connect(lode_config_h config, const char *contact, const char *token_file,
                                   lode_cluster_h *out)
{
    lode_cluster_h cluster;
    if (!config || !out)
        return lode_fail(LODE_ERR_INVALID, "lode_cluster_connect: a NULL argument");
    LODE_TRY(client_of_file(contact, token_file, &cluster));
    lode_status_t status = first_connection(cluster, lode_config_options(config));
    if (status != LODE_OK) {
        client_free(cluster);
        return status;
    }
    *out = cluster;
    return LODE_OK;
}
