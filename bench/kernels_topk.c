/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact top-k: against the 4-bit scan that made the scores. From the last step's threshold there are two ways: notes
 * that the pass over the group's scores takes on its way, whose cost is what that pass takes longer and the choice from
 * the notes; and a pass of its own, when the scores are ready.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

enum { HEADS = 8, SHARE = 100, GROUP = 4 }; /* one in a hundred is chosen */

typedef struct topk {
    const lode_ops_t *ops;
    float *scores; /* (HEADS, n); in turns with a group's: (HEADS, GROUP, n) */
    size_t n;
    uint32_t *out;
    float *last; /* scores of the step before */
    lode_notes_t notes;
    float guess[HEADS];
} topk_t;

static uint32_t heads_of(const topk_t *t)
{
    return t->n > 500000 ? 1 : HEADS;
}

/* Scores are as they would be left by a scan: somewhere in memory. Units are heads. */
static double topk_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const topk_t *t = context;
    uint32_t heads = heads_of(t);
    (void)part, (void)parts;
    for (uint32_t i = 0; i < heads; i++)
        lode_kernels_keep(t->ops->topk(t->scores + (turn / 2 * heads + i) % HEADS * t->n, t->n, t->n / SHARE, t->out));
    return heads;
}

static double seeded_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    topk_t *t = context;
    uint32_t heads = heads_of(t);
    (void)part, (void)parts;
    for (uint32_t i = 0; i < heads; i++) {
        uint32_t head = (turn / 2 * heads + i) % HEADS;
        float guess = t->guess[head]; /* the same each time */
        lode_kernels_keep(
            lode_topk_seeded(t->ops, t->scores + head * t->n, t->n, t->n / SHARE, &guess, &t->notes, t->out));
    }
    return heads;
}

/* In place, as in a step; no shift, so that a group's maximum stays what it is. */
static const float no_shift[GROUP];

static double group_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    topk_t *t = context;
    uint32_t heads = heads_of(t);
    (void)part, (void)parts;
    for (uint32_t i = 0; i < heads; i++) {
        float *x = t->scores + (turn / 2 * heads + i + HEADS / 2) % HEADS * GROUP * t->n; /* not what was just read */
        t->ops->group_max(x, t->n, no_shift, GROUP, x, t->n);
    }
    return heads;
}

static void note_head(topk_t *t, uint32_t head)
{
    float *x = t->scores + head * GROUP * t->n;
    t->notes.bound = t->guess[head];
    t->notes.count = 0;
    t->ops->group_max_note(x, t->n, no_shift, GROUP, x, t->n, 0, &t->notes);
}

static double note_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    topk_t *t = context;
    uint32_t heads = heads_of(t);
    (void)part, (void)parts;
    for (uint32_t i = 0; i < heads; i++)
        note_head(t, (turn / 2 * heads + i) % HEADS);
    return heads;
}

/* From the notes of head 0, which stay what they are. */
static double choose_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    topk_t *t = context;
    (void)turn, (void)part, (void)parts;
    for (uint32_t i = 0; i < HEADS; i++)
        lode_kernels_keep(t->ops->topk_noted(t->scores, t->n, t->n / SHARE, &t->notes, t->out));
    return HEADS;
}

/* --------------------------------------------------------------- correctness */

typedef struct ranked {
    float score;
    uint32_t index;
} ranked_t;

static int by_rank(const void *a, const void *b)
{
    const ranked_t *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* Indices that a full sort does not choose, or in another order: of topk, then from good and bad guesses. */
static uint64_t wrong_choice(const lode_ops_t *ops, const float *scores, size_t n, size_t k, lode_notes_t *notes)
{
    ranked_t *ranked = malloc((n + 1) * sizeof *ranked);
    uint32_t *out = malloc((n + 1) * sizeof *out);
    uint8_t *chosen = calloc(n + 1, 1);
    size_t wanted = k < n ? k : n;
    float guess = NAN;
    uint64_t wrong = !ranked || !out || !chosen;
    if (!wrong) {
        for (size_t i = 0; i < n; i++)
            ranked[i] = (ranked_t){scores[i], (uint32_t)i};
        qsort(ranked, n, sizeof *ranked, by_rank);
        for (size_t i = 0; i < wanted; i++)
            chosen[ranked[i].index] = 1;
        for (int way = 0; way < 4; way++) {
            guess = way == 3 ? guess + 0.01f : guess; /* 1: none, 2: what 1 gave, 3: too high perhaps */
            size_t got = way ? lode_topk_seeded(ops, scores, n, k, &guess, notes, out) : ops->topk(scores, n, k, out);
            wrong += got != wanted;
            for (size_t i = 0, last = 0; i < got && i < wanted; last = out[i++])
                wrong += out[i] >= n || !chosen[out[i]] || (i && out[i] <= last);
        }
    }
    free(ranked);
    free(out);
    free(chosen);
    return wrong;
}

static uint64_t wrong_choices(lode_kernels_bench_t *b, float *scores, size_t room, lode_notes_t *notes)
{
    const size_t sizes[] = {0, 1, 15, 1000, 40001, 70000};
    uint64_t wrong = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s] < room ? sizes[s] : room;
        for (int input = 0; input <= LODE_INPUTS; input++) {
            if (input < LODE_INPUTS)
                lode_kernels_fill(b, (lode_kernel_input_t)input, 1, scores, n);
            for (size_t i = 0; input == LODE_INPUTS && i < n; i++) /* many ties */
                scores[i] = (float)(int)(lode_kernels_uniform(b) * 9) - 4;
            wrong += wrong_choice(b->ops, scores, n, n / SHARE + 1, notes);
            wrong += wrong_choice(b->ops, scores, n, n / 2, notes);
            wrong += wrong_choice(b->ops, scores, n, n + 3, notes);
        }
    }
    return wrong;
}

/* ---------------------------------------------------------------------- rows */

/* Seconds a head; the other work's rate beside it. */
static double seconds_of(lode_kernels_bench_t *b, const char *name,
                         double (*slice)(void *, uint32_t, uint32_t, uint32_t), topk_t *t,
                         const lode_kernel_work_t *other, double *other_rate)
{
    double rate;
    lode_kernel_work_t work = {slice, t, 1};
    lode_progress_end(&b->progress);
    lode_progress_begin(&b->progress, name, b->slices);
    lode_kernels_measure(b, &work, other, &rate, other_rate);
    return 1 / rate;
}

/* A new row: milliseconds for all heads, at most `target` of what the scan takes that makes as many scores. */
static lode_kernel_row_t *topk_row(lode_kernels_bench_t *b, const char *kernel, const topk_t *t, double target)
{
    lode_kernel_row_t *row = lode_kernels_row(b, kernel, t->n == 1 << 20 ? "1M" : "128K", 4, 128, "ms");
    row->target = target;
    row->at_most = true;
    return row;
}

static void fill_row(lode_kernel_row_t *row, const topk_t *t, double seconds, double landmarks_a_second)
{
    row->figure = HEADS * seconds * 1e3;
    row->floor = (double)HEADS * (double)t->n / landmarks_a_second * 1e3;
    row->ratio = row->figure / row->floor;
}

static void fill_scores(lode_kernels_bench_t *b, float *scores, size_t count)
{
    size_t sample = count < 65536 ? count : 65536;
    lode_kernels_fill(b, LODE_INPUT_RANDOM, 1, scores, sample);
    for (size_t i = sample; i < count; i++) /* cheaper than a logarithm each, and never the same twice */
        scores[i] = scores[i % sample] + scores[i / sample % sample] * 0.1f;
}

/*
 * The guess that a step before would have left, whose scores were like these but for a tenth of their spread. What it
 * leads to is compared with topk.
 */
static uint64_t make_guess(topk_t *t, const float *scores, uint32_t head)
{
    size_t k = t->n / SHARE;
    uint32_t *plain = t->out + k;
    float guess = NAN;
    for (size_t i = 0; i < t->n; i++)
        t->last[i] = scores[i] + 0.1f * scores[(i + 7919) % t->n];
    lode_topk_seeded(t->ops, t->last, t->n, k, &guess, &t->notes, t->out);
    t->guess[head] = guess;
    lode_topk_seeded(t->ops, scores, t->n, k, &guess, &t->notes, t->out);
    t->ops->topk(scores, t->n, k, plain);
    return (uint64_t)(memcmp(t->out, plain, k * sizeof *plain) != 0);
}

/* Plain, and from a guess in a pass of its own. */
static void own_pass_rows(lode_kernels_bench_t *b, topk_t *t, const lode_kernel_work_t *scan, lode_kernel_row_t *plain,
                          lode_kernel_row_t *seeded)
{
    double landmarks, seconds, bytes, unused;
    seeded->wrong = plain->wrong = wrong_choices(b, t->scores, t->n, &t->notes);
    fill_scores(b, t->scores, HEADS * t->n);
    for (uint32_t head = 0; head < HEADS; head++)
        seeded->wrong += make_guess(t, t->scores + head * t->n, head);
    seconds = seconds_of(b, plain->kernel, topk_slice, t, scan, &landmarks);
    fill_row(plain, t, seconds, landmarks);
    seconds = seconds_of(b, seeded->kernel, seeded_slice, t, scan, &landmarks);
    fill_row(seeded, t, seconds, landmarks);
    lode_kernel_stretch_t stretch = {(const uint8_t *)t->scores, HEADS * t->n * 4, heads_of(t) * t->n * 4};
    lode_kernel_work_t read = {lode_kernels_read, &stretch, 1};
    lode_kernels_measure(b, &read, scan, &bytes, &unused); /* the scan leaves the caches to both alike */
    lode_kernels_explain(seeded, "reading the scores and nothing else: %.3g",
                         (double)(HEADS * t->n * 4) / bytes * 1e3 / seeded->floor);
}

/* What notes make the pass over a group's scores longer, and the choice from them. */
static void noted_row(lode_kernels_bench_t *b, topk_t *t, const lode_kernel_work_t *scan, lode_kernel_row_t *row)
{
    double landmarks, heads, seconds;
    lode_kernel_work_t group = {group_slice, t, 1};
    row->wrong = 0;
    fill_scores(b, t->scores, HEADS * GROUP * t->n);
    for (uint32_t head = 0; head < HEADS; head++) {
        float *x = t->scores + head * GROUP * t->n;
        b->scalar->group_max(x, t->n, no_shift, GROUP, x, t->n);
        row->wrong += make_guess(t, x, head);
    }
    seconds = seconds_of(b, row->kernel, note_slice, t, &group, &heads);
    seconds = fmax(seconds - 1 / heads, 0); /* less than nothing is what cannot be told */
    note_head(t, 0);
    seconds += seconds_of(b, row->kernel, choose_slice, t, scan, &landmarks);
    fill_row(row, t, seconds, landmarks);
}

static lode_status_t topk_create(lode_kernels_bench_t *b, size_t n, topk_t *t)
{
    size_t room = 2 * (n / SHARE) + 1024;
    *t = (topk_t){.ops = b->ops, .n = n, .notes.room = room};
    t->scores = aligned_alloc(64, HEADS * GROUP * n * sizeof *t->scores);
    t->out = malloc(n * sizeof *t->out);
    t->last = malloc(n * sizeof *t->last);
    t->notes.index = malloc((room + LODE_NOTES_SLACK) * sizeof *t->notes.index);
    t->notes.score = malloc((room + LODE_NOTES_SLACK) * sizeof *t->notes.score);
    if (!t->scores || !t->out || !t->last || !t->notes.index || !t->notes.score)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu scores", HEADS * GROUP * n);
    return LODE_OK;
}

static void topk_free(topk_t *t)
{
    free(t->scores);
    free(t->out);
    free(t->last);
    free(t->notes.index);
    free(t->notes.score);
}

static lode_status_t topk_size(lode_kernels_bench_t *b, size_t n, const lode_kernel_work_t *scan)
{
    topk_t t = {.n = n};
    lode_kernel_row_t *plain = topk_row(b, "topk", &t, 0.15), *seeded = topk_row(b, "topk_seeded", &t, 0.03);
    lode_kernel_row_t *noted = topk_row(b, "topk_noted", &t, 0.03);
    if (!b->ops)
        return LODE_OK;
    lode_status_t status = topk_create(b, n, &t);
    if (status == LODE_OK) {
        own_pass_rows(b, &t, scan, plain, seeded);
        noted_row(b, &t, scan, noted);
    }
    topk_free(&t);
    return status;
}

lode_status_t lode_kernels_topk(lode_kernels_bench_t *b)
{
    lode_kernel_work_t scan = {0};
    if (b->ops)
        LODE_TRY(lode_kernels_scan4_create(b, &scan));
    lode_status_t status = topk_size(b, 128 << 10, &scan);
    if (status == LODE_OK)
        status = topk_size(b, 1 << 20, &scan);
    if (b->ops)
        lode_kernels_scan4_free(&scan);
    return status;
}
