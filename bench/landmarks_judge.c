/* SPDX-License-Identifier: Apache-2.0 */
/* From a source to trials: keys of a layer, queries to fit and to judge by, a few threads over the KV heads. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bench/landmarks.h"
#include "bench/progress.h"

enum { PIECE = 256, JUDGED_MOST = 8, FIT_MOST = 4096, THREADS_MOST = 64, CAPTURE_PERIOD = 4, APART = 8 };

/** A layer in work. */
typedef struct layer_work {
    const lode_landmark_params_t *params;
    const lode_ops_t *ops;
    uint32_t layer, heads, group, dim, queries;
    uint64_t tokens, fitted, held; /* held: a capture's queries that nothing is fitted by */
    float *keys;                   /* (heads, tokens, dim) */
    float *fit, *judge;            /* (heads, fitted · group, dim); (heads, queries, group, dim), scaled */
    uint64_t visible[JUDGED_MOST], wanted;
    lode_landmark_table_t *table;
    lode_progress_t *progress;
    atomic_uint next;
    atomic_bool failed;
    pthread_mutex_t lock; /* of table, progress, status */
    uint32_t done;
    lode_status_t status;
    char message[512];
} layer_work_t;

static void *run_workers(void *(*work)(void *), layer_work_t *w)
{
    pthread_t threads[THREADS_MOST];
    uint32_t started = 0, wanted = w->params->threads < THREADS_MOST ? w->params->threads : THREADS_MOST;
    atomic_store(&w->next, 0);
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, work, w) == 0)
        started++;
    work(w);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    return NULL;
}

static void fail(layer_work_t *w, lode_status_t status)
{
    pthread_mutex_lock(&w->lock);
    if (w->status == LODE_OK) {
        w->status = status;
        atomic_store(&w->failed, true);
        snprintf(w->message, sizeof w->message, "%s", lode_error_message());
    }
    pthread_mutex_unlock(&w->lock);
}

static void *load_keys(void *argument)
{
    layer_work_t *w = argument;
    size_t width = (size_t)w->heads * w->dim;
    float *k = malloc(PIECE * width * sizeof *k), *v = malloc(PIECE * width * sizeof *v);
    uint64_t pieces = (w->tokens + PIECE - 1) / PIECE;
    if (!k || !v)
        fail(w, lode_fail(LODE_ERR_NO_MEMORY, "no memory for keys"));
    for (uint64_t piece; k && v && (piece = atomic_fetch_add(&w->next, 1)) < pieces;) {
        uint64_t first = piece * PIECE, n = w->tokens - first < PIECE ? w->tokens - first : PIECE;
        lode_source_tokens(w->params->source, 0, w->layer, first, n, k, v);
        for (uint64_t t = 0; t < n; t++)
            for (uint32_t head = 0; head < w->heads; head++)
                memcpy(w->keys + (head * w->tokens + first + t) * w->dim, k + t * width + head * w->dim,
                       w->dim * sizeof *k);
    }
    free(k);
    free(v);
    return NULL;
}

/* The number of the i-th query to judge by; those to fit by are the first. Of a capture the last quarter is judged;
 * generated ones come later still, with facts of their own. */
static uint64_t judged_number(const layer_work_t *w, uint64_t i)
{
    const lode_source_t *source = w->params->source;
    if (!source->captured)
        return w->fitted + APART * (i + 1);
    return source->capture.queries - w->held + i * w->held / w->queries;
}

static void load_queries(layer_work_t *w, float *q)
{
    float scale = 1 / sqrtf((float)w->dim);
    for (uint64_t i = 0; i < w->fitted; i++) {
        lode_source_query(w->params->source, w->layer, i, q);
        for (uint32_t h = 0; h < w->heads * w->group; h++)
            memcpy(w->fit + ((h / w->group * w->fitted + i) * w->group + h % w->group) * w->dim, q + (size_t)h * w->dim,
                   w->dim * sizeof *q);
    }
    for (uint32_t i = 0; i < w->queries; i++) {
        int64_t position = lode_source_position(w->params->source, judged_number(w, i));
        bool all = position == LODE_POSITION_END || position + 1 >= (int64_t)w->tokens;
        w->visible[i] = all ? w->tokens : (uint64_t)(position + 1);
        lode_source_query(w->params->source, w->layer, judged_number(w, i), q);
        for (uint32_t h = 0; h < w->heads * w->group; h++)
            for (uint32_t j = 0; j < w->dim; j++)
                w->judge[((h / w->group * w->queries + i) * w->group + h % w->group) * w->dim + j] =
                    q[(size_t)h * w->dim + j] * scale;
    }
}

static void *judge_heads(void *argument)
{
    layer_work_t *w = argument;
    const lode_landmark_params_t *p = w->params;
    for (uint32_t head; (head = atomic_fetch_add(&w->next, 1)) < w->heads && !atomic_load(&w->failed);) {
        lode_found_t found[LODE_CONTESTANTS_MAX] = {{{0}}};
        lode_trial_t trial = {.ops = w->ops,
                              .rope = p->source->geometry.rope,
                              .positions = p->source->captured ? p->source->capture.key_positions : NULL,
                              .dim = w->dim,
                              .group = w->group,
                              .tokens = w->tokens,
                              .keys = w->keys + head * w->tokens * w->dim,
                              .fitted = w->fitted * w->group,
                              .fit_queries = w->fit + (size_t)head * w->fitted * w->group * w->dim,
                              .queries = w->queries,
                              .judged_queries = w->judge + (size_t)head * w->queries * w->group * w->dim,
                              .visible = w->visible,
                              .few = p->few,
                              .sinks = p->sinks,
                              .window = p->window,
                              .wanted = w->wanted};
        uint32_t kind = p->source->captured ? 0 : lode_generator_head_kind(p->source->generator, head);
        lode_status_t status = lode_trial_run(&trial, found);
        if (status != LODE_OK)
            fail(w, status);
        pthread_mutex_lock(&w->lock);
        for (uint32_t c = 0; lode_contestants[c].name; c++) {
            lode_found_t *sum = &w->table->found[c][kind];
            for (int i = 0; i < LODE_BUDGETS; i++)
                sum->mass[i] += found[c].mass[i];
            sum->recall += found[c].recall;
            sum->top_page += found[c].top_page;
            sum->count += found[c].count;
        }
        lode_progress_at(w->progress, (uint64_t)w->layer * w->heads + ++w->done);
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

/* Contestants whose names contain one of the words. */
static lode_status_t choose_contestants(const char *only, uint64_t *wanted)
{
    *wanted = only ? 1 : ~UINT64_C(0);
    for (size_t length; only && *only; only += length + (only[length] == ',')) {
        uint64_t with = 0;
        length = strcspn(only, ",");
        for (uint32_t c = 0; lode_contestants[c].name && length > 0; c++)
            if (memmem(lode_contestants[c].name, strlen(lode_contestants[c].name), only, length))
                with |= UINT64_C(1) << c;
        if (!with)
            return lode_fail(LODE_ERR_INVALID, "no landmark's name contains \"%.*s\"", (int)length, only);
        *wanted |= with;
    }
    return LODE_OK;
}

static lode_status_t check_source(const lode_landmark_params_t *p, layer_work_t *w)
{
    const lode_source_t *source = p->source;
    uint64_t least = p->few * 4 + p->sinks + p->window;
    if (source->captured && source->capture.queries < CAPTURE_PERIOD)
        return lode_fail(
            LODE_ERR_INVALID,
            "the capture has %llu queries; the least is %d: three quarters make the transforms, the last judges",
            (unsigned long long)source->capture.queries, CAPTURE_PERIOD);
    w->fitted = p->fit < FIT_MOST ? p->fit : FIT_MOST;
    w->queries = p->queries < JUDGED_MOST ? p->queries : JUDGED_MOST;
    if (source->captured) {
        w->held = source->capture.queries / CAPTURE_PERIOD;
        w->fitted = source->capture.queries - w->held < FIT_MOST ? source->capture.queries - w->held : FIT_MOST;
        w->queries = w->held < w->queries ? (uint32_t)w->held : w->queries;
    }
    for (uint32_t i = 0; i < w->queries && source->captured; i++)
        if (source->capture.positions[judged_number(w, i)] + 1 < (int64_t)least)
            return lode_fail(LODE_ERR_INVALID, "query %llu of the capture sees less than %llu tokens",
                             (unsigned long long)judged_number(w, i), (unsigned long long)least);
    if (w->tokens < least)
        return lode_fail(LODE_ERR_INVALID, "%llu tokens are too few: the least is %llu", (unsigned long long)w->tokens,
                         (unsigned long long)least);
    return LODE_OK;
}

static lode_status_t judge_layers(layer_work_t *w)
{
    size_t heads = w->heads, row = w->dim * sizeof(float), group = w->group;
    float *q = malloc(heads * group * row);
    w->keys = malloc(heads * w->tokens * row);
    w->fit = malloc(heads * w->fitted * group * row);
    w->judge = malloc(heads * w->queries * group * row);
    if (!q || !w->keys || !w->fit || !w->judge)
        w->status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu tokens of %u heads",
                              (unsigned long long)w->tokens, w->heads);
    for (w->layer = 0; w->status == LODE_OK && w->layer < w->params->source->geometry.layers; w->layer++) {
        w->done = 0;
        run_workers(load_keys, w);
        load_queries(w, q);
        run_workers(judge_heads, w);
        if (w->status != LODE_OK)
            lode_fail(w->status, "%s", w->message);
    }
    free(q);
    free(w->keys);
    free(w->fit);
    free(w->judge);
    return w->status;
}

lode_status_t lode_landmark_judge(const lode_landmark_params_t *params, lode_landmark_table_t *table)
{
    const lode_geometry_t *g = &params->source->geometry;
    lode_progress_t progress;
    layer_work_t w = {.params = params,
                      .heads = g->kv_heads,
                      .group = g->query_heads / g->kv_heads,
                      .dim = g->head_dim,
                      .tokens = params->source->starts[1],
                      .table = table,
                      .progress = &progress,
                      .lock = PTHREAD_MUTEX_INITIALIZER};
    memset(table, 0, sizeof *table);
    if (w.group > LODE_MAX_GROUP)
        return lode_fail(LODE_ERR_GEOMETRY, "%u query heads a KV head are too many; the most is %d", w.group,
                         LODE_MAX_GROUP);
    LODE_TRY(lode_ops_get(params->level, &w.ops));
    LODE_TRY(check_source(params, &w));
    LODE_TRY(choose_contestants(params->only, &w.wanted));
    lode_progress_begin(&progress, "judge landmarks", (uint64_t)g->layers * g->kv_heads);
    lode_status_t status = judge_layers(&w);
    lode_progress_end(&progress);
    return status;
}
