/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "launch/metrics.h"

enum { CONNECTIONS = 16, TIMEOUT_SECONDS = 5 };

struct lode_metrics {
    struct MHD_Daemon *daemon;
    lode_metrics_source_t source;
    void *context;
};

/* --------------------------------------------------------------------- page */

/* Prometheus's text: HELP and TYPE before the samples of each name. */
static void metric(FILE *out, const lode_rank_stats_t *s, const char *name, const char *type, const char *help,
                   uint64_t value)
{
    fprintf(out, "# HELP lodemark_%s %s\n# TYPE lodemark_%s %s\nlodemark_%s{rank=\"%u\"} %" PRIu64 "\n", name, help,
            name, type, name, s->rank, value);
}

/* Label values may hold anything but these three as they are. */
static void print_label(FILE *out, const char *text)
{
    for (; *text; text++)
        if (*text == '\n')
            fputs("\\n", out);
        else
            fprintf(out, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
}

static void print_info(FILE *out, const lode_rank_stats_t *s)
{
    fprintf(out,
            "# HELP lodemark_info Version of this rank and the host it is on; always 1.\n# TYPE lodemark_info gauge\n"
            "lodemark_info{rank=\"%u\",version=\"%s\",host=\"",
            s->rank, lode_version());
    print_label(out, s->host);
    fprintf(out,
            "\"} 1\n# HELP lodemark_uptime_seconds Since this process joined.\n"
            "# TYPE lodemark_uptime_seconds gauge\nlodemark_uptime_seconds{rank=\"%u\"} %.3f\n",
            s->rank, (double)s->uptime_ns * 1e-9);
}

static void print_steps(FILE *out, const lode_rank_stats_t *s)
{
    const struct {
        const char *quantile;
        uint64_t ns;
    } rows[] = {{"0.5", s->step_p50_ns}, {"0.9", s->step_p90_ns}, {"0.99", s->step_p99_ns}, {"1", s->step_max_ns}};
    fprintf(out, "# HELP lodemark_step_seconds Duration of the latest steps (quantiles) and how many there have been.\n"
                 "# TYPE lodemark_step_seconds summary\n");
    for (size_t i = 0; s->steps && i < sizeof rows / sizeof *rows; i++)
        fprintf(out, "lodemark_step_seconds{rank=\"%u\",quantile=\"%s\"} %.9f\n", s->rank, rows[i].quantile,
                (double)rows[i].ns * 1e-9);
    fprintf(out, "lodemark_step_seconds_count{rank=\"%u\"} %" PRIu64 "\n", s->rank, s->steps);
}

static void print_page(FILE *out, const lode_rank_stats_t *s)
{
    print_info(out, s);
    metric(out, s, "epoch", "gauge", "Number of the membership that this rank lives in.", s->epoch);
    metric(out, s, "incarnation", "gauge", "Processes that have had this rank number, this one included.",
           s->incarnation);
    metric(out, s, "fenced", "gauge", "1 if this rank is cut off from the others and takes no changes.", s->fenced);
    metric(out, s, "filling", "gauge", "1 if this rank joined lately and is being filled.", s->filling);
    metric(out, s, "arena_bytes", "gauge", "Memory for pages that this rank owns.", s->arena_bytes);
    metric(out, s, "arena_used_bytes", "gauge", "Of it, taken.", s->arena_used_bytes);
    metric(out, s, "pages", "gauge", "Pages in this rank's arena.", s->pages);
    metric(out, s, "landmark_bytes", "gauge", "Landmarks of this rank's node, which its ranks share.",
           s->landmark_bytes);
    metric(out, s, "blocks", "gauge", "Live blocks of the whole service.", s->blocks);
    metric(out, s, "under_replicated_pages", "gauge",
           "Pages of the whole service with fewer living owners than asked for.", s->under_replicated_pages);
    metric(out, s, "lost_pages", "gauge", "Pages of the whole service without a living owner.", s->lost_pages);
    metric(out, s, "repaired_bytes_total", "counter", "Copied by this rank to restore or move replicas.",
           s->repaired_bytes);
    metric(out, s, "clients", "gauge", "Clients connected to this rank.", s->clients);
    metric(out, s, "steps_total", "counter", "Steps that succeeded on this rank.", s->steps);
    metric(out, s, "failed_steps_total", "counter", "Steps that failed on this rank.", s->failed_steps);
    metric(out, s, "fetched_bytes_total", "counter", "Records fetched from other ranks.", s->fetched_bytes);
    metric(out, s, "served_bytes_total", "counter", "Records served to other ranks.", s->served_bytes);
    if (s->device) {
        metric(out, s, "device_landmark_bytes", "gauge", "Landmarks in the memory of this rank's GPU.",
               s->device_landmark_bytes);
        metric(out, s, "device_cache_bytes", "gauge", "Cache of records in the memory of this rank's GPU.",
               s->device_cache_bytes);
        metric(out, s, "device_records_looked_total", "counter", "Records that steps looked up in the GPU's cache.",
               s->device_looked);
        metric(out, s, "device_records_hit_total", "counter", "Of those, found there.", s->device_hits);
    }
    print_steps(out, s);
}

char *lode_metrics_text(const lode_rank_stats_t *stats)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return NULL;
    print_page(out, stats);
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}

/* --------------------------------------------------------------------- HTTP */

static enum MHD_Result reply(struct MHD_Connection *connection, unsigned code, char *text, const char *type)
{
    struct MHD_Response *response =
        text ? MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE) : NULL;
    if (!response) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *upload, size_t *upload_bytes, void **state)
{
    static const char plain[] = "text/plain; charset=utf-8";
    lode_metrics_h metrics = context;
    lode_rank_stats_t stats = {0};
    (void)version, (void)upload, (void)state;
    if (*upload_bytes) { /* nobody has asked for it */
        *upload_bytes = 0;
        return MHD_YES;
    }
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return reply(connection, MHD_HTTP_METHOD_NOT_ALLOWED, strdup("GET only\n"), plain);
    if (strcmp(url, "/metrics") == 0) {
        metrics->source(metrics->context, &stats);
        return reply(connection, MHD_HTTP_OK, lode_metrics_text(&stats), "text/plain; version=0.0.4; charset=utf-8");
    }
    if (strcmp(url, "/healthz") == 0) {
        metrics->source(metrics->context, &stats);
        return reply(connection, stats.fenced ? MHD_HTTP_SERVICE_UNAVAILABLE : MHD_HTTP_OK,
                     strdup(stats.fenced ? "cut off from the other ranks\n" : "ok\n"), plain);
    }
    return reply(connection, MHD_HTTP_NOT_FOUND, strdup("/metrics or /healthz\n"), plain);
}

/* -------------------------------------------------------------- start, stop */

uint32_t lode_metrics_port(uint64_t port)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", NULL};
    uint64_t local = 0;
    for (const char *const *name = names; *name; name++) {
        const char *value = getenv(*name);
        if (value && lode_parse_count(value, &local) == LODE_OK)
            break;
    }
    return port && port + local <= 65535 ? (uint32_t)(port + local) : 0;
}

/* Signals are for the thread that runs the daemon; threads made here inherit that they are blocked. */
static struct MHD_Daemon *start_quietly(uint32_t port, lode_metrics_h metrics)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    struct MHD_Daemon *daemon =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD, (uint16_t)port, NULL, NULL, answer, metrics,
                         MHD_OPTION_SOCK_ADDR, &address, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                         MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_SECONDS, MHD_OPTION_END);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return daemon;
}

lode_status_t lode_metrics_start(uint32_t port, lode_metrics_source_t source, void *context, lode_metrics_h *metrics)
{
    if (!port) {
        *metrics = NULL;
        return LODE_OK;
    }
    lode_metrics_h made = calloc(1, sizeof *made);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the metrics page");
    made->source = source;
    made->context = context;
    made->daemon = start_quietly(port, made);
    if (!made->daemon) {
        free(made);
        return lode_fail(LODE_ERR_IO, "--metrics-port: 127.0.0.1:%u cannot be served: %s", port, strerror(errno));
    }
    *metrics = made;
    return LODE_OK;
}

void lode_metrics_stop(lode_metrics_h *metrics)
{
    if (!*metrics)
        return;
    MHD_stop_daemon((*metrics)->daemon);
    free(*metrics);
    *metrics = NULL;
}
