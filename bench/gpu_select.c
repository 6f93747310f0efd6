/* SPDX-License-Identifier: Apache-2.0 */
/* Top-k of 8 rows, with and without a guess of the threshold: against a limit of time, or reads of the scores. */
#include <math.h>
#include <string.h>

#include "bench/gpu.h"
#include "landmarks/landmarks.h"

enum { ROWS = 8, PIECES = 3, SINKS = 4, WINDOW = 64, SHARE = 100 /* one in a hundred is chosen */ };

/* Pieces begin at multiples of four; what lies between two of them is no landmark and holds anything. */
typedef struct select {
    uint32_t rows, n, places, group, sets, wanted, count; /* landmarks = tokens; with gaps; picked; picked and forced */
    uint64_t stride;
    lode_piece_t pieces[PIECES];
    uint32_t first[PIECES];        /* place of each piece's first landmark */
    float *host, *fresh, *scores;  /* (rows, group, stride); fresh and scores: on the device, scores sets of them */
    lode_device_choice_t *choices; /* (sets, rows) */
    lode_device_piece_t *device_pieces;
    float *guesses; /* (sets, rows) */
    uint32_t *tokens, *counts;
    void *scratch;
} select_t;

/* Sinks are the first tokens of the first block, the window the last of the last. */
static lode_status_t put_pieces(lode_gpubench_t *b, select_t *s)
{
    lode_device_piece_t pieces[PIECES];
    uint32_t first = 0;
    for (uint32_t p = 0; p < PIECES; p++) {
        uint32_t tokens = p < PIECES - 1 ? s->n / 4 + 7 * p : s->n - first;
        s->first[p] = (s->places + 3) / 4 * 4;
        s->pieces[p] = (lode_piece_t){.tokens = tokens, .landmarks = tokens, .first_token = first};
        pieces[p] = (lode_device_piece_t){.first_token = first,
                                          .tokens = tokens,
                                          .landmarks = tokens,
                                          .first_landmark = s->first[p],
                                          .begin = p ? 0 : SINKS,
                                          .end = p < PIECES - 1 ? tokens : tokens - WINDOW};
        first += tokens;
        s->places = s->first[p] + tokens;
    }
    s->stride = (s->places + 3) / 4 * 4;
    return lode_gpubench_put(b, pieces, sizeof pieces, (void **)&s->device_pieces);
}

static lode_status_t put_scores(lode_gpubench_t *b, select_t *s)
{
    size_t bytes = sizeof(float) * s->rows * s->group * s->stride;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, bytes, (void **)&s->host));
    lode_gpubench_gaussian(b, 1, s->host, bytes / sizeof(float));
    for (uint32_t row = 0; row < s->rows * s->group; row++)
        for (uint32_t p = 1; p < PIECES; p++)
            for (uint64_t i = s->first[p - 1] + s->pieces[p - 1].landmarks; i < s->first[p]; i++)
                s->host[row * s->stride + i] = row % 2 ? NAN : 1e30f;
    s->sets = lode_gpubench_sets(b, bytes);
    LODE_TRY(lode_gpubench_put(b, s->host, bytes, (void **)&s->fresh));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, s->sets * bytes, (void **)&s->scores));
    return lode_gpubench_spread(b, (uint8_t *)s->scores, s->host, bytes, s->sets * bytes);
}

static lode_status_t put_choices(lode_gpubench_t *b, select_t *s)
{
    lode_device_choice_t *choices;
    size_t set = (size_t)s->rows * s->group * s->stride;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * s->sets * s->rows, (void **)&s->guesses));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *choices * s->sets * s->rows, (void **)&choices));
    for (uint32_t i = 0; i < s->sets * s->rows; i++)
        choices[i] =
            (lode_device_choice_t){.scores = s->scores + i / s->rows * set + i % s->rows * s->group * s->stride,
                                   .stride = s->stride,
                                   .landmarks = s->places,
                                   .group = s->group,
                                   .piece_count = PIECES,
                                   .chunk = 1,
                                   .wanted = s->wanted,
                                   .count = s->count,
                                   .tokens = (uint64_t)(i % s->rows) * s->count,
                                   .guess = s->guesses + i};
    return lode_gpubench_put(b, choices, sizeof *choices * s->sets * s->rows, (void **)&s->choices);
}

static lode_status_t select_create(lode_gpubench_t *b, uint32_t n, uint32_t group, select_t *s)
{
    *s = (select_t){.rows = b->small ? 2 : ROWS, .n = n, .group = group, .wanted = n / SHARE};
    s->count = s->wanted + SINKS + WINDOW;
    LODE_TRY(put_pieces(b, s));
    LODE_TRY(put_scores(b, s));
    LODE_TRY(put_choices(b, s));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(uint32_t) * s->rows * s->count, (void **)&s->tokens));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(uint32_t) * s->rows, (void **)&s->counts));
    return lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, b->ops->select_scratch(s->rows, s->places), &s->scratch);
}

/* ------------------------------------------------------------------- works */

static lode_status_t select_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const select_t *s = context;
    LODE_GPU(b, b->ops->select(b->stream, s->choices + (size_t)(turn % s->sets) * s->rows, s->rows, s->device_pieces,
                               s->places, s->scratch, s->tokens, s->counts));
    return LODE_OK;
}

/* A choice among a group's scores overwrites them: the next one wants them fresh. And no guess is what NaN is. */
static lode_status_t renew_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const select_t *s = context;
    uint32_t set = turn % s->sets;
    size_t floats = (size_t)s->rows * s->group * s->stride;
    LODE_GPU(b, b->ops->fill(b->stream, s->guesses + set * s->rows, 0xff, sizeof(float) * s->rows));
    if (s->group > 1)
        LODE_GPU(b, b->ops->copy(b->stream, s->scores + set * floats, s->fresh, sizeof(float) * floats));
    return LODE_OK;
}

static lode_status_t renewed_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    LODE_TRY(renew_enqueue(b, context, turn));
    return select_enqueue(b, context, turn);
}

/* -------------------------------------------------------------- correctness */

/*
 * One row's tokens against lode_choose()'s. A group's softmax is the same to rounding alone, so there tokens may differ
 * whose scores are within it of the threshold: a token that only one of the two chose must have one that only the
 * other chose beside it in score.
 */
static uint64_t wrong_tokens(const select_t *s, const float *combined, const uint32_t *got, const uint32_t *right,
                             uint32_t count)
{
    uint64_t wrong = 0;
    double slack = s->group > 1 ? 1e-5 : 0, least[2] = {INFINITY, INFINITY}, most[2] = {-INFINITY, -INFINITY};
    uint32_t i = 0, j = 0;
    for (uint32_t k = 1; k < count; k++)
        wrong += got[k] <= got[k - 1];
    while (i < count || j < count) {
        bool mine = j == count || (i < count && got[i] < right[j]),
             theirs = i == count || (j < count && right[j] < got[i]);
        uint32_t token = mine ? got[i] : right[j];
        if (token >= s->n)
            return wrong + 1;
        if (mine || theirs) {
            least[theirs] = fmin(least[theirs], combined[token]);
            most[theirs] = fmax(most[theirs], combined[token]);
            wrong += s->group == 1;
        }
        i += !theirs;
        j += !mine;
    }
    double span = fmax(most[0], most[1]) - fmin(least[0], least[1]);
    return wrong + (isfinite(span) && span > slack);
}

static lode_status_t wrong_rows(lode_gpubench_t *b, select_t *s, const uint32_t *got, const uint32_t *counts,
                                uint64_t *wrong)
{
    float *scores;
    uint32_t *scratch, *right;
    size_t floats = (size_t)s->group * s->stride;
    uint32_t held = b->memory_count;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *scores * floats, (void **)&scores));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *scratch * s->n, (void **)&scratch));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *right * (s->count + 1), (void **)&right));
    for (uint32_t row = 0; row < s->rows; row++) {
        lode_choice_t choice = {.pieces = s->pieces,
                                .piece_count = PIECES,
                                .chunk = 1,
                                .group = s->group,
                                .merge = LODE_MERGE_MAX,
                                .budget = s->count,
                                .sinks = SINKS,
                                .window_begin = s->n - WINDOW};
        for (uint32_t i = 0; i < s->group * PIECES; i++)
            memcpy(scores + i / PIECES * s->stride + s->pieces[i % PIECES].first_token,
                   s->host + row * floats + i / PIECES * s->stride + s->first[i % PIECES],
                   sizeof *scores * s->pieces[i % PIECES].landmarks);
        uint64_t count = lode_choose(b->scalar, &choice, scores, s->stride, scratch, right);
        *wrong += count != counts[row] || count != s->count;
        if (count == counts[row] && count == s->count)
            *wrong += wrong_tokens(s, scores, got + (size_t)row * s->count, right, s->count);
    }
    while (b->memory_count > held)
        lode_gpubench_free_last(b);
    return LODE_OK;
}

/* Without a guess, with the one that this left, and with one that is too high. */
static lode_status_t wrong_choices(lode_gpubench_t *b, select_t *s, uint64_t *wrong)
{
    uint32_t *got, counts[ROWS], last = s->sets - 1;
    float guess[ROWS];
    size_t floats = (size_t)s->rows * s->group * s->stride, bytes = sizeof *got * s->rows * s->count;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, bytes, (void **)&got));
    for (int way = 0; way < 3; way++) {
        LODE_TRY(lode_gpubench_poison(b, s->tokens, bytes));
        LODE_TRY(lode_gpubench_poison(b, s->counts, sizeof *counts * s->rows));
        if (way == 0) {
            LODE_TRY(renew_enqueue(b, s, last));
        } else {
            LODE_TRY(lode_gpubench_copy(b, guess, s->guesses + (size_t)last * s->rows, sizeof *guess * s->rows));
            for (uint32_t i = 0; i < s->rows && way == 2; i++)
                guess[i] += 1;
            LODE_TRY(lode_gpubench_copy(b, s->guesses + (size_t)last * s->rows, guess, sizeof *guess * s->rows));
            LODE_TRY(lode_gpubench_copy(b, s->scores + last * floats, s->fresh, sizeof(float) * floats));
        }
        LODE_TRY(select_enqueue(b, s, last));
        LODE_TRY(lode_gpubench_copy(b, got, s->tokens, bytes));
        LODE_TRY(lode_gpubench_copy(b, counts, s->counts, sizeof *counts * s->rows));
        LODE_TRY(wrong_rows(b, s, got, counts, wrong));
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

static void set_target(lode_gpubench_row_t *row, bool million)
{
    row->at_most = true;
    row->judge_us = !million;
    row->target = million ? 2.5 : 20;
}

/* What a group adds is not judged. */
static lode_status_t select_rows(lode_gpubench_t *b, const char *format, uint32_t n, uint32_t group)
{
    bool million = strstr(format, "1M") != NULL;
    bool plain = lode_gpubench_wanted(b, "select", format), guess = lode_gpubench_wanted(b, "select_guess", format);
    lode_gpubench_work_t renewed = {.enqueue = renewed_enqueue}, renew = {.enqueue = renew_enqueue}, floor;
    lode_gpubench_work_t alone = {.enqueue = select_enqueue};
    lode_gpubench_stretch_t stretch;
    uint64_t wrong = 0;
    select_t s;
    if (!plain && !guess)
        return LODE_OK;
    LODE_TRY(select_create(b, n, group, &s));
    LODE_TRY(lode_gpubench_read_floor(b, sizeof(float) * s.rows * group * s.stride, &stretch, &floor));
    LODE_TRY(wrong_choices(b, &s, &wrong));
    renewed.context = renew.context = alone.context = &s;
    renewed.sets = renew.sets = alone.sets = s.sets;
    if (plain) {
        lode_gpubench_row_t *row = lode_gpubench_row(b, "select", format, group, 0);
        row->wrong = wrong;
        row->beside = "device_read";
        if (group == 1)
            set_target(row, million);
        LODE_TRY(lode_gpubench_extra(b, row, &renewed, &renew, &floor));
        lode_gpubench_row_end(row);
    }
    if (guess && group == 1) { /* the scores stay what they are, so the guess is as good as it gets */
        lode_gpubench_row_t *row = lode_gpubench_row(b, "select_guess", format, group, 0);
        row->wrong = wrong;
        row->beside = "device_read";
        set_target(row, million);
        LODE_TRY(lode_gpubench_time(b, row, &alone, &floor));
        lode_gpubench_row_end(row);
    }
    lode_gpubench_free_all(b);
    return LODE_OK;
}

lode_status_t lode_gpubench_select(lode_gpubench_t *b)
{
    LODE_TRY(select_rows(b, "8x128K", (uint32_t)lode_gpubench_size(b, 128 << 10, 517), 1));
    LODE_TRY(select_rows(b, "8x128K", (uint32_t)lode_gpubench_size(b, 128 << 10, 517), 4));
    if (b->small) /* they are alike */
        return LODE_OK;
    LODE_TRY(select_rows(b, "8x1M", 1 << 20, 1));
    return select_rows(b, "8x1M", 1 << 20, 4);
}
