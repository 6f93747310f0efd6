/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark ping` and `lodemark health`. */
#include <inttypes.h>
#include <stdlib.h>

#include "bench/job.h"
#include "launch/client.h"
#include "launch/stat.h"

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static lode_status_t measure(lode_client_t *client, uint64_t *times, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        LODE_TRY(lode_cluster_ping(client->cluster, &times[i]));
    qsort(times, count, sizeof *times, by_value);
    return LODE_OK;
}

static lode_status_t report_ping(lode_client_t *client, const uint64_t *times, uint64_t count)
{
    lode_cluster_info_t info;
    char least[LODE_TEXT_MAX], median[LODE_TEXT_MAX], most[LODE_TEXT_MAX];
    LODE_TRY(lode_cluster_query(client->cluster, &info));
    if (lode_options_flag(&client->options, "json"))
        return lode_client_json("-",
                                json_pack("{s:i s:I s:f s:f s:f}", "rank", (int)info.rank, "pings", (json_int_t)count,
                                          "min_us", (double)times[0] * 1e-3, "median_us",
                                          (double)times[count / 2] * 1e-3, "max_us", (double)times[count - 1] * 1e-3));
    printf("rank %u of %u: %" PRIu64 " round trip%s, min %s, median %s, max %s\n", info.rank, info.ranks, count,
           count > 1 ? "s" : "", lode_text_time((double)times[0], least),
           lode_text_time((double)times[count / 2], median), lode_text_time((double)times[count - 1], most));
    return LODE_OK;
}

static lode_status_t ping(lode_client_t *client)
{
    uint64_t count = lode_options_count(&client->options, "count"), *times = calloc(count, sizeof *times);
    if (!times)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %" PRIu64 " times", count);
    lode_status_t status = lode_client_open(client);
    if (status == LODE_OK)
        status = measure(client, times, count);
    if (status == LODE_OK)
        status = report_ping(client, times, count);
    free(times);
    return status;
}

static const lode_option_t ping_options[] = {
    {"count", "10", LODE_OPTION_COUNT, NULL, 1, 1000000, "round trips, also -n N"},
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object"},
    {NULL},
};

const lode_client_command_t lode_command_ping = {
    .name = "ping",
    .words = "",
    .doc = "Round trips to the rank that takes this client, in microseconds.",
    .options = ping_options,
    .short_option = "count",
    .run = ping,
};

/* ------------------------------------------------------------------- health */

static lode_status_t health(lode_client_t *client)
{
    lode_stat_t stat;
    LODE_TRY(lode_client_open(client));
    LODE_TRY(lode_stat_take(client, &stat));
    lode_status_t status = LODE_OK;
    const char *word = stat.trouble[0] ? "degraded" : "healthy";
    if (lode_options_flag(&client->options, "json"))
        status =
            lode_client_json("-", json_pack("{s:s s:s s:i s:i s:i}", "health", word, "trouble", stat.trouble, "ranks",
                                            (int)stat.ranks, "alive", (int)stat.alive, "epoch", (int)stat.epoch));
    else if (stat.trouble[0])
        printf("degraded: %s\n", stat.trouble);
    else
        printf("healthy: %u of %u ranks alive, epoch %u, %" PRIu64 " block%s, every page with all its owners%s%s\n",
               stat.alive, stat.ranks, stat.epoch, stat.total.blocks, stat.total.blocks == 1 ? "" : "s",
               stat.note[0] ? "; " : "", stat.note);
    client->exit = stat.trouble[0] ? LODE_EXIT_FAILED : LODE_EXIT_OK;
    lode_stat_free(&stat);
    return status;
}

static const lode_option_t health_options[] = {
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object"},
    {NULL},
};

const lode_client_command_t lode_command_health = {
    .name = "health",
    .words = "",
    .doc = "One line: healthy (exit code 0), or what is wrong and what to do about it (1), or that nobody\n"
           "answers (2, on standard error).",
    .options = health_options,
    .run = health,
    .exit_failed = LODE_EXIT_NO_ANSWER,
};
