/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over chosen records in cache slots, in order and at random, and the merge of its parts. */
#include <math.h>
#include <string.h>

#include "bench/gpu.h"

enum { HEADS = 8, BLOCKS = 3, THIN = 16, SAMPLE = 4096, SMALL_SAMPLE = 64 };

typedef struct attend {
    lode_gpubench_pages_t pages;
    size_t stride; /* of records */
    uint32_t sets, sample;
    uint8_t *sampled; /* records of the sample on the host, `stride` apart, which the cache repeats */
    uint8_t *cached;  /* (sets, records) */
    uint32_t *places[2], *host_places[2]; /* in order, at random */
    float *host_q, *q, *out, *lse, *part_out, *part_lse;
    uint32_t splits;
    int random;
} attend_t;

static lode_status_t put_records(lode_gpubench_t *b, attend_t *a)
{
    const lode_gpubench_pages_t *p = &a->pages;
    float *kv;
    a->stride = lode_device_record_bytes(p->format, p->dim);
    a->sample = b->small ? SMALL_SAMPLE : SAMPLE;
    a->sets = lode_gpubench_sets(b, p->records * a->stride);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, a->sample * a->stride, (void **)&a->sampled));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *kv * 2 * p->dim, (void **)&kv));
    for (uint32_t i = 0; i < a->sample; i++) {
        lode_gpubench_gaussian(b, 1, kv, 2 * p->dim);
        b->scalar->record_encode(p->format, p->dim, kv, kv + p->dim, 0, a->sampled + i * a->stride);
    }
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, a->sets * p->records * a->stride, (void **)&a->cached));
    for (uint32_t set = 0; set < a->sets; set++) /* each begins with the sample's first */
        LODE_TRY(lode_gpubench_spread(b, a->cached + set * p->records * a->stride, a->sampled, a->sample * a->stride,
                                      p->records * a->stride));
    return LODE_OK;
}

static lode_status_t put_places(lode_gpubench_t *b, attend_t *a)
{
    uint32_t records = a->pages.records;
    for (int random = 0; random < 2; random++) {
        LODE_TRY(
            lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof(uint32_t) * records, (void **)&a->host_places[random]));
        for (uint32_t i = 0; i < records; i++)
            a->host_places[0][i] = i;
        if (random)
            lode_gpubench_shuffle(b, a->host_places[1], records);
        LODE_TRY(lode_gpubench_put(b, a->host_places[random], sizeof(uint32_t) * records, (void **)&a->places[random]));
    }
    return LODE_OK;
}

static lode_status_t attend_create(lode_gpubench_t *b, lode_format_t format, uint32_t dim, uint32_t group,
                                   uint64_t bytes, attend_t *a)
{
    uint32_t heads = (uint32_t)lode_gpubench_size(b, HEADS, 2);
    uint32_t per_head = (uint32_t)lode_gpubench_size(b, bytes / heads / lode_device_record_bytes(format, dim), 75);
    *a = (attend_t){0};
    LODE_TRY(lode_gpubench_pages_create(b, format, dim, group, heads, per_head * (b->small ? 3 : THIN) + 5, BLOCKS,
                                        per_head, NULL, &a->pages));
    LODE_TRY(put_records(b, a));
    LODE_TRY(put_places(b, a));
    size_t rows = (size_t)heads * group;
    a->splits = b->ops->attend_splits(b->device, 1, heads, per_head);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof(float) * rows * dim, (void **)&a->host_q));
    lode_gpubench_gaussian(b, 1 / sqrtf((float)dim), a->host_q, rows * dim);
    LODE_TRY(lode_gpubench_put(b, a->host_q, sizeof(float) * rows * dim, (void **)&a->q));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * rows * a->splits * dim, (void **)&a->part_out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * rows * a->splits, (void **)&a->part_lse));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * rows * dim, (void **)&a->out));
    return lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * rows, (void **)&a->lse);
}

/* Attention and the merge of its parts: what a step has of it. */
static lode_status_t attend_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const attend_t *a = context;
    const lode_gpubench_pages_t *p = &a->pages;
    lode_device_attend_t attend = {.format = p->format,
                                   .dim = p->dim,
                                   .group = p->group,
                                   .heads = p->heads,
                                   .q = a->q,
                                   .rows = p->rows,
                                   .row_count = 1,
                                   .parts = p->parts,
                                   .blocks = p->device_blocks,
                                   .chosen = p->chosen,
                                   .tokens = p->device_tokens,
                                   .most_tokens = p->per_head,
                                   .wanted = p->device_wanted,
                                   .first = p->first,
                                   .places = a->places[a->random],
                                   .cached = a->cached + turn % a->sets * p->records * a->stride,
                                   .hits = true,
                                   .splits = a->splits,
                                   .out = a->part_out,
                                   .lse = a->part_lse};
    lode_device_parts_t parts = {.out = a->part_out, .lse = a->part_lse, .splits = a->splits};
    LODE_GPU(b, b->ops->attend(b->stream, &attend));
    LODE_GPU(b, b->ops->merge(b->stream, &parts, 1, p->heads, p->group, p->dim, a->out, a->lse));
    return LODE_OK;
}

static lode_status_t in_order_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    attend_t a = *(const attend_t *)context;
    a.random = 0;
    return attend_enqueue(b, &a, turn);
}

/* -------------------------------------------------------------- correctness */

/* Softmax over the sample in double, each record as often as the head chose it. @return log-sum-exp */
static double reference(const attend_t *a, const float *k, const float *v, const uint32_t *times, const float *q,
                        double *out)
{
    double most = -INFINITY, sum = 0;
    uint32_t dim = a->pages.dim;
    memset(out, 0, sizeof *out * dim);
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < a->sample; i++) {
            double logit = 0;
            for (uint32_t j = 0; times[i] && j < dim; j++)
                logit += (double)q[j] * k[(size_t)i * dim + j];
            if (!times[i])
                continue;
            if (pass == 0) {
                most = fmax(most, logit);
                continue;
            }
            double weight = times[i] * exp(logit - most);
            sum += weight;
            for (uint32_t j = 0; j < dim; j++)
                out[j] += weight * v[(size_t)i * dim + j];
        }
    for (uint32_t j = 0; j < dim; j++)
        out[j] /= sum;
    return most + log(sum);
}

/* Numbers further from double than products of bf16 queries may be: the kernels' own tests judge closer. */
static uint64_t wrong_row(const double *right, double right_lse, const float *out, float lse, uint32_t dim)
{
    double off = 0, norm = 0;
    uint64_t wrong = !(fabs(lse - right_lse) <= 1e-2);
    for (uint32_t j = 0; j < dim; j++) {
        off += (out[j] - right[j]) * (out[j] - right[j]);
        norm += right[j] * right[j];
    }
    return wrong + !(sqrt(off) <= 1e-2 * sqrt(norm) + 1e-4);
}

static lode_status_t wrong_outputs(lode_gpubench_t *b, attend_t *a, uint64_t *wrong)
{
    const lode_gpubench_pages_t *p = &a->pages;
    size_t rows = (size_t)p->heads * p->group;
    float *k, *v, *out, *lse;
    uint32_t *times;
    double right[LODE_MAX_DIM];
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *k * a->sample * p->dim, (void **)&k));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *v * a->sample * p->dim, (void **)&v));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *out * rows * p->dim, (void **)&out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *lse * rows, (void **)&lse));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *times * a->sample, (void **)&times));
    for (uint32_t i = 0; i < a->sample; i++)
        b->scalar->record_decode(p->format, p->dim, a->sampled + i * a->stride, k + (size_t)i * p->dim,
                                 v + (size_t)i * p->dim);
    LODE_TRY(lode_gpubench_poison(b, a->out, sizeof *out * rows * p->dim));
    LODE_TRY(lode_gpubench_poison(b, a->lse, sizeof *lse * rows));
    LODE_TRY(lode_gpubench_poison(b, a->part_out, sizeof *out * rows * a->splits * p->dim));
    LODE_TRY(lode_gpubench_poison(b, a->part_lse, sizeof *lse * rows * a->splits));
    LODE_TRY(attend_enqueue(b, a, lode_gpubench_below(b, a->sets)));
    LODE_TRY(lode_gpubench_copy(b, out, a->out, sizeof *out * rows * p->dim));
    LODE_TRY(lode_gpubench_copy(b, lse, a->lse, sizeof *lse * rows));
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t head = row / p->group;
        memset(times, 0, sizeof *times * a->sample);
        for (uint32_t i = 0; i < p->per_head; i++)
            times[a->host_places[a->random][p->numbers[(size_t)head * p->per_head + i]] % a->sample]++;
        double right_lse = reference(a, k, v, times, a->host_q + (size_t)row * p->dim, right);
        *wrong += wrong_row(right, right_lse, out + (size_t)row * p->dim, lse[row], p->dim);
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

static lode_status_t attend_row(lode_gpubench_t *b, attend_t *a, const char *name, const char *format, double target)
{
    const lode_gpubench_pages_t *p = &a->pages;
    lode_gpubench_stretch_t stretch;
    lode_gpubench_work_t figure = {.enqueue = attend_enqueue, .context = a, .sets = a->sets}, floor;
    double bytes = (double)p->records * (double)a->stride;
    if (!lode_gpubench_wanted(b, name, format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, name, format, p->group, p->dim);
    row->target = target;
    row->beside = "device_read";
    LODE_TRY(wrong_outputs(b, a, &row->wrong));
    LODE_TRY(lode_gpubench_read_floor(b, (size_t)bytes, &stretch, &floor));
    LODE_TRY(lode_gpubench_rate(b, row, &figure, bytes, &floor, (double)stretch.bytes));
    snprintf(row->note, sizeof row->note, "%u records, %u splits, merge included", p->records, a->splits);
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t beside_order_row(lode_gpubench_t *b, attend_t *a, const char *format)
{
    lode_gpubench_work_t figure = {.enqueue = attend_enqueue, .context = a, .sets = a->sets};
    lode_gpubench_work_t floor = {.enqueue = in_order_enqueue, .context = a, .sets = a->sets};
    if (!lode_gpubench_wanted(b, "attend_scatter", format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "attend_scatter", format, a->pages.group, a->pages.dim);
    row->target = 1.05;
    row->at_most = true;
    row->beside = "attend";
    LODE_TRY(wrong_outputs(b, a, &row->wrong));
    LODE_TRY(lode_gpubench_time(b, row, &figure, &floor));
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t attend_rows(lode_gpubench_t *b, lode_format_t format, uint32_t dim, uint32_t group, uint32_t mib,
                                 double target)
{
    char name[32];
    attend_t a;
    snprintf(name, sizeof name, "%s %uMB", lode_gpubench_format_name(format), mib);
    if (!lode_gpubench_wanted(b, "attend", name) && !lode_gpubench_wanted(b, "attend_random", name) &&
        !lode_gpubench_wanted(b, "attend_scatter", name))
        return LODE_OK;
    LODE_TRY(attend_create(b, format, dim, group, (uint64_t)mib << 20, &a));
    LODE_TRY(attend_row(b, &a, "attend", name, target));
    a.random = 1;
    LODE_TRY(attend_row(b, &a, "attend_random", name, target));
    LODE_TRY(beside_order_row(b, &a, name));
    lode_gpubench_free_all(b);
    return LODE_OK;
}

lode_status_t lode_gpubench_attend(lode_gpubench_t *b)
{
    static const lode_format_t formats[] = {LODE_FORMAT_BF16, LODE_FORMAT_FP8, LODE_FORMAT_HIGGS4};
    static const uint32_t sizes[] = {8, 16, 64, 256};
    for (int f = 0; f < 3; f++)
        for (int i = 0; i < (b->small ? 1 : 4); i++) /* small, they are all alike */
            LODE_TRY(attend_rows(b, formats[f], 128, 4, sizes[i], sizes[i] < 64 ? 0.45 : 0.70));
    if (b->small)
        return LODE_OK;
    LODE_TRY(attend_rows(b, LODE_FORMAT_BF16, 64, 4, 64, NAN));
    LODE_TRY(attend_rows(b, LODE_FORMAT_BF16, 256, 4, 64, NAN));
    LODE_TRY(attend_rows(b, LODE_FORMAT_BF16, 128, 1, 64, NAN));
    return attend_rows(b, LODE_FORMAT_BF16, 128, 8, 64, NAN);
}

/* -------------------------------------------------------------------- merge */

typedef struct merge {
    uint32_t rows, group, dim, splits, sets;
    float *part_out, *part_lse, *out, *lse; /* (sets, rows, splits, group(, dim)) */
} merge_t;

static lode_status_t merge_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const merge_t *m = context;
    size_t parts = (size_t)(turn % m->sets) * m->rows * m->splits * m->group;
    lode_device_parts_t set = {.out = m->part_out + parts * m->dim, .lse = m->part_lse + parts, .splits = m->splits};
    LODE_GPU(b, b->ops->merge(b->stream, &set, 1, m->rows, m->group, m->dim, m->out, m->lse));
    return LODE_OK;
}

/* Merged numbers that are not the weighted mean of the parts in double; some parts are empty. */
static lode_status_t wrong_merges(lode_gpubench_t *b, merge_t *m, const float *part_out, const float *part_lse,
                                  uint64_t *wrong)
{
    size_t rows = (size_t)m->rows * m->group;
    float *out, *lse;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *out * rows * m->dim, (void **)&out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *lse * rows, (void **)&lse));
    LODE_TRY(lode_gpubench_poison(b, m->out, sizeof *out * rows * m->dim));
    LODE_TRY(lode_gpubench_poison(b, m->lse, sizeof *lse * rows));
    LODE_TRY(merge_enqueue(b, m, 0));
    LODE_TRY(lode_gpubench_copy(b, out, m->out, sizeof *out * rows * m->dim));
    LODE_TRY(lode_gpubench_copy(b, lse, m->lse, sizeof *lse * rows));
    for (size_t row = 0; row < rows; row++) {
        double sum = 0, right;
        size_t part = row / m->group * m->splits * m->group + row % m->group;
        for (uint32_t s = 0; s < m->splits; s++)
            sum += exp((double)part_lse[part + s * m->group]);
        *wrong += !(fabs(lse[row] - log(sum)) <= 1e-5);
        for (uint32_t j = 0; j < m->dim; j++) {
            right = 0;
            for (uint32_t s = 0; s < m->splits; s++)
                if (part_lse[part + s * m->group] > -INFINITY)
                    right +=
                        exp((double)part_lse[part + s * m->group]) / sum * part_out[(part + s * m->group) * m->dim + j];
            *wrong += !(fabs(out[row * m->dim + j] - right) <= 1e-5 * (1 + fabs(right)));
        }
    }
    return LODE_OK;
}

lode_status_t lode_gpubench_merge(lode_gpubench_t *b)
{
    merge_t m = {.rows = (uint32_t)lode_gpubench_size(b, 64, 3), .group = 4, .dim = 128, .splits = b->small ? 5 : 32};
    size_t parts = (size_t)m.rows * m.splits * m.group, bytes = parts * m.dim * sizeof(float);
    float *part_out, *part_lse;
    lode_gpubench_stretch_t stretch;
    lode_gpubench_work_t figure = {.enqueue = merge_enqueue, .context = &m}, floor;
    if (!lode_gpubench_wanted(b, "merge", "fp32"))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "merge", "fp32", m.group, m.dim);
    m.sets = figure.sets = lode_gpubench_sets(b, bytes);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, bytes, (void **)&part_out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, parts * sizeof(float), (void **)&part_lse));
    lode_gpubench_gaussian(b, 1, part_out, parts * m.dim);
    lode_gpubench_gaussian(b, 1, part_lse, parts);
    for (size_t i = 0; i < parts; i++)
        if (i / m.group % m.splits && lode_gpubench_below(b, 4) == 0)
            part_lse[i] = -INFINITY;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, m.sets * bytes, (void **)&m.part_out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, m.sets * parts * sizeof(float), (void **)&m.part_lse));
    LODE_TRY(lode_gpubench_spread(b, (uint8_t *)m.part_out, part_out, bytes, m.sets * bytes));
    LODE_TRY(lode_gpubench_spread(b, (uint8_t *)m.part_lse, part_lse, parts * sizeof(float),
                                  m.sets * parts * sizeof(float)));
    LODE_TRY(
        lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, (size_t)m.rows * m.group * m.dim * sizeof(float), (void **)&m.out));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, (size_t)m.rows * m.group * sizeof(float), (void **)&m.lse));
    LODE_TRY(wrong_merges(b, &m, part_out, part_lse, &row->wrong));
    LODE_TRY(lode_gpubench_read_floor(b, bytes, &stretch, &floor));
    row->beside = "device_read";
    LODE_TRY(lode_gpubench_rate(b, row, &figure, (double)bytes, &floor, (double)stretch.bytes));
    snprintf(row->note, sizeof row->note, "%u rows of %u splits", m.rows, m.splits);
    lode_gpubench_row_end(row);
    lode_gpubench_free_all(b);
    return LODE_OK;
}
