/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>

#include "landmarks/inside.h"

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

lode_contest_t lode_contest_of(const lode_choice_t *choice, const lode_piece_t *piece)
{
    uint64_t first = piece->first_token;
    uint64_t begin = choice->sinks > first ? least(choice->sinks - first, piece->tokens) : 0;
    uint64_t end = choice->window_begin > first ? least(choice->window_begin - first, piece->tokens) : 0;
    return (lode_contest_t){begin, end > begin ? end : begin};
}

/* A walk over ascending landmarks of the view: the piece it stands in. */
typedef struct walk {
    uint32_t piece;
    uint64_t base; /* first landmark of the piece, counted over the view */
    lode_contest_t contest;
} walk_t;

static walk_t walk_begin(const lode_choice_t *choice)
{
    return (walk_t){.contest = lode_contest_of(choice, &choice->pieces[0])};
}

/* The tokens of a landmark that compete. */
static lode_contest_t walk_to(const lode_choice_t *choice, walk_t *walk, uint64_t landmark)
{
    while (landmark - walk->base >= choice->pieces[walk->piece].landmarks) {
        walk->base += choice->pieces[walk->piece++].landmarks;
        walk->contest = lode_contest_of(choice, &choice->pieces[walk->piece]);
    }
    uint64_t begin = (landmark - walk->base) * choice->chunk, end = least(begin + choice->chunk, walk->contest.end);
    if (begin < walk->contest.begin)
        begin = walk->contest.begin;
    return (lode_contest_t){begin,
                            end > begin ? end : begin}; /* none: forced, but scores that overflowed rank no higher */
}

float lode_sums_join(const float *sums, size_t stride, size_t n)
{
    float most = -INFINITY;
    double total = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, sums[i * stride]);
    if (most == -INFINITY)
        return most;
    for (size_t i = 0; i < n; i++)
        total += exp((double)sums[i * stride] - (double)most);
    return (float)((double)most + log(total));
}

/* What each row's scores are taken off by. A row that overflowed stays as it is, or infinity less infinity were NaN. */
static void shifts_of(const lode_ops_t *ops, const lode_choice_t *choice, const float *scores, size_t stride, size_t n,
                      float *shift)
{
    assert(choice->group <= LODE_MAX_GROUP && choice->merge == LODE_MERGE_MAX);
    for (uint32_t g = 0; g < choice->group; g++) {
        shift[g] = choice->shift ? choice->shift[g] : ops->logsumexp(scores + g * stride, n);
        shift[g] = isfinite(shift[g]) ? shift[g] : 0;
    }
}

/* Row 0 of a stretch becomes the score of each landmark, which are noted; the first is landmark `first` of the view. */
static void stretch_combine(const lode_ops_t *ops, const lode_choice_t *choice, const float *shift, float *scores,
                            size_t stride, size_t n, uint32_t first)
{
    if (choice->group > 1 && choice->notes)
        ops->group_max_note(scores, stride, shift, choice->group, scores, n, first, choice->notes);
    else if (choice->group > 1)
        ops->group_max(scores, stride, shift, choice->group, scores, n);
    else if (choice->notes)
        ops->note(scores, n, first, choice->notes);
}

/* Row 0 becomes the score of each landmark that competes; what is forced leaves the competition. */
static void scores_combine(const lode_ops_t *ops, const lode_choice_t *choice, float *scores, size_t stride, size_t n)
{
    float shift[LODE_MAX_GROUP];
    if (choice->group > 1)
        shifts_of(ops, choice, scores, stride, n, shift);
    if (choice->notes) {
        choice->notes->count = 0;
        if (!isfinite(choice->notes->bound)) /* at −infinity what is forced would have to be noted too */
            choice->notes->bound = NAN;
    }
    size_t base = 0, from = 0, to = 0; /* a stretch goes on over pieces that compete as a whole */
    for (uint32_t p = 0; p < choice->piece_count; base += choice->pieces[p++].landmarks) {
        const lode_piece_t *piece = &choice->pieces[p];
        lode_contest_t contest = lode_contest_of(choice, piece);
        uint64_t begin = least(contest.begin / choice->chunk, piece->landmarks);
        uint64_t end = contest.end > contest.begin ? ceil_div(contest.end, choice->chunk) : begin;
        if (base + begin != to) {
            stretch_combine(ops, choice, shift, scores + from, stride, to - from, (uint32_t)from);
            from = base + begin;
        }
        to = base + end;
        for (uint64_t i = 0; i < begin; i++)
            scores[base + i] = -INFINITY;
        for (uint64_t i = end; i < piece->landmarks; i++)
            scores[base + i] = -INFINITY;
    }
    stretch_combine(ops, choice, shift, scores + from, stride, to - from, (uint32_t)from);
}

static uint64_t picks_tokens(const lode_choice_t *choice, const uint32_t *picks, size_t count)
{
    uint64_t tokens = 0;
    walk_t walk = walk_begin(choice);
    for (size_t i = 0; i < count; i++) {
        lode_contest_t chunk = walk_to(choice, &walk, picks[i]);
        tokens += chunk.end - chunk.begin;
    }
    return tokens;
}

/* The one to give up first: the lowest score, of equals the last. */
static size_t worst(const float *scores, const uint32_t *picks, size_t count)
{
    size_t found = 0;
    for (size_t i = 1; i < count; i++) {
        if (scores[picks[i]] <= scores[picks[found]])
            found = i;
    }
    return found;
}

/* A choice of landmarks; `cut` gives only its first `cut_tokens` competing tokens. */
typedef struct picks {
    uint32_t *landmarks;
    size_t count;
    uint64_t cut, cut_tokens;
} picks_t;

/* Shed `over` tokens, less than a chunk, from the low end of the ranking. */
static void picks_cut(const lode_choice_t *choice, const float *scores, uint64_t over, picks_t *picks)
{
    while (over > 0) {
        size_t at = worst(scores, picks->landmarks, picks->count);
        walk_t walk = walk_begin(choice);
        lode_contest_t chunk = walk_to(choice, &walk, picks->landmarks[at]);
        uint64_t tokens = chunk.end - chunk.begin;
        if (tokens > over) {
            picks->cut = picks->landmarks[at];
            picks->cut_tokens = tokens - over;
            return;
        }
        over -= tokens;
        for (picks->count--; at < picks->count; at++)
            picks->landmarks[at] = picks->landmarks[at + 1];
    }
}

/*
 * Take landmarks from the best down until `wanted` tokens are full. Chunks at the end of a block or on the edge of
 * sinks and window give fewer tokens than others, and how many of those win is known only afterwards: then ask for
 * more.
 */
static picks_t picks_make(const lode_ops_t *ops, const lode_choice_t *choice, const float *scores, size_t n,
                          uint64_t wanted, uint32_t *scratch)
{
    picks_t picks = {.landmarks = scratch, .cut = UINT64_MAX};
    uint64_t tokens = 0, asked;
    do {
        asked = picks.count + ceil_div(wanted - tokens, choice->chunk);
        picks.count = choice->notes ? ops->topk_noted(scores, n, asked, choice->notes, scratch)
                                    : ops->topk(scores, n, asked, scratch);
        tokens = picks_tokens(choice, scratch, picks.count);
    } while (tokens < wanted && picks.count == asked);
    if (tokens > wanted)
        picks_cut(choice, scores, tokens - wanted, &picks);
    return picks;
}

static uint32_t *emit(uint32_t *out, uint64_t begin, uint64_t end)
{
    for (uint64_t token = begin; token < end; token++)
        *out++ = (uint32_t)token;
    return out;
}

/* Forced and picked tokens of all pieces, ascending. */
static uint64_t tokens_write(const lode_choice_t *choice, const picks_t *picks, uint32_t *tokens)
{
    uint32_t *out = tokens;
    uint64_t base = 0;
    size_t next = 0;
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        const lode_piece_t *piece = &choice->pieces[p];
        uint64_t first = piece->first_token;
        walk_t walk = {.piece = p, .base = base, .contest = lode_contest_of(choice, piece)};
        base += piece->landmarks;
        out = emit(out, first, first + walk.contest.begin);
        for (; next < picks->count && picks->landmarks[next] < base; next++) {
            lode_contest_t chunk = walk_to(choice, &walk, picks->landmarks[next]);
            if (picks->landmarks[next] == picks->cut)
                chunk.end = chunk.begin + picks->cut_tokens;
            out = emit(out, first + chunk.begin, first + chunk.end);
        }
        out = emit(out, first + walk.contest.end, first + piece->tokens);
    }
    return (uint64_t)(out - tokens);
}

static uint64_t tokens_all(const lode_choice_t *choice, uint32_t *tokens)
{
    uint32_t *out = tokens;
    for (uint32_t p = 0; p < choice->piece_count; p++)
        out = emit(out, choice->pieces[p].first_token, choice->pieces[p].first_token + choice->pieces[p].tokens);
    return (uint64_t)(out - tokens);
}

uint64_t lode_choose(const lode_ops_t *ops, const lode_choice_t *choice, float *scores, size_t stride,
                     uint32_t *scratch, uint32_t *tokens)
{
    uint64_t visible = 0, contested = 0, landmarks = 0;
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        lode_contest_t contest = lode_contest_of(choice, &choice->pieces[p]);
        visible += choice->pieces[p].tokens;
        landmarks += choice->pieces[p].landmarks;
        contested += contest.end - contest.begin;
    }
    uint64_t forced = visible - contested, wanted = choice->budget > forced ? choice->budget - forced : 0;
    if (wanted >= contested)
        return tokens_all(choice, tokens);
    picks_t picks = {.landmarks = scratch, .cut = UINT64_MAX};
    if (wanted > 0) {
        scores_combine(ops, choice, scores, stride, landmarks);
        picks = picks_make(ops, choice, scores, landmarks, wanted, scratch);
    }
    return tokens_write(choice, &picks, tokens);
}
