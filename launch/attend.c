/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark attend`: a capture's queries against a block of the service, beside dense attention in double. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/job.h"
#include "bench/options.h"
#include "launch/attend.h"

/* -------------------------------------------------------------------- asked */

/* "3": passes; "60s", "5m", "1h": as long. */
static lode_status_t read_loop(const char *text, lode_attend_t *a)
{
    static const struct {
        char unit;
        uint64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}};
    char digits[24];
    uint64_t number, seconds = 0;
    size_t length = strlen(text);
    snprintf(digits, sizeof digits, "%s", text);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (length && length < sizeof digits && text[length - 1] == units[i].unit) {
            seconds = units[i].seconds;
            digits[length - 1] = 0;
        }
    if (lode_parse_count(digits, &number) != LODE_OK || !number || number > 100000000)
        return lode_fail(LODE_ERR_INVALID, "--loop \"%s\" is neither a number of passes, like 3, nor a time, like 60s",
                         text);
    a->passes = seconds ? 0 : number;
    a->loop_ns = number * seconds * 1000000000u;
    return LODE_OK;
}

static lode_status_t read_wish(lode_attend_t *a)
{
    const lode_options_t *o = &a->client->options;
    a->capture = a->client->words[0];
    a->name = lode_options_get(o, "block");
    a->json = lode_options_get(o, "json");
    if (!a->name)
        return lode_fail(LODE_ERR_INVALID, "--block NAME is needed: which block holds the capture's keys and values?");
    a->policy =
        (lode_policy_t){.select = LODE_SELECT_LANDMARK,
                        .merge = strcmp(lode_options_get(o, "merge"), "max") == 0 ? LODE_MERGE_MAX : LODE_MERGE_MEAN,
                        .budget_share = lode_options_share(o, "budget"),
                        .sinks = (uint32_t)lode_options_count(o, "sinks"),
                        .window = (uint32_t)lode_options_count(o, "window"),
                        .lost = strcmp(lode_options_get(o, "on-lost"), "skip") == 0 ? LODE_LOST_SKIP : LODE_LOST_FAIL};
    a->check_steps = lode_options_get(o, "check-steps") ? lode_options_count(o, "check-steps") : UINT64_MAX;
    LODE_TRY(read_loop(lode_options_get(o, "loop"), a));
    return a->json && strcmp(a->json, "-") != 0 ? lode_job_check_output(a->json) : LODE_OK;
}

/* --------------------------------------------------------------------- fits */

/* A step's landmarks are those of its blocks: another kind can be asked for only by putting the block again. */
static lode_status_t check_policy(lode_attend_t *a, const lode_block_entry_t *entry)
{
    const char *asked = lode_options_get(&a->client->options, "policy");
    lode_landmark_spec_t spec = entry->landmark;
    char own[LODE_TEXT_MAX];
    bool dense = false;
    lode_text_landmark(&entry->landmark, own);
    if (asked)
        LODE_TRY(lode_bench_policy(asked, &dense, &spec));
    if (dense) {
        a->policy.select = LODE_SELECT_DENSE;
        snprintf(a->policy_text, sizeof a->policy_text, "dense");
        return LODE_OK;
    }
    if (spec.codec != entry->landmark.codec || spec.bits != entry->landmark.bits ||
        spec.chunk != entry->landmark.chunk || spec.centre != entry->landmark.centre)
        return lode_fail(LODE_ERR_INVALID,
                         "--policy %s: block \"%s\" has landmarks \"%s\"; ask with those, with dense, or put it again",
                         asked, entry->name, own);
    snprintf(a->policy_text, sizeof a->policy_text, "%s", own);
    return LODE_OK;
}

static lode_status_t check_geometry(lode_attend_t *a)
{
    const lode_geometry_t *have = &a->source.geometry;
    lode_geometry_t is;
    LODE_TRY(lode_cluster_geometry(a->client->cluster, &is));
    if (have->layers == is.layers && have->query_heads == is.query_heads && have->kv_heads == is.kv_heads &&
        have->head_dim == is.head_dim && have->rope.theta == is.rope.theta && is.rope.scaling == LODE_ROPE_PLAIN)
        return LODE_OK;
    return lode_fail(LODE_ERR_GEOMETRY,
                     "capture %s has %u layers, %u query and %u KV heads of %u, rope base %g; the service has %u, %u, "
                     "%u, %u, %g",
                     a->capture, have->layers, have->query_heads, have->kv_heads, have->head_dim, have->rope.theta,
                     is.layers, is.query_heads, is.kv_heads, is.head_dim, is.rope.theta);
}

static lode_status_t check_block(lode_attend_t *a)
{
    lode_block_entry_t entry;
    uint64_t tokens = lode_source_total(&a->source);
    LODE_TRY(lode_client_find(a->client, a->name, &entry));
    LODE_TRY(check_geometry(a));
    if (!entry.sealed)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\" is open: somebody still puts it; ask when it is sealed",
                         a->name);
    if (entry.tokens != tokens)
        return lode_fail(LODE_ERR_INVALID,
                         "block \"%s\" has %" PRIu64 " tokens, capture %s has %" PRIu64
                         ": it is not the one that was put",
                         a->name, entry.tokens, a->capture, tokens);
    return check_policy(a, &entry);
}

/* --------------------------------------------------------------------- open */

static lode_status_t open_view(lode_attend_t *a)
{
    LODE_TRY(lode_block_open(a->client->cluster, a->name, &a->block));
    lode_view_params_t params = {.blocks = &a->block, .count = 1, .write_block = -1, .policy = a->policy};
    return lode_view_create(a->client->cluster, &params, &a->view);
}

static void plan_check(lode_attend_t *a, size_t call)
{
    uint64_t tokens = lode_source_total(&a->source);
    size_t query = call / a->source.geometry.layers;
    int64_t position = lode_source_position(&a->source, query);
    a->checks[call] = (lode_check_t){.layer = (uint32_t)(call % a->source.geometry.layers),
                                     .position = position,
                                     .q = a->q + call * lode_attend_row(a),
                                     .paged = (uint64_t)position + 1 < tokens ? (uint64_t)position + 1 : tokens};
    lode_source_query(&a->source, a->checks[call].layer, query, a->q + call * lode_attend_row(a));
}

static lode_status_t take_room(lode_attend_t *a)
{
    size_t all = a->source.capture.queries * a->source.geometry.layers, row = lode_attend_row(a);
    uint64_t asked = lode_options_count(&a->client->options, "steps");
    a->calls = asked && asked < all ? asked : all;
    a->q = malloc(a->calls * row * sizeof *a->q);
    a->out = calloc(a->calls * row, sizeof *a->out);
    a->step_out = malloc(row * sizeof *a->step_out);
    a->kept = calloc(a->calls, sizeof *a->kept);
    a->checks = calloc(a->calls, sizeof *a->checks);
    a->client_ns = calloc(LODE_ATTEND_TIMES, sizeof *a->client_ns);
    a->rank_ns = calloc(LODE_ATTEND_TIMES, sizeof *a->rank_ns);
    if (!a->q || !a->out || !a->step_out || !a->kept || !a->checks || !a->client_ns || !a->rank_ns)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu steps", a->calls);
    for (size_t call = 0; call < a->calls; call++) {
        plan_check(a, call);
        LODE_TRY(lode_check_create(&a->source.geometry, &a->checks[call]));
    }
    return LODE_OK;
}

static lode_status_t prepare(lode_attend_t *a)
{
    LODE_TRY(read_wish(a));
    LODE_TRY(lode_source_capture(a->capture, &a->source));
    LODE_TRY(take_room(a));
    LODE_TRY(lode_client_open(a->client));
    LODE_TRY(check_block(a));
    return open_view(a);
}

/* ------------------------------------------------------------------ command */

static lode_status_t measure(lode_attend_t *a)
{
    LODE_TRY(lode_cluster_query(a->client->cluster, &a->before));
    LODE_TRY(lode_attend_run(a));
    a->after = a->before;
    if (lode_cluster_query(a->client->cluster, &a->after) != LODE_OK) /* the steps have said why */
        a->after.alive = 0;
    LODE_TRY(lode_attend_check(a));
    return lode_attend_report(a);
}

/* A step that failed is a failure of the command, as is an output that was not the same twice. */
static void judge(lode_attend_t *a)
{
    bool looped = a->loop_ns || a->passes > 1;
    if (a->failed_steps)
        fprintf(stderr, "lodemark: %" PRIu64 " of %" PRIu64 " steps failed%s, the first %s\n", a->failed_steps,
                a->steps, a->gave_up ? " (given up)" : "", a->first_failure);
    if (a->wrong_steps)
        fprintf(stderr, "lodemark: %" PRIu64 " steps gave other bits than the first time\n", a->wrong_steps);
    if (a->failed_steps || a->wrong_steps)
        a->client->exit = LODE_EXIT_FAILED;
    else if (lode_client_caught() && !looped)
        a->client->exit = LODE_EXIT_SIGNAL + lode_client_caught();
}

static void free_attend(lode_attend_t *a)
{
    if (a->view)
        lode_view_destroy(&a->view);
    if (a->block)
        lode_block_close(&a->block);
    for (size_t call = 0; a->checks && call < a->calls; call++)
        lode_check_free(&a->source.geometry, &a->checks[call]);
    free(a->q);
    free(a->out);
    free(a->step_out);
    free(a->kept);
    free(a->checks);
    free(a->client_ns);
    free(a->rank_ns);
    lode_source_close(&a->source);
}

static lode_status_t run_attend(lode_client_t *client)
{
    lode_attend_t a = {.client = client};
    char sentence[512];
    lode_client_catch();
    lode_status_t status = prepare(&a);
    if (status == LODE_OK)
        status = measure(&a);
    if (status == LODE_OK)
        judge(&a);
    snprintf(sentence, sizeof sentence, "%s", lode_error_message());
    free_attend(&a);
    return status == LODE_OK ? LODE_OK : lode_fail(status, "%s", sentence);
}

static const lode_option_t attend_options[] = {
    {"block", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "name of the block that the capture was put as"},
    {"budget", "3.125%", LODE_OPTION_SHARE, NULL, 0, 0, "share of the block that a KV head may read a step"},
    {"policy", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "dense, or the block's own landmarks by name [those]"},
    {"merge", "max", LODE_OPTION_CHOICE, "max|mean", 0, 0, "how the query heads of a group agree on a token"},
    {"sinks", "4", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "first tokens of the block that are always read"},
    {"window", "64", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "last tokens before the query that are always read"},
    {"steps", "0", LODE_OPTION_COUNT, NULL, 0, 100000000,
     "steps a pass: a step is one query on one layer; 0: every query on every layer"},
    {"loop", "1", LODE_OPTION_TEXT, NULL, 0, 0,
     "so many passes, or for so long (30s, 5m, 1h); each output must be the same bit by bit as the first time"},
    {"check-steps", NULL, LODE_OPTION_COUNT, NULL, 0, 100000000,
     "of a pass's steps, how many are compared with double, which takes long over long blocks [all]"},
    {"on-lost", "fail", LODE_OPTION_CHOICE, "fail|skip", 0, 0,
     "what a step does about tokens that no rank can give any more"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the results to this file as one JSON object; - for stdout"},
    {NULL},
};

const lode_client_command_t lode_command_attend = {
    .name = "attend",
    .words = "CAPTURE",
    .doc = "Ask a capture's queries of the block that it was put as, one step a layer, and compare with dense\n"
           "attention in double over the capture's own keys and values: error, share of the softmax mass in the\n"
           "chosen tokens, and in as many chosen by exact keys (the oracle). A step that fails is counted and does\n"
           "not end the run; the exit code is 1 then. SIGINT or SIGTERM ends the run with its report.",
    .options = attend_options,
    .least = 1,
    .most = 1,
    .run = run_attend,
};
