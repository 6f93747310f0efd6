/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark stat`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "launch/stat.h"

/* -------------------------------------------------------------------- table */

enum { CELL = 24, NAP_MS = 50 };

typedef struct column {
    const char *title;
    int keep; /* columns with a larger number go first where the terminal is too narrow */
    bool left;
    void (*cell)(const lode_rank_stats_t *stats, char *text);
} column_t;

#define COLUMN(name, format, ...)                                        \
    static void cell_##name(const lode_rank_stats_t *r, char text[CELL]) \
    {                                                                    \
        snprintf(text, CELL, format, __VA_ARGS__);                       \
    }
static const char *bytes_of(double bytes)
{
    static char text[LODE_TEXT_MAX];
    return lode_text_bytes(bytes, text);
}
static const char *time_of(uint64_t ns)
{
    static char text[LODE_TEXT_MAX];
    return lode_text_time((double)ns, text);
}
COLUMN(host, "%.20s", r->host)
COLUMN(epoch, "%u", r->epoch)
COLUMN(pages, "%" PRIu64, r->pages)
COLUMN(used, "%s", bytes_of((double)r->arena_used_bytes))
COLUMN(arena, "%s", bytes_of((double)r->arena_bytes))
COLUMN(landmarks, "%s", bytes_of((double)r->landmark_bytes))
COLUMN(under, "%" PRIu64, r->under_replicated_pages)
COLUMN(in, "%s", bytes_of(r->fetched_bytes_per_second))
COLUMN(out, "%s", bytes_of(r->served_bytes_per_second))
COLUMN(steps, "%.1f", r->steps_per_second)
COLUMN(p50, "%s", time_of(r->step_p50_ns))
COLUMN(p90, "%s", time_of(r->step_p90_ns))
COLUMN(p99, "%s", time_of(r->step_p99_ns))
COLUMN(most, "%s", time_of(r->step_max_ns))
COLUMN(failed, "%" PRIu64, r->failed_steps)
COLUMN(clients, "%" PRIu64, r->clients)

static const column_t columns[] = {
    {"host", 7, true, cell_host},         {"epoch", 5, false, cell_epoch}, {"pages", 3, false, cell_pages},
    {"used", 1, false, cell_used},        {"arena", 4, false, cell_arena}, {"landmarks", 2, false, cell_landmarks},
    {"under-repl", 1, false, cell_under}, {"in/s", 4, false, cell_in},     {"out/s", 4, false, cell_out},
    {"steps/s", 2, false, cell_steps},    {"p50", 3, false, cell_p50},     {"p90", 6, false, cell_p90},
    {"p99", 2, false, cell_p99},          {"max", 6, false, cell_most},    {"failed", 5, false, cell_failed},
    {"clients", 2, false, cell_clients},
};
enum { COLUMNS = sizeof columns / sizeof *columns, KEEP_MAX = 7 };

static int width_of_terminal(void)
{
    struct winsize size;
    if (!isatty(STDOUT_FILENO))
        return 0;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

static const char *state_of(const lode_stat_t *stat, uint32_t rank)
{
    const lode_rank_stats_t *r = &stat->rank[rank];
    return stat->mute[rank] ? "silent" : !r->alive ? "lost" : r->fenced ? "cut off" : r->filling ? "filling" : "alive";
}

/* Widths of the columns, and of all that are kept at most so important; 14 for rank and state. */
static int measure(const lode_stat_t *stat, int keep, int *widths)
{
    int all = 14;
    for (int c = 0; c < COLUMNS; c++) {
        char text[CELL];
        widths[c] = (int)strlen(columns[c].title);
        for (uint32_t rank = 0; rank <= stat->ranks; rank++) {
            columns[c].cell(rank < stat->ranks ? &stat->rank[rank] : &stat->total, text);
            int width = (int)strlen(text);
            widths[c] = width > widths[c] ? width : widths[c];
        }
        all += columns[c].keep <= keep ? widths[c] + 2 : 0;
    }
    return all;
}

static void print_row(const lode_rank_stats_t *stats, const char *name, const char *state, int keep, const int *widths)
{
    printf("%-5s  %-7s", name, state);
    for (int c = 0; c < COLUMNS; c++) {
        char text[CELL] = "";
        if (columns[c].keep > keep)
            continue;
        if (!stats)
            snprintf(text, sizeof text, "%s", columns[c].title);
        else
            columns[c].cell(stats, text);
        printf(columns[c].left ? "  %-*s" : "  %*s", widths[c], text);
    }
    printf("\n");
}

static void print_table(const lode_stat_t *stat)
{
    int widths[COLUMNS], keep = KEEP_MAX, room = width_of_terminal();
    while (measure(stat, keep, widths) > room && room && keep > 1)
        keep--;
    print_row(NULL, "rank", "state", keep, widths);
    for (uint32_t rank = 0; rank < stat->ranks; rank++) {
        char name[16];
        snprintf(name, sizeof name, "%u", rank);
        print_row(&stat->rank[rank], name, state_of(stat, rank), keep, widths);
    }
    print_row(&stat->total, "total", "", keep, widths);
    printf("%u of %u ranks alive, epoch %u, %" PRIu64 " block%s, %" PRIu64 " steps, %" PRIu64 " failed\n", stat->alive,
           stat->ranks, stat->epoch, stat->total.blocks, stat->total.blocks == 1 ? "" : "s", stat->total.steps,
           stat->total.failed_steps);
    if (keep < KEEP_MAX)
        printf("a wider terminal, or a pipe, shows more columns\n");
    if (stat->trouble[0])
        printf("degraded: %s\n", stat->trouble);
    if (stat->note[0])
        printf("note: %s\n", stat->note);
}

/* --------------------------------------------------------------------- JSON */

static json_t *counts_json(const lode_rank_stats_t *r)
{
    return json_pack("{s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:f s:f s:f}", "arena_bytes",
                     (json_int_t)r->arena_bytes, "arena_used_bytes", (json_int_t)r->arena_used_bytes, "pages",
                     (json_int_t)r->pages, "landmark_bytes", (json_int_t)r->landmark_bytes, "blocks",
                     (json_int_t)r->blocks, "under_replicated_pages", (json_int_t)r->under_replicated_pages,
                     "lost_pages", (json_int_t)r->lost_pages, "repaired_bytes", (json_int_t)r->repaired_bytes,
                     "clients", (json_int_t)r->clients, "steps", (json_int_t)r->steps, "failed_steps",
                     (json_int_t)r->failed_steps, "step_p50_ns", (json_int_t)r->step_p50_ns, "step_p90_ns",
                     (json_int_t)r->step_p90_ns, "step_p99_ns", (json_int_t)r->step_p99_ns, "step_max_ns",
                     (json_int_t)r->step_max_ns, "fetched_bytes", (json_int_t)r->fetched_bytes, "served_bytes",
                     (json_int_t)r->served_bytes, "steps_per_second", r->steps_per_second, "fetched_bytes_per_second",
                     r->fetched_bytes_per_second, "served_bytes_per_second", r->served_bytes_per_second);
}

static json_t *rank_json(const lode_stat_t *stat, uint32_t rank)
{
    const lode_rank_stats_t *r = &stat->rank[rank];
    json_t *object =
        json_pack("{s:i s:b s:s s:s s:i s:i s:b s:b s:f}", "rank", (int)rank, "alive", (int)r->alive, "state",
                  state_of(stat, rank), "host", r->host, "incarnation", (int)r->incarnation, "epoch", (int)r->epoch,
                  "fenced", (int)r->fenced, "filling", (int)r->filling, "uptime_seconds", (double)r->uptime_ns * 1e-9);
    json_t *counts = counts_json(r);
    if (object && counts)
        json_object_update(object, counts);
    json_decref(counts);
    if (object && r->device)
        json_object_set_new(object, "device",
                            json_pack("{s:I s:I s:I s:I}", "landmark_bytes", (json_int_t)r->device_landmark_bytes,
                                      "cache_bytes", (json_int_t)r->device_cache_bytes, "looked",
                                      (json_int_t)r->device_looked, "hits", (json_int_t)r->device_hits));
    return object;
}

static json_t *stat_json(const lode_stat_t *stat)
{
    json_t *ranks = json_array();
    for (uint32_t rank = 0; rank < stat->ranks; rank++)
        json_array_append_new(ranks, rank_json(stat, rank));
    return json_pack("{s:i s:i s:i s:s s:s s:s s:o s:o}", "ranks", (int)stat->ranks, "alive", (int)stat->alive, "epoch",
                     (int)stat->epoch, "health", stat->trouble[0] ? "degraded" : "healthy", "trouble", stat->trouble,
                     "note", stat->note, "rank", ranks, "total", counts_json(&stat->total));
}

/* One object a line while watching, so that a reader can take line after line. */
static lode_status_t print_line(json_t *object)
{
    if (!object)
        return lode_fail(LODE_ERR_INTERNAL, "the statistics could not be put into JSON");
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(object);
    return LODE_OK;
}

/* ------------------------------------------------------------------ command */

static lode_status_t show(lode_client_t *client, bool watching)
{
    lode_stat_t stat;
    lode_status_t status = LODE_OK;
    LODE_TRY(lode_stat_take(client, &stat));
    if (lode_options_flag(&client->options, "json")) {
        status = watching ? print_line(stat_json(&stat)) : lode_client_json("-", stat_json(&stat));
    } else {
        if (watching && isatty(STDOUT_FILENO))
            printf("\033[H\033[J");
        print_table(&stat);
    }
    fflush(stdout);
    lode_stat_free(&stat);
    return status;
}

/* Until a signal, or until nobody reads any more. */
static lode_status_t watch(lode_client_t *client, uint64_t seconds)
{
    lode_client_catch();
    for (;;) {
        uint64_t next = lode_now_ns() + seconds * UINT64_C(1000000000);
        LODE_TRY(show(client, true));
        while (!lode_client_caught() && lode_now_ns() < next)
            usleep(NAP_MS * 1000);
        if (lode_client_caught() || ferror(stdout))
            return LODE_OK;
        if (!isatty(STDOUT_FILENO) && !lode_options_flag(&client->options, "json"))
            printf("\n");
    }
}

static lode_status_t statistics(lode_client_t *client)
{
    LODE_TRY(lode_client_open(client));
    if (lode_options_get(&client->options, "watch"))
        return watch(client, lode_options_count(&client->options, "watch"));
    return show(client, false);
}

static const lode_option_t stat_options[] = {
    {"watch", NULL, LODE_OPTION_COUNT, NULL, 1, 86400, "print again every N seconds until interrupted; without N: 2"},
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object, with --watch one a line"},
    {NULL},
};

const lode_client_command_t lode_command_stat = {
    .name = "stat",
    .words = "",
    .doc = "What every rank says of itself, and the totals: pages and bytes used of its arena, landmarks of its node,\n"
           "pages with fewer owners than asked for, bytes fetched in and served out a second, steps a second and how\n"
           "long they took (latest steps), clients. Landmarks count once a host in the total, and its latencies are\n"
           "those of the slowest rank.",
    .options = stat_options,
    .bare_option = "watch",
    .bare_value = "2",
    .run = statistics,
};
