/* SPDX-License-Identifier: Apache-2.0 */
/* Landmarks to choose from: generated keys of many documents, in a store as a node has it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench/index.h"

enum { PIECE = 4096 /* tokens generated at a time */ };

uint64_t lode_index_spent_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static lode_status_t generator_create(const lode_index_bench_t *b, lode_index_data_t *d)
{
    uint64_t *starts = malloc((d->documents + 1) * sizeof *starts);
    if (!starts)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u documents", d->documents);
    for (uint32_t i = 0; i <= d->documents; i++)
        starts[i] = i * d->document_tokens;
    lode_generator_params_t params = {.seed = b->seed, .blocks = d->documents, .starts = starts};
    params.geometry = (lode_geometry_t){.layers = 1,
                                        .query_heads = LODE_INDEX_HEADS * LODE_INDEX_QUERIES,
                                        .kv_heads = LODE_INDEX_HEADS,
                                        .head_dim = LODE_INDEX_DIM,
                                        .kv_head_end = LODE_INDEX_HEADS,
                                        .rope = {.theta = 500000}};
    lode_generator_defaults(&params);
    lode_status_t status = lode_generator_create(&params, &d->generator);
    free(starts);
    return status == LODE_OK ? lode_rope_frequencies(&params.geometry.rope, LODE_INDEX_DIM, d->freq) : status;
}

/* ---------------------------------------------------------------- one document */

/* What each thread makes of one document. */
typedef struct document {
    float *keys; /* (tokens, heads, D) */
    float *values;
    uint8_t *rows; /* [page][head][landmark] */
    float mean[LODE_INDEX_HEADS * LODE_INDEX_DIM];
} document_t;

typedef struct making {
    const lode_index_bench_t *bench;
    lode_index_data_t *data;
    uint32_t first; /* document of the first thread */
    document_t documents[LODE_POOL_THREADS];
} making_t;

static void document_make(void *context, uint32_t part, uint32_t parts)
{
    making_t *making = context;
    const lode_index_data_t *d = making->data;
    const lode_landmark_spec_t *spec = &making->bench->spec;
    document_t *document = &making->documents[part];
    uint32_t number = making->first + part;
    size_t token_floats = LODE_INDEX_HEADS * LODE_INDEX_DIM;
    size_t page_rows = LODE_INDEX_HEADS * lode_landmarks_per_page(spec) * lode_landmark_row_bytes(spec, LODE_INDEX_DIM);
    (void)parts;
    if (number >= d->documents)
        return;
    for (uint64_t first = 0; first < d->document_tokens; first += PIECE)
        lode_generator_tokens(d->generator, number, 0, first, PIECE, document->keys + first * token_floats,
                              document->values);
    lode_landmark_mean(LODE_INDEX_HEADS, LODE_INDEX_DIM, document->keys, d->document_tokens, document->mean);
    for (uint64_t page = 0; page < d->document_tokens / LODE_PAGE_TOKENS; page++)
        lode_landmark_build(making->bench->ops, spec, LODE_INDEX_HEADS, LODE_INDEX_DIM,
                            document->keys + page * LODE_PAGE_TOKENS * token_floats, LODE_PAGE_TOKENS, document->mean,
                            NULL, document->rows + page * page_rows);
}

/* A rival asks one query of all documents: their keys stand where the view has them. */
static void keys_keep(const lode_index_bench_t *b, lode_index_data_t *d, uint32_t number, const document_t *document)
{
    float cosine[LODE_INDEX_DIM / 2], sine[LODE_INDEX_DIM / 2];
    float *keys = d->keys + number * d->document_tokens * LODE_INDEX_DIM;
    uint32_t head = lode_generator_sharp(d->generator, 0) ? 0 : 1;
    for (uint64_t i = 0; i < d->document_tokens; i++)
        memcpy(keys + i * LODE_INDEX_DIM, document->keys + (i * LODE_INDEX_HEADS + head) * LODE_INDEX_DIM,
               LODE_INDEX_DIM * sizeof *keys);
    lode_rope_angles(d->freq, LODE_INDEX_DIM, (int64_t)(number * d->document_tokens), cosine, sine);
    b->ops->rotate(keys, (uint32_t)d->document_tokens, LODE_INDEX_DIM, cosine, sine);
}

static lode_status_t document_put(making_t *making, uint32_t number, const document_t *document)
{
    lode_index_data_t *d = making->data;
    const lode_landmark_spec_t *spec = &making->bench->spec;
    lode_block_info_t info = {
        .id = number + 1, .kv_head_end = LODE_INDEX_HEADS, .landmark = *spec, .expected_tokens = d->document_tokens};
    size_t page_rows = LODE_INDEX_HEADS * lode_landmarks_per_page(spec) * lode_landmark_row_bytes(spec, LODE_INDEX_DIM);
    uint32_t slot = 0;
    snprintf(info.name, sizeof info.name, "document %u", number);
    LODE_TRY(lode_store_add(d->store, &info, &slot));
    for (uint32_t page = 0; page < d->document_tokens / LODE_PAGE_TOKENS; page++)
        LODE_TRY(lode_store_put(d->store, info.id, 0, page, LODE_PAGE_TOKENS, document->rows + page * page_rows,
                                page ? NULL : document->mean, NULL, 0));
    if (d->keys)
        keys_keep(making->bench, d, number, document);
    return lode_store_publish(d->store, info.id, 0, d->document_tokens);
}

static void documents_free(making_t *making)
{
    for (uint32_t i = 0; i < LODE_POOL_THREADS; i++) {
        free(making->documents[i].keys);
        free(making->documents[i].values);
        free(making->documents[i].rows);
    }
}

static lode_status_t documents_fill(lode_index_bench_t *b, making_t *making)
{
    lode_index_data_t *d = making->data;
    size_t key_bytes = LODE_INDEX_HEADS * LODE_INDEX_DIM * sizeof(float);
    for (uint32_t i = 0; i < b->pool.count; i++) {
        document_t *document = &making->documents[i];
        document->keys = malloc(d->document_tokens * key_bytes);
        document->values = malloc(PIECE * key_bytes);
        document->rows =
            malloc(d->document_tokens * LODE_INDEX_HEADS * lode_landmark_row_bytes(&b->spec, LODE_INDEX_DIM));
        if (!document->keys || !document->values || !document->rows)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory to generate documents of %u tokens", LODE_INDEX_DOCUMENT);
    }
    char what[64];
    snprintf(what, sizeof what, "making %llu landmarks", (unsigned long long)d->landmarks);
    lode_progress_begin(&b->progress, what, d->documents);
    for (uint32_t first = 0; first < d->documents; first += b->pool.count) {
        making->first = first;
        lode_pool_run(&b->pool, document_make, making, b->pool.count);
        for (uint32_t i = 0; i < b->pool.count && first + i < d->documents; i++)
            LODE_TRY(document_put(making, first + i, &making->documents[i]));
        lode_progress_at(&b->progress, first);
    }
    lode_progress_end(&b->progress);
    return LODE_OK;
}

/* ---------------------------------------------------------------------- all */

static lode_status_t store_create(const lode_index_bench_t *b, lode_index_data_t *d)
{
    lode_landmark_spec_t kept = lode_index_spec(&b->spec);
    size_t row = lode_landmark_row_bytes(&b->spec, LODE_INDEX_DIM);
    size_t head = row + lode_landmark_row_bytes(&kept, LODE_INDEX_DIM) / LODE_INDEX_GROUP + 1;
    d->bytes = ((size_t)64 << 20) + 2 * d->landmarks * LODE_INDEX_HEADS * (head + 8);
    d->memory = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d->memory == MAP_FAILED) {
        d->memory = NULL;
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu landmarks of %u heads: %zu MiB",
                         (unsigned long long)d->landmarks, LODE_INDEX_HEADS, d->bytes >> 20);
    }
    lode_store_params_t params = {.base = d->memory,
                                  .fd = -1,
                                  .bytes = d->bytes,
                                  .layers = 1,
                                  .dim = LODE_INDEX_DIM,
                                  .max_blocks = d->documents,
                                  .ops = b->ops};
    return lode_store_create(&params, &d->store);
}

lode_status_t lode_index_data_create(lode_index_bench_t *b, uint64_t landmarks, bool keep_keys, lode_index_data_t *d)
{
    *d = (lode_index_data_t){.landmarks = landmarks};
    d->document_tokens = landmarks < LODE_INDEX_DOCUMENT ? landmarks : LODE_INDEX_DOCUMENT;
    d->documents = (uint32_t)(landmarks / d->document_tokens);
    making_t making = {.bench = b, .data = d};
    lode_status_t status = generator_create(b, d);
    if (status == LODE_OK)
        status = store_create(b, d);
    if (status == LODE_OK && keep_keys && !(d->keys = malloc(landmarks * LODE_INDEX_DIM * sizeof(float))))
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu keys", (unsigned long long)landmarks);
    if (status == LODE_OK)
        status = documents_fill(b, &making);
    documents_free(&making);
    if (status != LODE_OK)
        lode_index_data_destroy(d);
    return status;
}

void lode_index_data_destroy(lode_index_data_t *d)
{
    if (d->store)
        lode_store_destroy(&d->store);
    lode_generator_destroy(&d->generator);
    if (d->memory)
        munmap(d->memory, d->bytes);
    free(d->keys);
    *d = (lode_index_data_t){0};
}

void lode_index_query(const lode_index_bench_t *b, const lode_index_data_t *d, uint64_t number, uint32_t head, float *q)
{
    enum { ONE = LODE_INDEX_QUERIES * LODE_INDEX_DIM };
    float all[LODE_INDEX_HEADS * ONE], cosine[LODE_INDEX_DIM / 2], sine[LODE_INDEX_DIM / 2];
    lode_generator_query(d->generator, 0, number, all);
    for (uint32_t document = 0; document < d->documents; document++, q += ONE) {
        for (uint32_t i = 0; i < ONE; i++)
            q[i] = all[head * ONE + i] / sqrtf(LODE_INDEX_DIM);
        lode_rope_angles(d->freq, LODE_INDEX_DIM, -(int64_t)(document * d->document_tokens), cosine, sine);
        b->ops->rotate(q, LODE_INDEX_QUERIES, LODE_INDEX_DIM, cosine, sine);
    }
}
