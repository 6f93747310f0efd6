/* SPDX-License-Identifier: Apache-2.0 */
/* How documents are attended to: names, and readers over blocks of their landmarks. */
#include <stdlib.h>
#include <string.h>

#include "bench/options.h"
#include "bench/readings.h"

/* ------------------------------------------------------------------- names */

static lode_status_t unknown(const char *text)
{
    static const lode_option_t names[] = {{"dense"},     {"shadowkv"},  {"landmark1"},  {"landmark2"},
                                          {"landmark4"}, {"landmark8"}, {"landmark16"}, {NULL}};
    char word[LODE_READING_NAME];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(text, ":"), text);
    const char *nearest = lode_options_nearest(names, word);
    if (nearest && strcmp(nearest, word) != 0)
        return lode_fail(LODE_ERR_INVALID, "no policy is called \"%s\"; did you mean \"%s\"?", text, nearest);
    return lode_fail(LODE_ERR_INVALID,
                     "no policy is called \"%s\"; there are dense, shadowkv, shadowkv:rN with a rank N, and landmarks: "
                     "landmark1, 2, 4, 8 and 16, with :cN, :higgs or :nocentre",
                     text);
}

static lode_status_t parse_rank(const char *text, const char *number, uint32_t *rank)
{
    uint64_t value;
    if (lode_parse_count(number, &value) != LODE_OK || !value || value > UINT16_MAX)
        return lode_fail(LODE_ERR_INVALID, "policy \"%s\": a rank is a whole number from 1, like shadowkv:r64", text);
    *rank = (uint32_t)value;
    return LODE_OK;
}

lode_status_t lode_reading_parse(const char *text, lode_reading_t *reading)
{
    lode_reading_t made = {.kind = LODE_READING_DENSE};
    if (strlen(text) >= sizeof made.name)
        return unknown(text);
    snprintf(made.name, sizeof made.name, "%s", text);
    if (strcmp(text, "shadowkv") == 0 || strncmp(text, "shadowkv:r", 10) == 0) {
        made.kind = LODE_READING_SHADOW;
        if (text[8])
            LODE_TRY(parse_rank(text, text + 10, &made.rank));
    } else if (strcmp(text, "dense") != 0) {
        made.kind = LODE_READING_LANDMARK;
        if (strncmp(text, "landmark", 8) != 0)
            return unknown(text);
        if (lode_landmark_parse(text, &made.landmark) != LODE_OK)
            return strchr(text, ':') ? LODE_ERR_INVALID : unknown(text);
    }
    *reading = made;
    return LODE_OK;
}

static bool same_landmark(const lode_landmark_spec_t *a, const lode_landmark_spec_t *b)
{
    return a->codec == b->codec && a->bits == b->bits && a->chunk == b->chunk && a->centre == b->centre &&
           a->index == b->index;
}

/* Dense reads whatever blocks there are. */
static lode_status_t number_stores(lode_reading_t *readings, uint32_t count, uint32_t *stores)
{
    lode_landmark_spec_t found[LODE_READINGS_MAX];
    uint32_t n = 0;
    bool dense = false;
    for (uint32_t i = 0; i < count; i++) {
        dense = dense || readings[i].kind == LODE_READING_DENSE;
        if (readings[i].kind != LODE_READING_LANDMARK)
            continue;
        uint32_t at = 0;
        while (at < n && !same_landmark(&found[at], &readings[i].landmark))
            at++;
        if (at == n)
            found[n++] = readings[i].landmark;
        readings[i].store = at;
    }
    if (dense && !n)
        LODE_TRY(lode_landmark_parse("landmark2", &found[n++]));
    for (uint32_t i = 0; i < count; i++)
        if (readings[i].kind == LODE_READING_DENSE)
            readings[i].landmark = found[0];
    *stores = n;
    return LODE_OK;
}

lode_status_t lode_readings_parse(const char *text, lode_reading_t readings[LODE_READINGS_MAX], uint32_t *count,
                                  uint32_t *stores)
{
    uint32_t n = 0;
    for (const char *at = text; at; n++) {
        char word[64];
        at = lode_bench_next_word(at, word, sizeof word);
        if (n == LODE_READINGS_MAX)
            return lode_fail(LODE_ERR_INVALID, "more than %d policies", LODE_READINGS_MAX);
        LODE_TRY(lode_reading_parse(word, &readings[n]));
        for (uint32_t i = 0; i < n; i++)
            if (strcmp(readings[i].name, word) == 0)
                return lode_fail(LODE_ERR_INVALID, "policy \"%s\" is named twice", word);
    }
    LODE_TRY(number_stores(readings, n, stores));
    *count = n;
    return LODE_OK;
}

lode_policy_t lode_reading_policy(const lode_reading_t *reading, double budget, uint32_t sinks, uint32_t window)
{
    bool dense = reading->kind == LODE_READING_DENSE;
    return (lode_policy_t){.select = dense ? LODE_SELECT_DENSE : LODE_SELECT_LANDMARK,
                           .merge = LODE_MERGE_MAX,
                           .budget_share = budget,
                           .sinks = sinks,
                           .window = window,
                           .lost = LODE_LOST_FAIL};
}

/* ------------------------------------------------------------------ stores */

static const lode_landmark_spec_t *landmark_of(const lode_reading_t *readings, uint32_t count, uint32_t store)
{
    for (uint32_t i = 0; i < count; i++)
        if (readings[i].kind != LODE_READING_SHADOW && readings[i].store == store)
            return &readings[i].landmark;
    return NULL;
}

/* ShadowKV alone needs no blocks, but the model all the same. */
lode_status_t lode_stores_open(const char *model, lode_format_t format, const lode_reading_t *readings,
                               uint32_t reading_count, uint32_t count, lode_stores_t *stores)
{
    lode_landmark_spec_t any;
    lode_stores_t made = {.count = count};
    LODE_TRY(lode_landmark_parse("landmark2", &any));
    for (uint32_t i = 0; i < count || i < 1; i++) {
        const lode_landmark_spec_t *landmark = landmark_of(readings, reading_count, i);
        lode_reader_params_t params = {.model = model, .format = format, .landmark = landmark ? *landmark : any};
        lode_status_t status = lode_reader_open(&params, &made.readers[i]);
        if (status != LODE_OK) {
            lode_stores_close(&made);
            return status;
        }
    }
    *stores = made;
    return LODE_OK;
}

lode_status_t lode_stores_join(lode_stores_t *stores, lode_config_h config)
{
    if (!stores->count)
        return LODE_OK;
    LODE_TRY(lode_job_agree(lode_cluster_join(config, &lode_model_info(lode_reader_model(stores->readers[0]))->geometry,
                                              &stores->cluster)));
    lode_status_t status = LODE_OK;
    for (uint32_t i = 0; i < stores->count && status == LODE_OK; i++)
        status = lode_reader_attach(stores->readers[i], stores->cluster);
    return lode_job_agree(status);
}

lode_status_t lode_stores_ingest(const lode_stores_t *stores, const lode_job_t *job, const lode_problem_t *problem)
{
    lode_document_t *own = malloc(problem->count * sizeof *own);
    uint32_t n = 0;
    lode_status_t status = own ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for documents");
    for (uint32_t i = job->rank; own && i < problem->count; i += job->ranks)
        own[n++] = problem->documents[i];
    for (uint32_t i = 0; i < stores->count && n && status == LODE_OK; i++)
        status = lode_reader_ingest(stores->readers[i], own, n, NULL, NULL, NULL);
    free(own);
    return status;
}

lode_status_t lode_stores_list(const lode_stores_t *stores, const lode_problem_t *problem)
{
    for (uint32_t i = 0; i < stores->count; i++)
        LODE_TRY(lode_reader_list(stores->readers[i], problem->documents, problem->count));
    return LODE_OK;
}

static lode_status_t drop_all(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t count)
{
    uint32_t got = 0;
    LODE_TRY(lode_cluster_blocks(cluster, entries, count, &got));
    for (uint32_t i = 0; i < got && i < count; i++) {
        lode_block_h block;
        LODE_TRY(lode_block_open(cluster, entries[i].name, &block));
        LODE_TRY(lode_block_drop(&block));
    }
    return LODE_OK;
}

lode_status_t lode_stores_forget(const lode_stores_t *stores)
{
    uint32_t count = 0;
    if (!stores->count)
        return LODE_OK;
    for (uint32_t i = 0; i < stores->count; i++)
        LODE_TRY(lode_reader_list(stores->readers[i], NULL, 0));
    LODE_TRY(lode_cluster_blocks(stores->cluster, NULL, 0, &count));
    lode_block_entry_t *entries = calloc(count + 1, sizeof *entries);
    if (!entries)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to list %u blocks", count);
    lode_status_t status = drop_all(stores->cluster, entries, count);
    free(entries);
    return status;
}

void lode_stores_close(lode_stores_t *stores)
{
    for (uint32_t i = 0; i < LODE_READINGS_MAX; i++)
        lode_reader_close(&stores->readers[i]);
    if (stores->cluster)
        lode_cluster_leave(&stores->cluster);
}

json_t *lode_stores_json(const lode_stores_t *stores, const char *folder)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(stores->readers[0]));
    json_t *model = json_object();
    lode_job_set_text(model, "folder", folder);
    lode_job_set_text(model, "family", info->family);
    lode_job_set_count(model, "parameters", info->parameters);
    lode_job_set_count(model, "layers", info->geometry.layers);
    lode_job_set_count(model, "heads", info->geometry.query_heads);
    lode_job_set_count(model, "kv_heads", info->geometry.kv_heads);
    lode_job_set_count(model, "head_dim", info->geometry.head_dim);
    lode_job_set_text(model, "products", info->products);
    return model;
}
