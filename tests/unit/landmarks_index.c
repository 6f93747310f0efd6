/* SPDX-License-Identifier: Apache-2.0 */
/* The index of two levels: what it keeps, whom it serves, and how much of a full scan's choice it gives. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "landmarks/index.h"

enum { HEADS = 2, DIM = 64, GROUP = 4, BLOCKS = 3, MIB = 1 << 20 };

static const lode_ops_t *ops;

static void setup(void)
{
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
}

TestSuite(index, .init = setup, .timeout = 60);

static double uniform(uint64_t *seed)
{
    *seed = lode_mix(*seed, 17);
    return ((double)(*seed >> 11) + 0.5) * 0x1p-53;
}

static float gauss(uint64_t *seed)
{
    double radius = sqrt(-2 * log(uniform(seed)));
    return (float)(radius * cos(6.283185307179586 * uniform(seed)));
}

/* --------------------------------------------------------------- a small world */

typedef struct world {
    lode_store_params_t params;
    lode_store_h store;
    float *keys[BLOCKS]; /* (tokens, heads, D) */
    uint64_t tokens[BLOCKS];
} world_t;

static world_t world_create(const lode_ops_t *with)
{
    world_t w = {.params = {.fd = -1, .bytes = 64 * MIB, .layers = 1, .dim = DIM, .max_blocks = 8, .ops = with}};
    w.params.base = mmap(NULL, w.params.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(w.params.base != MAP_FAILED);
    cr_assert(lode_store_create(&w.params, &w.store) == LODE_OK, "%s", lode_error_message());
    return w;
}

static void world_destroy(world_t *w)
{
    lode_store_destroy(&w->store);
    munmap(w->params.base, w->params.bytes);
    for (uint32_t i = 0; i < BLOCKS; i++)
        free(w->keys[i]);
}

/* Keys whose neighbours are alike: a topic for each four tokens, and noise. */
static void keys_make(world_t *w, uint32_t block, uint64_t tokens)
{
    uint64_t seed = 100 + block;
    w->tokens[block] = tokens;
    w->keys[block] = malloc(tokens * HEADS * DIM * sizeof(float));
    float topic[HEADS * DIM];
    for (uint64_t t = 0; t < tokens; t++)
        for (uint32_t i = 0; i < HEADS * DIM; i++) {
            topic[i] = t % 4 ? topic[i] : gauss(&seed);
            w->keys[block][t * HEADS * DIM + i] = topic[i] + 0.7f * gauss(&seed);
        }
}

static lode_block_info_t info_of(uint32_t block, const char *spec)
{
    lode_block_info_t info = {.id = 10 + block, .replicas = 1, .kv_head_end = HEADS};
    cr_assert(lode_landmark_parse(spec, &info.landmark) == LODE_OK, "%s", lode_error_message());
    snprintf(info.name, sizeof info.name, "block %u", block);
    return info;
}

/* Put and publish tokens [from, to) of a block; from is a multiple of a page. */
static void publish(const world_t *w, lode_store_h store, uint32_t block, const lode_block_info_t *info, uint64_t from,
                    uint64_t to)
{
    uint8_t rows[LODE_PAGE_TOKENS * HEADS * (2 * DIM + 2)];
    float mean[HEADS * DIM];
    lode_landmark_mean(HEADS, DIM, w->keys[block], w->tokens[block] < 512 ? w->tokens[block] : 512, mean);
    for (uint64_t first = from; first < to; first += LODE_PAGE_TOKENS) {
        uint32_t count = (uint32_t)(to - first < LODE_PAGE_TOKENS ? to - first : LODE_PAGE_TOKENS);
        lode_landmark_build(ops, &info->landmark, HEADS, DIM, w->keys[block] + first * HEADS * DIM, count,
                            info->landmark.centre ? mean : NULL, NULL, rows);
        cr_assert(lode_store_put(store, info->id, 0, (uint32_t)(first / LODE_PAGE_TOKENS), count, rows,
                                 info->landmark.centre && first == 0 ? mean : NULL, NULL, 0) == LODE_OK);
    }
    cr_assert(lode_store_publish(store, info->id, 0, to) == LODE_OK, "%s", lode_error_message());
}

static uint32_t block_add(world_t *w, uint32_t block, const char *spec, uint64_t tokens)
{
    lode_block_info_t info = info_of(block, spec);
    uint32_t slot = 0;
    if (!w->keys[block])
        keys_make(w, block, tokens);
    cr_assert(lode_store_add(w->store, &info, &slot) == LODE_OK, "%s", lode_error_message());
    publish(w, w->store, block, &info, 0, tokens);
    return slot;
}

/* Representatives' scores of one head by one query; @return how many. */
static uint64_t index_scores(lode_store_h store, uint32_t slot, uint32_t head, const float *q, float *out)
{
    lode_landmark_query_t query;
    const lode_landmark_spec_t kept = lode_index_spec(&lode_store_info(store, slot)->landmark);
    uint64_t first = 0, count;
    const uint8_t *tiles;
    ops->query_prepare(&kept, DIM, q, 0, &query);
    for (; (count = lode_store_index(store, slot, 0, head, first, UINT64_MAX, &tiles)); first += count)
        ops->landmark_score(&kept, DIM, tiles, count, &query, 1, out + first, 0, NULL);
    return first;
}

/* -------------------------------------------------------------------- keeping */

static const char *const specs[] = {"landmark2:index",    "landmark1:index",           "landmark4:c4:index",
                                    "landmark8:c2:index", "landmark2:higgs:index",     "landmark16:c16:index",
                                    "landmark4:index",    "landmark4:higgs:c16:index", "landmark2:c8:nocentre:index"};

static void score_all(lode_store_h store, uint32_t slot, uint64_t tokens, const float *q, float *out)
{
    float *scratch = aligned_alloc(64, 64 * 256 * sizeof(float));
    lode_store_score(store, slot, 0, 1, tokens, q, 1, NULL, out, 0, scratch);
    free(scratch);
}

/* A representative scores about as the mean of its landmarks: as they are means and 4 bits are not. */
Test(index, represents)
{
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        world_t w = world_create(ops);
        const uint64_t tokens = 2000;
        uint32_t slot = block_add(&w, 0, specs[i], tokens);
        const lode_landmark_spec_t *spec = &lode_store_info(w.store, slot)->landmark;
        uint64_t landmarks = lode_landmarks_of(spec, tokens), seed = 5;
        float q[DIM], turned[DIM], fine[2048], coarse[512];
        for (uint32_t d = 0; d < DIM; d++)
            q[d] = turned[d] = gauss(&seed);
        if (spec->codec != LODE_LANDMARK_MEAN)
            ops->hadamard(turned, 1, DIM);
        cr_assert(eq(u64, index_scores(w.store, slot, 1, turned, coarse), landmarks / LODE_INDEX_GROUP), "%s",
                  specs[i]);
        score_all(w.store, slot, tokens, q, fine);
        const float *mean = lode_store_mean(w.store, slot, 0, 1);
        float bias = 0;
        if (mean)
            ops->dot_rows(mean, q, 1, DIM, &bias);
        double error = 0, size = 0;
        for (uint64_t g = 0; g < landmarks / LODE_INDEX_GROUP; g++) {
            double wanted = 0;
            for (uint32_t j = 0; j < LODE_INDEX_GROUP; j++)
                wanted += (fine[g * LODE_INDEX_GROUP + j] - bias) / LODE_INDEX_GROUP;
            error += (coarse[g] - wanted) * (coarse[g] - wanted);
            size += wanted * wanted;
        }
        cr_assert(lt(dbl, sqrt(error / size), 0.2), "%s", specs[i]);
        world_destroy(&w);
    }
}

/* Appended piece by piece, also by another keeper, or after a put that came twice: the same index to the bit. */
Test(index, grows)
{
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        world_t once = world_create(ops), often = world_create(ops);
        const uint64_t tokens = 3000;
        uint64_t seed = 6;
        float q[DIM], wanted[1024], got[1024];
        lode_store_h heir;
        uint32_t slot = block_add(&once, 0, specs[i], tokens), other = 0;
        lode_block_info_t info = info_of(0, specs[i]);
        keys_make(&often, 0, tokens);
        cr_assert(lode_store_add(often.store, &info, &other) == LODE_OK);
        publish(&often, often.store, 0, &info, 0, 64);
        cr_assert(eq(u64, index_scores(often.store, other, 0, q, got), 64 / info.landmark.chunk / LODE_INDEX_GROUP));
        publish(&often, often.store, 0, &info, 64, 1024);
        cr_assert(lode_store_attach(&often.params, &heir) == LODE_OK);
        publish(&often, heir, 0, &info, 960, 1920); /* one page comes again */
        publish(&often, heir, 0, &info, 1920, tokens);
        for (uint32_t d = 0; d < DIM; d++)
            q[d] = gauss(&seed);
        uint64_t groups = index_scores(once.store, slot, 0, q, wanted);
        cr_assert(eq(u64, groups, lode_landmarks_of(&info.landmark, tokens) / LODE_INDEX_GROUP), "%s", specs[i]);
        cr_assert(eq(u64, index_scores(heir, other, 0, q, got), groups), "%s", specs[i]);
        cr_assert(memcmp(wanted, got, groups * sizeof *got) == 0, "%s", specs[i]);
        lode_store_destroy(&heir);
        world_destroy(&once);
        world_destroy(&often);
    }
}

Test(index, goes_with_its_block)
{
    world_t w = world_create(ops);
    const uint8_t *tiles;
    uint32_t slot = block_add(&w, 0, "landmark2:index", 500), plain = block_add(&w, 1, "landmark2:noindex", 500);
    cr_assert(eq(u64, lode_store_index(w.store, slot, 0, 0, 0, 10, &tiles), 10));
    cr_assert(eq(u64, lode_store_index(w.store, plain, 0, 0, 0, 10, &tiles), 0));
    uint64_t used = lode_store_used(w.store);
    cr_assert(lode_store_drop(w.store, 10) == LODE_OK);
    lode_store_collect(w.store, lode_now_ns() + 1);
    cr_assert(eq(u64, lode_store_index(w.store, slot, 0, 0, 0, 10, &tiles), 0));
    cr_assert(lt(u64, lode_store_used(w.store), used));
    cr_assert(eq(u32, block_add(&w, 0, "landmark2:index", 500), slot)); /* where the old one was */
    cr_assert(eq(u64, lode_store_index(w.store, slot, 0, 0, 0, 1000, &tiles), 125));
    world_destroy(&w);
}

/* Long blocks keep one unasked; an index that no version knows is refused. */
Test(index, kept_by_whom)
{
    lode_block_info_t info = info_of(0, "landmark2:c4");
    info.expected_tokens = 4 * LODE_INDEX_KEEP - 1;
    cr_assert(not(lode_index_kept(&info)));
    info.expected_tokens++;
    cr_assert(lode_index_kept(&info));
    info.landmark.index = LODE_INDEX_OFF;
    cr_assert(not(lode_index_kept(&info)));
    info.landmark.index = (lode_landmark_index_t)3;
    cr_assert(not(lode_landmark_spec_valid(&info.landmark, DIM)));
}

/* ------------------------------------------------------------------- choosing */

typedef struct asked {
    lode_piece_t pieces[BLOCKS];
    lode_index_part_t parts[BLOCKS];
    lode_choice_t choice;
    float q[GROUP * DIM];
} asked_t;

/* A view of all blocks, which begin apart from each other, as of a row that sees `hidden` tokens less of each. */
static void ask(const world_t *w, const uint32_t *slots, uint32_t group, uint64_t hidden, uint64_t budget, asked_t *a)
{
    uint64_t first = 0, seed = 9;
    *a = (asked_t){0};
    for (uint32_t i = 0; i < BLOCKS; i++, first += 100) {
        uint64_t tokens = w->tokens[i] - hidden;
        a->pieces[i] =
            (lode_piece_t){tokens, lode_landmarks_of(&lode_store_info(w->store, slots[i])->landmark, tokens), first};
        a->parts[i] = (lode_index_part_t){.slot = slots[i], .q = a->q};
        first += w->tokens[i];
    }
    for (uint32_t g = 0; g < group; g++) /* a key of block 1 each, and its neighbours */
        for (uint32_t d = 0; d < DIM; d++)
            a->q[g * DIM + d] = 0.3f * w->keys[1][(97 + 400 * g) * HEADS * DIM + d] + 0.1f * gauss(&seed);
    a->choice = (lode_choice_t){.pieces = a->pieces,
                                .piece_count = BLOCKS,
                                .chunk = lode_store_info(w->store, slots[0])->landmark.chunk,
                                .group = group,
                                .merge = LODE_MERGE_MAX,
                                .budget = budget,
                                .sinks = 5,
                                .window_begin = a->pieces[2].first_token + a->pieces[2].tokens - 37};
}

static uint64_t choose_linear(lode_store_h store, const asked_t *a, uint32_t *tokens)
{
    size_t stride = 0, at = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
        stride += a->pieces[i].landmarks;
    float *scores = aligned_alloc(64, (a->choice.group * stride + 16) / 16 * 64 + 64);
    float *scratch = aligned_alloc(64, GROUP * DIM / 2 * 256 * sizeof(float));
    uint32_t *picks = malloc(stride * sizeof *picks);
    for (uint32_t i = 0; i < BLOCKS; at += a->pieces[i++].landmarks)
        lode_store_score(store, a->parts[i].slot, 0, 0, a->pieces[i].tokens, a->q, a->choice.group, NULL, scores + at,
                         stride, scratch);
    uint64_t count = lode_choose(ops, &a->choice, scores, stride, picks, tokens);
    free(scores);
    free(scratch);
    free(picks);
    return count;
}

static uint64_t choose_by_index(lode_store_h store, const asked_t *a, uint32_t *tokens)
{
    lode_index_plan_t plan;
    cr_assert(lode_index_pays(store, &a->choice, a->parts, &plan));
    cr_assert(lt(u64, plan.visited, plan.groups));
    void *work = aligned_alloc(64, (plan.work_bytes + 63) / 64 * 64);
    memset(work, 0xff, plan.work_bytes); /* NaNs: nothing may be read that was not written */
    uint64_t count = lode_index_choose(store, 0, 0, &a->choice, a->parts, &plan, work, tokens);
    free(work);
    return count;
}

/* What the index chose, and how much of that a full scan chooses too. */
static double recall_of(const asked_t *a, const uint32_t *wanted, const uint32_t *got, uint64_t count)
{
    uint64_t both = 0, forced = 0;
    for (uint64_t i = 0, j = 0; i < count; i++) {
        cr_assert(i == 0 || got[i] > got[i - 1]);
        forced += got[i] < a->choice.sinks || got[i] >= a->choice.window_begin;
        while (j < count && wanted[j] < got[i])
            j++;
        both += j < count && wanted[j] == got[i];
    }
    cr_assert(eq(u64, forced, 5 + 37));
    return (double)both / (double)count;
}

static void check_choice(const char *const *texts, uint32_t group, uint64_t hidden, double least)
{
    world_t w = world_create(ops);
    static uint32_t wanted[4096], got[4096];
    uint32_t slots[BLOCKS];
    asked_t a;
    for (uint32_t i = 0; i < BLOCKS; i++)
        slots[i] = block_add(&w, i, texts[i], 4000 + 1031 * i);
    ask(&w, slots, group, hidden, 300, &a);
    uint64_t count = choose_by_index(w.store, &a, got);
    cr_assert(eq(u64, count, 300), "%s", texts[0]);
    cr_assert(eq(u64, choose_linear(w.store, &a, wanted), 300), "%s", texts[0]);
    double recall = recall_of(&a, wanted, got, count);
    cr_assert(ge(dbl, recall, least), "%s, group %u, hidden %u", texts[0], group, (unsigned)hidden);
    world_destroy(&w);
}

Test(index, chooses)
{
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        const char *texts[BLOCKS] = {specs[i], specs[i], specs[i]};
        check_choice(texts, GROUP, 0, 0.4);
        check_choice(texts, 1, 0, 0.4);
        check_choice(texts, GROUP, 77, 0.4); /* groups and pages that are seen in part */
    }
}

/* Blocks with an index beside blocks without: the latter are looked at in full. */
Test(index, beside_blocks_without)
{
    static const char *const texts[] = {"landmark2", "landmark2:index", "landmark2:noindex"};
    check_choice(texts, GROUP, 0, 0.9);
}

/* All ranks of a node, whatever their processors have, choose the same. */
Test(index, same_for_all)
{
    static uint32_t first[4096], other[4096];
    static const char *const levels[] = {"scalar", "avx2", "avx512"};
    world_t w = world_create(ops);
    uint32_t slots[BLOCKS];
    asked_t a;
    for (uint32_t i = 0; i < BLOCKS; i++)
        slots[i] = block_add(&w, i, "landmark2:index", 4000);
    ask(&w, slots, 1, 0, 300, &a);
    uint64_t count = choose_by_index(w.store, &a, first);
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        lode_store_params_t params = w.params;
        lode_store_h store;
        if (lode_ops_get(levels[i], &params.ops) != LODE_OK)
            continue; /* not on this processor */
        cr_assert(lode_store_attach(&params, &store) == LODE_OK);
        cr_assert(eq(u64, choose_by_index(store, &a, other), count), "%s", levels[i]);
        cr_assert(memcmp(first, other, count * sizeof *first) == 0, "%s", levels[i]);
        lode_store_destroy(&store);
    }
    world_destroy(&w);
}

/* Unasked it serves only where it pays; asked, wherever there is something to skip. */
Test(index, pays)
{
    world_t w = world_create(ops);
    lode_index_plan_t plan;
    uint32_t slots[BLOCKS];
    asked_t a;
    for (uint32_t i = 0; i < BLOCKS; i++)
        slots[i] = block_add(&w, i, i == 1 ? "landmark2:index" : "landmark2", 4000);
    ask(&w, slots, GROUP, 0, 300, &a);
    cr_assert(lode_index_pays(w.store, &a.choice, a.parts, &plan));
    cr_assert(ge(u64, plan.forced, 2000)); /* the blocks without */
    a.choice.budget = 8000;
    cr_assert(not(lode_index_pays(w.store, &a.choice, a.parts, &plan)), "every group would be looked into");
    a.choice.budget = 300;
    a.parts[1].slot = slots[0];
    cr_assert(not(lode_index_pays(w.store, &a.choice, a.parts, &plan)), "nobody asked");
    lode_index_plan_t large = {.landmarks = 1 << 24, .groups = 1 << 22, .visited = 1 << 19};
    cr_assert(lode_index_worth(&a.choice, &large));
    large.visited = 1 << 20;
    cr_assert(not(lode_index_worth(&a.choice, &large)), "too little to skip");
    large = (lode_index_plan_t){.landmarks = 1 << 16, .groups = 1 << 14, .visited = 1 << 11};
    cr_assert(not(lode_index_worth(&a.choice, &large)), "too few landmarks");
    world_destroy(&w);
}
