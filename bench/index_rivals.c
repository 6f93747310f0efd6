/* SPDX-License-Identifier: Apache-2.0 */
/* What other libraries take for the same: faiss to score and choose, OpenBLAS for the dense step. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/index.h"
#include "bench/index_faiss.h"
#ifdef LODE_HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { DENSE = 16384 /* tokens of the dense step: 32 MiB of fp32 keys and values */, DIM = LODE_INDEX_DIM };

/* ----------------------------------------------------------------------- faiss */

#ifdef LODE_HAVE_FAISS
static double overlap(const int64_t *a, const int64_t *b, size_t n, uint8_t *seen)
{
    size_t both = 0;
    for (size_t i = 0; i < n; i++)
        if (a[i] >= 0)
            seen[a[i]] = 1;
    for (size_t i = 0; i < n; i++)
        both += b[i] >= 0 && seen[b[i]];
    for (size_t i = 0; i < n; i++)
        if (a[i] >= 0)
            seen[a[i]] = 0;
    return (double)both / (double)n;
}

/* One kind of faiss: how many lists (0: exact), of which so many are looked into. */
typedef struct kind {
    const char *name;
    long lists, probes;
} kind_t;

typedef struct search {
    float *q, *scores;
    int64_t *exact, *ids;
    uint8_t *seen;
    long k;
} search_t;

static lode_status_t faiss_row(lode_index_bench_t *b, const lode_index_data_t *d, const kind_t *kind, double linear_ms,
                               uint32_t head, search_t *s)
{
    double ns[1000], recall[1000];
    lode_index_row_t *row = lode_index_row(b, d, kind->name, "sharp", "1024 tokens");
    row->wanted = (uint64_t)s->k;
    row->linear_ms = linear_ms;
    row->visited = kind->lists ? (double)kind->probes / (double)kind->lists : 1;
    lode_faiss_t *exact = lode_faiss_create(DIM, (long)d->landmarks, d->keys, 0);
    lode_faiss_t *index = kind->lists ? lode_faiss_create(DIM, (long)d->landmarks, d->keys, kind->lists) : exact;
    bool fine = exact && index;
    lode_progress_begin(&b->progress, kind->name, b->slices);
    for (uint32_t i = 0; fine && i < b->slices; i++) {
        lode_index_query(b, d, i, head, s->q);
        uint64_t begin = lode_index_spent_ns();
        fine = lode_faiss_search(index, LODE_INDEX_QUERIES, s->q, s->k, kind->probes, s->scores, s->ids);
        ns[i] = (double)(lode_index_spent_ns() - begin);
        if (kind->lists)
            fine = fine && lode_faiss_search(exact, LODE_INDEX_QUERIES, s->q, s->k, 0, s->scores, s->exact);
        recall[i] = 0;
        for (uint32_t g = 0; g < LODE_INDEX_QUERIES; g++)
            recall[i] += overlap(kind->lists ? s->exact + g * s->k : s->ids + g * s->k, s->ids + g * s->k, (size_t)s->k,
                                 s->seen) /
                         LODE_INDEX_QUERIES;
        lode_progress_at(&b->progress, i);
    }
    lode_progress_end(&b->progress);
    lode_faiss_destroy(kind->lists ? index : NULL);
    lode_faiss_destroy(exact);
    if (!fine)
        return lode_fail(LODE_ERR_INTERNAL, "faiss failed over %llu keys", (unsigned long long)d->landmarks);
    row->figure_ms = lode_median(ns, b->slices) * 1e-6;
    row->recall = 0;
    for (uint32_t i = 0; i < b->slices; i++)
        row->recall += recall[i] / b->slices;
    snprintf(row->note, sizeof row->note,
             "fp32 keys, four choices of their own, no mixing of the group; recall of the exact ones");
    return LODE_OK;
}

/* d keeps the keys of the sharp head. */
static lode_status_t faiss_rows(lode_index_bench_t *b, const lode_index_data_t *d, double linear_ms)
{
    long lists = d->landmarks > 100000 ? 512 : 128, k = 1024;
    const kind_t kinds[] = {{"faiss flat", 0, 0}, {"faiss ivf", lists, lists / 16}, {"faiss ivf", lists, lists / 4}};
    search_t s = {.k = k,
                  .q = malloc((size_t)d->documents * LODE_INDEX_QUERIES * DIM * sizeof(float)),
                  .scores = malloc((size_t)k * LODE_INDEX_QUERIES * sizeof(float)),
                  .exact = malloc((size_t)k * LODE_INDEX_QUERIES * sizeof(int64_t)),
                  .ids = malloc((size_t)k * LODE_INDEX_QUERIES * sizeof(int64_t)),
                  .seen = calloc(d->landmarks, 1)};
    lode_status_t status = LODE_OK;
    if (!s.q || !s.scores || !s.exact || !s.ids || !s.seen)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for what faiss chooses");
    for (size_t i = 0; status == LODE_OK && i < sizeof kinds / sizeof *kinds; i++)
        status = faiss_row(b, d, &kinds[i], linear_ms, lode_generator_sharp(d->generator, 0) ? 0 : 1, &s);
    free(s.q);
    free(s.scores);
    free(s.exact);
    free(s.ids);
    free(s.seen);
    return status;
}
#else
static lode_status_t faiss_rows(lode_index_bench_t *b, const lode_index_data_t *d, double linear_ms)
{
    lode_index_row_t *row = lode_index_row(b, d, "faiss", "sharp", "1024 tokens");
    (void)linear_ms;
    snprintf(row->note, sizeof row->note, "skipped: built without faiss (Debian: libfaiss-dev, g++)");
    return LODE_OK;
}
#endif

/* ------------------------------------------------------------------- the dense step */

#ifdef LODE_HAVE_OPENBLAS
typedef struct dense {
    float *k, *v, *p; /* (DENSE, D), (DENSE, D), (group, DENSE) */
    uint8_t *records;
    const uint8_t **at;
    float q[LODE_INDEX_QUERIES * DIM];
} dense_t;

static void dense_blas(const dense_t *s, float *out)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, LODE_INDEX_QUERIES, DENSE, DIM, 1, s->q, DIM, s->k, DIM, 0,
                s->p, DENSE);
    for (uint32_t g = 0; g < LODE_INDEX_QUERIES; g++) {
        float *p = s->p + (size_t)g * DENSE, most = -INFINITY, sum = 0;
        for (uint32_t i = 0; i < DENSE; i++)
            most = p[i] > most ? p[i] : most;
        for (uint32_t i = 0; i < DENSE; i++)
            sum += p[i] = expf(p[i] - most);
        for (uint32_t i = 0; i < DENSE; i++)
            p[i] /= sum;
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, LODE_INDEX_QUERIES, DIM, DENSE, 1, s->p, DENSE, s->v, DIM, 0,
                out, DIM);
}

/* Both attend over the same tokens; the records are bf16, so are what the generator makes. */
static lode_status_t dense_fill(const lode_index_bench_t *b, dense_t *s)
{
    uint64_t seed = b->seed;
    float record[2 * DIM];
    size_t bytes = lode_record_bytes(LODE_FORMAT_BF16, DIM);
    s->k = malloc(DENSE * DIM * sizeof(float));
    s->v = malloc(DENSE * DIM * sizeof(float));
    s->p = malloc(LODE_INDEX_QUERIES * DENSE * sizeof(float));
    s->records = malloc(DENSE * bytes);
    s->at = malloc(DENSE * sizeof *s->at);
    if (!s->k || !s->v || !s->p || !s->records || !s->at)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a dense step");
    for (size_t i = 0; i < sizeof s->q / sizeof *s->q; i++)
        s->q[i] = (float)(int16_t)(seed = lode_mix(seed, 1)) * 0x1p-18f;
    for (size_t t = 0; t < DENSE; t++) {
        for (size_t i = 0; i < 2 * DIM; i++)
            record[i] = (float)(int16_t)(seed = lode_mix(seed, 2)) * 0x1p-14f;
        s->at[t] = s->records + t * bytes;
        b->ops->record_encode(LODE_FORMAT_BF16, DIM, record, record + DIM, 0, s->records + t * bytes);
        b->ops->record_decode(LODE_FORMAT_BF16, DIM, s->at[t], s->k + t * DIM, s->v + t * DIM);
    }
    return LODE_OK;
}

static void dense_measure(lode_index_bench_t *b, const dense_t *s, lode_index_row_t *row)
{
    float theirs[LODE_INDEX_QUERIES * DIM], ours[LODE_INDEX_QUERIES * DIM], lse[LODE_INDEX_QUERIES];
    double blas_ns[1000], own_ns[1000], size = 0;
    openblas_set_num_threads(1);
    for (uint32_t i = 0; i <= b->slices; i++) {
        uint32_t at = i ? i - 1 : 0;
        uint64_t begin = lode_index_spent_ns();
        dense_blas(s, theirs);
        uint64_t middle = lode_index_spent_ns();
        b->ops->attend(LODE_FORMAT_BF16, DIM, LODE_INDEX_QUERIES, s->at, DENSE, s->q, ours, lse);
        blas_ns[at] = (double)(middle - begin);
        own_ns[at] = (double)(lode_index_spent_ns() - middle);
    }
    for (uint32_t i = 0; i < LODE_INDEX_QUERIES * DIM; i++)
        size = fmax(size, fabs(theirs[i]));
    for (uint32_t i = 0; i < LODE_INDEX_QUERIES * DIM; i++)
        row->wrong += !(fabs(theirs[i] - ours[i]) <= 1e-3 * size);
    row->figure_ms = lode_median(blas_ns, b->slices) * 1e-6;
    row->linear_ms = lode_median(own_ns, b->slices) * 1e-6;
}

static lode_status_t dense_row(lode_index_bench_t *b)
{
    const lode_index_data_t size = {.landmarks = DENSE};
    lode_index_row_t *row = lode_index_row(b, &size, "openblas", "", "dense");
    dense_t s = {0};
    lode_status_t status = dense_fill(b, &s);
    if (status == LODE_OK)
        dense_measure(b, &s, row);
    snprintf(row->note, sizeof row->note, "sgemm, softmax, sgemm over fp32; all ms: attend over bf16 records");
    free(s.k);
    free(s.v);
    free(s.p);
    free(s.records);
    free(s.at);
    return status;
}
#else
static lode_status_t dense_row(lode_index_bench_t *b)
{
    const lode_index_data_t size = {.landmarks = DENSE};
    lode_index_row_t *row = lode_index_row(b, &size, "openblas", "", "dense");
    snprintf(row->note, sizeof row->note, "skipped: built without OpenBLAS (Debian: libopenblas-dev)");
    return LODE_OK;
}
#endif

lode_status_t lode_index_rivals(lode_index_bench_t *b, const lode_index_data_t *data, double linear_ms)
{
    LODE_TRY(faiss_rows(b, data, linear_ms));
    return dense_row(b);
}
