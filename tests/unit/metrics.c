/* SPDX-License-Identifier: Apache-2.0 */
/* The page for Prometheus: read by a parser of its text format that takes nothing amiss, and over HTTP. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launch/metrics.h"

TestSuite(metrics, .timeout = 60);

static const lode_rank_stats_t some = {.rank = 3,
                                       .alive = 1,
                                       .epoch = 7,
                                       .host = "a\"b\\c\nd",
                                       .uptime_ns = 1500000000,
                                       .arena_bytes = UINT64_C(1) << 40,
                                       .steps = 12,
                                       .failed_steps = 1,
                                       .step_p50_ns = 1000000,
                                       .step_p90_ns = 2000000,
                                       .step_p99_ns = 3000000,
                                       .step_max_ns = 4000000};

/* ------------------------------------------------------------------- parser */

typedef struct page {
    int names, samples;
    char name[64], type[16]; /* of the family that samples belong to */
    char seen[64][64];
    double found; /* value of the sample that begins with `wanted` */
    const char *wanted;
} page_t;

static size_t name_length(const char *text)
{
    size_t n = 0;
    while (isalpha((unsigned char)text[n]) || text[n] == '_' || text[n] == ':' ||
           (n && isdigit((unsigned char)text[n])))
        n++;
    return n;
}

/* {name="value",…} with \\, \" and \n escaped. @return what follows, NULL if it is none */
static const char *labels(const char *text)
{
    if (*text != '{')
        return text;
    do {
        text++;
        size_t n = name_length(text);
        if (!n || text[n] != '=' || text[n + 1] != '"')
            return NULL;
        for (text += n + 2; *text && *text != '"'; text++)
            if (*text == '\\' && !strchr("\\\"n", *++text))
                return NULL;
        if (*text++ != '"')
            return NULL;
    } while (*text == ',');
    return *text == '}' ? text + 1 : NULL;
}

static void begin_family(page_t *page, const char *line)
{
    char type_line[128];
    size_t n = name_length(line + 7);
    cr_assert(n > 0 && n < sizeof page->name && line[7 + n] == ' ' && line[8 + n], "no help text: %s", line);
    snprintf(page->name, sizeof page->name, "%.*s", (int)n, line + 7);
    for (int i = 0; i < page->names; i++)
        cr_assert(strcmp(page->seen[i], page->name) != 0, "%s comes twice", page->name);
    snprintf(page->seen[page->names++], sizeof page->seen[0], "%s", page->name);
    snprintf(type_line, sizeof type_line, "# TYPE %s ", page->name);
    page->type[0] = 0;
}

static void read_type(page_t *page, const char *line)
{
    size_t n = strlen(page->name);
    cr_assert(strncmp(line + 7, page->name, n) == 0 && line[7 + n] == ' ', "the type of another name: %s", line);
    snprintf(page->type, sizeof page->type, "%s", line + 8 + n);
    bool known = !strcmp(page->type, "gauge") || !strcmp(page->type, "counter") || !strcmp(page->type, "summary");
    cr_assert(known, "%s", line);
    bool total = strlen(page->name) > 6 && strcmp(page->name + strlen(page->name) - 6, "_total") == 0;
    cr_assert(total == !strcmp(page->type, "counter"), "counters alone end with _total: %s", page->name);
}

static void read_sample(page_t *page, const char *line)
{
    size_t n = name_length(line), family = strlen(page->name);
    bool own = strncmp(line, page->name, family) == 0 &&
               (n == family || (!strcmp(page->type, "summary") && !strncmp(line + family, "_count", n - family)));
    cr_assert(page->type[0] && own, "a sample that belongs to no name: %s", line);
    const char *at = labels(line + n);
    cr_assert(at && *at == ' ', "labels: %s", line);
    char *end;
    double value = strtod(at + 1, &end);
    cr_assert(end != at + 1 && !*end, "value: %s", line);
    if (page->wanted && strncmp(line, page->wanted, strlen(page->wanted)) == 0)
        page->found = value;
    page->samples++;
}

static page_t parse(const char *text, const char *wanted)
{
    page_t page = {.found = -1, .wanted = wanted};
    char line[512];
    cr_assert(text[0] && text[strlen(text) - 1] == 10, "the last line does not end");
    while (*text) {
        size_t n = strcspn(text, "\n");
        cr_assert(n < sizeof line);
        snprintf(line, sizeof line, "%.*s", (int)n, text);
        text += n + 1;
        if (strncmp(line, "# HELP ", 7) == 0)
            begin_family(&page, line);
        else if (strncmp(line, "# TYPE ", 7) == 0)
            read_type(&page, line);
        else
            read_sample(&page, line);
    }
    return page;
}

Test(metrics, page_is_what_prometheus_reads)
{
    static const struct {
        const char *sample;
        double value;
    } wanted[] = {{"lodemark_info{rank=\"3\",version=\"", 1},
                  {"lodemark_epoch{rank=\"3\"}", 7},
                  {"lodemark_uptime_seconds{rank=\"3\"}", 1.5},
                  {"lodemark_arena_bytes{rank=\"3\"}", 0x1p40},
                  {"lodemark_steps_total{rank=\"3\"}", 12},
                  {"lodemark_failed_steps_total{rank=\"3\"}", 1},
                  {"lodemark_step_seconds{rank=\"3\",quantile=\"0.99\"}", 0.003},
                  {"lodemark_step_seconds_count{rank=\"3\"}", 12}};
    char *text = lode_metrics_text(&some);
    cr_assert(text != NULL);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        page_t page = parse(text, wanted[i].sample);
        cr_assert(page.found == wanted[i].value, "%s is %g\n%s", wanted[i].sample, page.found, text);
        cr_assert(page.names == 20 && page.samples == 24, "%d names, %d samples", page.names, page.samples);
    }
    cr_assert(strstr(text, "host=\"a\\\"b\\\\c\\nd\"") != NULL);
    free(text);
}

Test(metrics, a_device_has_samples_of_its_own)
{
    lode_rank_stats_t with = some;
    with.device = 1;
    with.device_looked = 40;
    with.device_hits = 30;
    char *text = lode_metrics_text(&with);
    cr_assert(text != NULL);
    page_t page = parse(text, "lodemark_device_records_hit_total{rank=\"3\"}");
    cr_assert(page.found == 30 && page.names == 24 && page.samples == 28, "%g, %d names, %d samples", page.found,
              page.names, page.samples);
    free(text);
}

Test(metrics, no_steps_have_no_quantiles)
{
    lode_rank_stats_t none = {.rank = 0};
    char *text = lode_metrics_text(&none);
    page_t page = parse(text, "lodemark_step_seconds_count");
    cr_assert(page.found == 0 && strstr(text, "quantile=") == NULL);
    free(text);
}

/* --------------------------------------------------------------------- HTTP */

static void fill(void *context, lode_rank_stats_t *stats)
{
    *stats = some;
    stats->fenced = *(int *)context != 0;
}

/* A port that nobody has now. */
static uint32_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(bind(fd, (struct sockaddr *)&address, length) == 0);
    cr_assert(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
    close(fd);
    return ntohs(address.sin_port);
}

static const char *ask(uint32_t port, const char *request)
{
    static char text[16384];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    cr_assert(write(fd, request, strlen(request)) == (ssize_t)strlen(request));
    size_t used = 0;
    for (ssize_t n; (n = read(fd, text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)n;
    close(fd);
    text[used] = 0;
    return text;
}

#define REQUEST(method, path) method " " path " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

Test(metrics, http_serves_both_pages)
{
    int fenced = 0;
    uint32_t port = 0;
    lode_metrics_h metrics = NULL, second = NULL;
    for (int tries = 0; tries < 10 && !metrics; tries++) /* somebody may take the port first */
        (void)lode_metrics_start(port = free_port(), fill, &fenced, &metrics);
    cr_assert(metrics != NULL, "%s", lode_error_message());
    cr_assert(lode_metrics_start(port, fill, &fenced, &second) == LODE_ERR_IO);
    cr_assert(second == NULL && strstr(lode_error_message(), "in use") != NULL, "%s", lode_error_message());
    const char *page = ask(port, REQUEST("GET", "/metrics"));
    cr_assert(strncmp(page, "HTTP/1.1 200", 12) == 0 && strstr(page, "text/plain; version=0.0.4") != NULL, "%s", page);
    page_t parsed = parse(strstr(page, "\r\n\r\n") + 4, "lodemark_epoch");
    cr_assert(parsed.found == 7);
    cr_assert(strncmp(ask(port, REQUEST("GET", "/healthz")), "HTTP/1.1 200", 12) == 0);
    fenced = 1;
    cr_assert(strncmp(ask(port, REQUEST("GET", "/healthz")), "HTTP/1.1 503", 12) == 0);
    cr_assert(strncmp(ask(port, REQUEST("GET", "/")), "HTTP/1.1 404", 12) == 0);
    cr_assert(strncmp(ask(port, REQUEST("DELETE", "/metrics")), "HTTP/1.1 405", 12) == 0);
    lode_metrics_stop(&metrics);
    cr_assert(metrics == NULL);
    lode_metrics_stop(&metrics);
}

Test(metrics, port_of_a_rank)
{
    unsetenv("OMPI_COMM_WORLD_LOCAL_RANK");
    unsetenv("SLURM_LOCALID");
    cr_assert(lode_metrics_port(9464) == 9464);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "2", 1);
    cr_assert(lode_metrics_port(9464) == 9466);
    cr_assert(lode_metrics_port(0) == 0);
    lode_metrics_h metrics = (lode_metrics_h)&some;
    cr_assert(lode_metrics_start(0, fill, NULL, &metrics) == LODE_OK && metrics == NULL);
}
