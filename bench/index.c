/* SPDX-License-Identifier: Apache-2.0 */
/* A scan of all landmarks, and the index over them, in turns: what each takes, and what the index misses. */
#include "bench/index.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/options.h"

enum { RIVALS_MOST = 262144 /* landmarks: a rival keeps their keys in fp32, twice */ };

static const lode_option_t index_options[] = {
    {"least", "65536", LODE_OPTION_COUNT, NULL, 4096, 1 << 24,
     "landmarks a head to begin with; then four times as many"},
    {"most", "4194304", LODE_OPTION_COUNT, NULL, 4096, 1 << 24,
     "landmarks a head to end with: 16777216 wants 4 GiB and some minutes"},
    {"policy", "landmark2", LODE_OPTION_TEXT, NULL, 0, 0, "landmarks, as of bench step; their index is always made"},
    {"slices", "12", LODE_OPTION_COUNT, NULL, 1, 1000, "queries of each figure, in turns with the scan of all"},
    {"no-rivals", NULL, LODE_OPTION_FLAG, NULL, 0, 0, "without what other libraries take (up to 262144 landmarks)"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of the generated keys and queries"},
    {"quick", NULL, LODE_OPTION_FLAG, NULL, 0, 0, "16384 landmarks, 3 queries: all checks, but figures of no worth"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file as one JSON object"},
    {NULL},
};

static const struct {
    const char *name;
    uint64_t tokens; /* 0: a share */
    double share;
} budgets[] = {{"1024 tokens", 1024, 0}, {"1 %", 0, 0.01}, {"3.125 %", 0, 0.03125}};

static void print_help(void)
{
    printf("lodemark bench index [OPTIONS]\n\n"
           "Scoring and choosing for one KV head of four query heads: over all landmarks, and by the index of two "
           "levels,\nin turns, with the index's recall. Heads that look up facts (sharp) and that ask for a topic "
           "(broad) have rows of\ntheir own. One process, one thread, no cluster.\n\nOptions\n");
    lode_options_help(index_options, stdout);
}

lode_index_row_t *lode_index_row(lode_index_bench_t *b, const lode_index_data_t *d, const char *what, const char *kind,
                                 const char *budget)
{
    lode_index_row_t *row = &b->rows[b->count < LODE_INDEX_ROWS ? b->count++ : LODE_INDEX_ROWS - 1];
    *row = (lode_index_row_t){.kind = kind,
                              .what = what,
                              .landmarks = d->landmarks,
                              .figure_ms = NAN,
                              .linear_ms = NAN,
                              .visited = NAN,
                              .recall = NAN,
                              .mass = NAN};
    snprintf(row->budget, sizeof row->budget, "%s", budget);
    return row;
}

/* ------------------------------------------------------------------ in turns */

/* Buffers for one size and budget. */
typedef struct turn {
    const lode_index_data_t *data;
    uint32_t head;
    lode_choice_t choice;
    lode_index_plan_t plan;
    lode_piece_t *pieces;
    lode_index_part_t *parts;
    lode_scorer_t scorer;
    lode_notes_t notes;
    float *q, *scores, *kept, *sums; /* kept: the scores before choosing takes them; sums: of slices */
    size_t stride;
    uint32_t *scratch, *linear, *chosen;
    void *work;
    float *score_scratch;
} turn_t;

/* As a step does it: slices whose exponentials are summed while they are cached, top-k from the last query's threshold.
 */
static uint64_t choose_linear(const lode_index_bench_t *b, turn_t *t, bool keep)
{
    enum { SLICE = 8192 };
    float shift[LODE_INDEX_QUERIES], *out = t->scores;
    size_t slices = 0;
    for (uint32_t p = 0; p < t->choice.piece_count; out += t->pieces[p++].landmarks) {
        lode_scorer_prepare(&t->scorer, t->data->store, t->parts[p].slot, 0, t->head, t->parts[p].q, LODE_INDEX_QUERIES,
                            NULL);
        for (uint64_t first = 0; first < t->pieces[p].landmarks; first += SLICE, slices++) {
            uint64_t left = t->pieces[p].landmarks - first, n = left < SLICE ? left : SLICE;
            lode_scorer_score(&t->scorer, first, first + n, out + first, t->stride, t->score_scratch);
            for (uint32_t g = 0; g < LODE_INDEX_QUERIES; g++)
                t->sums[slices * LODE_INDEX_QUERIES + g] = b->ops->logsumexp(out + first + g * t->stride, n);
        }
    }
    for (uint32_t g = 0; g < LODE_INDEX_QUERIES; g++)
        shift[g] = lode_sums_join(t->sums + g, LODE_INDEX_QUERIES, slices);
    if (keep)
        memcpy(t->kept, t->scores, LODE_INDEX_QUERIES * t->stride * sizeof *t->kept);
    lode_choice_t choice = t->choice;
    t->notes.bound = t->notes.next;
    t->notes.count = 0;
    choice.shift = shift;
    choice.notes = &t->notes;
    return lode_choose(b->ops, &choice, t->scores, t->stride, t->scratch, t->linear);
}

static uint64_t choose_by_index(turn_t *t)
{
    return lode_index_choose(t->data->store, 0, t->head, &t->choice, t->parts, &t->plan, t->work, t->chosen);
}

static void turn_free(turn_t *t)
{
    free(t->pieces);
    free(t->parts);
    free(t->q);
    free(t->scores);
    free(t->kept);
    free(t->sums);
    free(t->notes.score);
    free(t->notes.index);
    free(t->scratch);
    free(t->linear);
    free(t->chosen);
    free(t->work);
    free(t->score_scratch);
}

static lode_status_t turn_create(const lode_index_bench_t *b, const lode_index_data_t *d, uint64_t budget, turn_t *t)
{
    uint32_t documents = d->documents;
    size_t rows = LODE_INDEX_QUERIES, room = budget + 4 + 64 + 16;
    *t = (turn_t){.data = d, .stride = d->landmarks};
    t->pieces = calloc(documents, sizeof *t->pieces);
    t->parts = calloc(documents, sizeof *t->parts);
    t->q = malloc(documents * rows * LODE_INDEX_DIM * sizeof(float));
    t->scores = aligned_alloc(64, (rows * t->stride + 16) * sizeof(float));
    t->kept = malloc(rows * t->stride * sizeof(float));
    t->sums = malloc((d->landmarks / 4096 + documents) * rows * sizeof(float));
    t->notes = (lode_notes_t){.bound = -INFINITY, .next = -INFINITY, .room = 2 * budget + 1024};
    t->notes.score = malloc((t->notes.room + LODE_NOTES_SLACK) * sizeof(float));
    t->notes.index = malloc((t->notes.room + LODE_NOTES_SLACK) * sizeof(uint32_t));
    t->scratch = malloc(d->landmarks * sizeof(uint32_t));
    t->linear = malloc(room * sizeof(uint32_t));
    t->chosen = malloc(room * sizeof(uint32_t));
    size_t floats = (lode_score_scratch_floats(&b->spec, LODE_INDEX_DIM, LODE_INDEX_QUERIES) + 16) / 16 * 16;
    t->score_scratch = aligned_alloc(64, floats * sizeof(float));
    if (!t->pieces || !t->parts || !t->q || !t->scores || !t->kept || !t->sums || !t->notes.score || !t->notes.index ||
        !t->scratch || !t->linear || !t->chosen || !t->score_scratch)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the scores of %llu landmarks",
                         (unsigned long long)d->landmarks);
    for (uint32_t i = 0; i < documents; i++) {
        t->pieces[i] =
            (lode_piece_t){d->document_tokens, lode_landmarks_of(&b->spec, d->document_tokens), i * d->document_tokens};
        t->parts[i] = (lode_index_part_t){.slot = i, .q = t->q + (size_t)i * LODE_INDEX_QUERIES * LODE_INDEX_DIM};
    }
    t->choice = (lode_choice_t){.pieces = t->pieces,
                                .piece_count = documents,
                                .chunk = b->spec.chunk,
                                .group = LODE_INDEX_QUERIES,
                                .merge = LODE_MERGE_MAX,
                                .budget = budget,
                                .sinks = 4,
                                .window_begin = d->documents * d->document_tokens - 64};
    return LODE_OK;
}

/* ----------------------------------------------------------------- correctness */

/* What any choice of this budget must be: ascending, as many as the budget, with all that is forced. */
static uint64_t wrong_choice(const turn_t *t, const uint32_t *tokens, uint64_t count)
{
    uint64_t all = t->data->documents * t->data->document_tokens, wrong = count != t->choice.budget, forced = 0;
    for (uint64_t i = 0; i < count; i++) {
        wrong += tokens[i] >= all || (i && tokens[i] <= tokens[i - 1]);
        forced += tokens[i] < t->choice.sinks || tokens[i] >= t->choice.window_begin;
    }
    return wrong + (forced != t->choice.sinks + all - t->choice.window_begin);
}

/* Shares of the softmax over all landmarks' scores that lie in two choices, means over the group. */
static void compare(const lode_index_bench_t *b, const turn_t *t, uint64_t linear, uint64_t chosen, double *recall,
                    double *mass)
{
    uint64_t both = 0, i = 0;
    double in_linear = 0, in_chosen = 0;
    for (uint64_t j = 0; j < linear; j++) {
        while (i < chosen && t->chosen[i] < t->linear[j])
            i++;
        both += i < chosen && t->chosen[i] == t->linear[j];
    }
    for (uint32_t g = 0; g < LODE_INDEX_QUERIES; g++) {
        const float *scores = t->kept + g * t->stride;
        double whole = b->ops->logsumexp(scores, t->data->landmarks);
        for (uint64_t j = 0; j < linear; j++)
            in_linear += exp(scores[t->linear[j] / b->spec.chunk] - whole) / b->spec.chunk;
        for (uint64_t j = 0; j < chosen; j++)
            in_chosen += exp(scores[t->chosen[j] / b->spec.chunk] - whole) / b->spec.chunk;
    }
    *recall = (double)both / (double)linear;
    *mass = in_chosen / in_linear;
}

/* ---------------------------------------------------------------------- rows */

static double mean_of(const double *values, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return sum / (double)n;
}

/* Queries in turns: all landmarks, then by the index. The first brings pages in and counts for correctness alone. */
static void row_measure(lode_index_bench_t *b, turn_t *t, lode_index_row_t *row)
{
    double linear_ns[1000], index_ns[1000], recall[1000], mass[1000];
    for (uint32_t i = 0; i <= b->slices; i++) {
        uint32_t at = i ? i - 1 : 0;
        lode_index_query(b, t->data, i, t->head, t->q);
        uint64_t begin = lode_index_spent_ns();
        uint64_t linear = choose_linear(b, t, false), middle = lode_index_spent_ns();
        uint64_t chosen = choose_by_index(t), end = lode_index_spent_ns();
        linear_ns[at] = (double)(middle - begin);
        index_ns[at] = (double)(end - middle);
        row->wrong += wrong_choice(t, t->linear, linear) + wrong_choice(t, t->chosen, chosen);
        choose_linear(b, t, true);
        compare(b, t, linear, chosen, &recall[at], &mass[at]);
        lode_progress_at(&b->progress, i);
    }
    row->linear_ms = lode_median(linear_ns, b->slices) * 1e-6;
    row->figure_ms = lode_median(index_ns, b->slices) * 1e-6;
    row->recall = mean_of(recall, b->slices);
    row->mass = mean_of(mass, b->slices);
}

static lode_status_t budget_rows(lode_index_bench_t *b, const lode_index_data_t *d, size_t i)
{
    uint64_t tokens = d->documents * d->document_tokens;
    uint64_t budget = budgets[i].tokens ? budgets[i].tokens : (uint64_t)ceil(budgets[i].share * (double)tokens);
    turn_t t;
    lode_status_t status = turn_create(b, d, budget, &t);
    for (uint32_t head = 0; status == LODE_OK && head < LODE_INDEX_HEADS; head++) {
        lode_index_row_t *row = lode_index_row(
            b, d, "index", lode_generator_sharp(d->generator, head) ? "sharp" : "broad", budgets[i].name);
        row->wanted = budget;
        t.head = head;
        if (!lode_index_pays(d->store, &t.choice, t.parts, &t.plan)) {
            snprintf(row->note, sizeof row->note, "skipped: it would look into every group");
            continue;
        }
        free(t.work);
        if (!(t.work = aligned_alloc(64, (t.plan.work_bytes + 63) / 64 * 64))) {
            status = lode_fail(LODE_ERR_NO_MEMORY, "no memory to choose by the index in");
            break;
        }
        row->visited = (double)t.plan.visited / (double)t.plan.groups;
        row->automatic = lode_index_worth(&t.choice, &t.plan);
        lode_progress_begin(&b->progress, row->budget, b->slices);
        row_measure(b, &t, row);
        lode_progress_end(&b->progress);
    }
    turn_free(&t);
    return status;
}

/* What the scan of all took for the rivals' rows: the sharp head at the first budget. */
static double sharp_linear_ms(const lode_index_bench_t *b, uint32_t from)
{
    for (uint32_t i = from; i < b->count; i++)
        if (strcmp(b->rows[i].kind, "sharp") == 0)
            return b->rows[i].linear_ms;
    return NAN;
}

static lode_status_t size_rows(lode_index_bench_t *b, uint64_t landmarks)
{
    lode_index_data_t d;
    uint32_t from = b->count;
    bool rivals = !lode_options_flag(&b->options, "no-rivals") && landmarks <= RIVALS_MOST && b->spec.chunk == 1;
    LODE_TRY(lode_index_data_create(b, landmarks, rivals, &d));
    lode_status_t status = LODE_OK;
    for (size_t i = 0; status == LODE_OK && i < sizeof budgets / sizeof *budgets; i++)
        status = budget_rows(b, &d, i);
    if (status == LODE_OK && rivals)
        status = lode_index_rivals(b, &d, sharp_linear_ms(b, from));
    lode_index_data_destroy(&d);
    return status;
}

/* ---------------------------------------------------------------------- run */

static lode_status_t read_options(lode_index_bench_t *b)
{
    bool dense;
    LODE_TRY(lode_bench_policy(lode_options_get(&b->options, "policy"), &dense, &b->spec));
    if (dense)
        return lode_fail(LODE_ERR_INVALID, "--policy dense: without landmarks there is nothing to choose by");
    b->spec.index = LODE_INDEX_ON;
    b->quick = lode_options_flag(&b->options, "quick");
    b->slices = b->quick ? 3 : (uint32_t)lode_options_count(&b->options, "slices");
    b->most = b->quick ? 16384 : lode_options_count(&b->options, "most");
    b->seed = lode_options_count(&b->options, "seed");
    return lode_ops_get("auto", &b->ops);
}

static lode_status_t run(lode_index_bench_t *b)
{
    const char *json = lode_options_get(&b->options, "json");
    uint64_t least = b->quick ? b->most : lode_options_count(&b->options, "least");
    if (json)
        LODE_TRY(lode_job_check_output(json));
    LODE_TRY(lode_pool_create(lode_pool_cores(), &b->pool));
    for (uint64_t landmarks = least / 4096 * 4096; landmarks <= b->most; landmarks *= 4)
        LODE_TRY(size_rows(b, landmarks));
    return lode_index_report(b, json);
}

int lode_bench_index(int argc, char **argv)
{
    static lode_index_bench_t b;
    int code = LODE_EXIT_OK;
    if (lode_job_rank_hint())
        return LODE_EXIT_OK; /* started by mpirun: one rank measures, or they would disturb each other */
    if (lode_bench_wants_help(argc, argv)) {
        print_help();
        return LODE_EXIT_OK;
    }
    lode_status_t status = lode_bench_own_options("bench index", index_options, argc, argv, &b.options);
    if (status == LODE_OK)
        status = read_options(&b);
    if (status != LODE_OK) {
        fprintf(stderr, "lodemark: %s\n", lode_error_message());
        code = LODE_EXIT_USAGE;
    } else if (run(&b) != LODE_OK) {
        lode_progress_end(&b.progress);
        fprintf(stderr, "lodemark: %s\n", lode_error_message());
        code = LODE_EXIT_FAILED;
    }
    lode_pool_destroy(&b.pool);
    lode_options_destroy(&b.options);
    return code;
}
