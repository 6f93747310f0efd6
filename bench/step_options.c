/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "bench/options.h"
#include "bench/step.h"

/* Options without a default here have one that depends on the others; their text names it. */
const lode_option_t lode_step_options[] = {
    {"tokens", NULL, LODE_OPTION_COUNT, NULL, 1, UINT64_C(1) << 31, "context length, all documents together [65536]"},
    {"layers", NULL, LODE_OPTION_COUNT, NULL, 1, 1024, "layers of the model [1]"},
    {"heads", NULL, LODE_OPTION_COUNT, NULL, 1, 1024, "query heads [32]"},
    {"kv-heads", NULL, LODE_OPTION_COUNT, NULL, 1, 1024, "KV heads; they divide the query heads [8]"},
    {"head-dim", NULL, LODE_OPTION_COUNT, NULL, 1, 4096, "coordinates of a head: 64, 128 or 256 [128]"},
    {"theta", NULL, LODE_OPTION_COUNT, NULL, 2, 0, "base of the rotary frequencies [500000]"},
    {"documents", NULL, LODE_OPTION_COUNT, NULL, 1, 4096, "blocks that the context is made of [4; a capture is 1]"},
    {"budget", "3.125%", LODE_OPTION_SHARE, NULL, 0, 0, "share of the context that a KV head may read a step"},
    {"policy", "landmark2", LODE_OPTION_TEXT, NULL, 0, 0,
     "dense, or landmark16, 8, 4, 2, 1 with :c2 to :c16, :higgs, :nocentre, :index"},
    {"format", "fp8", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how records are stored"},
    {"merge", "max", LODE_OPTION_CHOICE, "max|mean", 0, 0, "how the query heads of a group agree on a token"},
    {"sinks", "4", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "first tokens of the context that are always read"},
    {"window", "64", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "last tokens of the context that are always read"},
    {"streams", "1", LODE_OPTION_COUNT, NULL, 1, 256, "streams a rank, each with its own queries and output"},
    {"alike", NULL, LODE_OPTION_SHARE, NULL, 0, 0,
     "cosine of the streams' queries with the first one's; each step is then beside one of a stream alone"},
    {"new-tokens", "1", LODE_OPTION_COUNT, NULL, 1, 4096, "new tokens a stream and step"},
    {"no-write", "no", LODE_OPTION_FLAG, NULL, 0, 0, "do not append the new tokens' keys and values"},
    {"steps", "20", LODE_OPTION_COUNT, NULL, 1, 100000, "measured steps"},
    {"warmup", "2", LODE_OPTION_COUNT, NULL, 0, 1000, "steps before those"},
    {"dense-steps", "3", LODE_OPTION_COUNT, NULL, 0, 1000, "dense steps over the same pages, to compare with"},
    {"check-steps", NULL, LODE_OPTION_COUNT, NULL, 0, 100000,
     "steps compared with double [up to 4, fewer if it is dear]"},
    {"query-run", "1", LODE_OPTION_COUNT, NULL, 1, 100000, "steps in a row that ask the same query"},
    LODE_GENERATOR_OPTION("plain"),
    {"sharp", "50%", LODE_OPTION_SHARE, NULL, 0, 0, "generated KV heads that look up single facts"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of the generated keys, values and queries"},
    {"capture", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "take them from this safetensors file instead"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the results to this file as one JSON object"},
    {"kill-rank", NULL, LODE_OPTION_COUNT, NULL, 0, 4096,
     "this rank kills itself, nobody writes; wants mpirun --enable-recovery"},
    {"kill-step", "5", LODE_OPTION_COUNT, NULL, 0, 100000, "… before this step of a second run over the steps"},
    {NULL},
};

void lode_step_help(FILE *out)
{
    fprintf(out, "mpirun -n RANKS lodemark bench step [OPTIONS]\n\n"
                 "Spread a context over the memory of the ranks, replicate its landmarks, and measure steps of sparse\n"
                 "attention over it: time, bytes moved, softmax mass found, error against dense attention in double.\n"
                 "Every rank runs the same queries at once, each as a stream of its own.\n\nOptions\n");
    lode_options_help(lode_step_options, out);
    lode_generator_help(out);
    fprintf(out, "\nOptions of the cluster (also as variables, LODEMARK_ARENA for --arena)\n");
    lode_options_help(lode_library_options, out);
}

static void read_geometry(lode_step_wish_t *wish)
{
    const lode_options_t *o = &wish->options;
    wish->geometry = (lode_geometry_t){.layers = (uint32_t)lode_options_count_or(o, "layers", 1),
                                       .query_heads = (uint32_t)lode_options_count_or(o, "heads", 32),
                                       .kv_heads = (uint32_t)lode_options_count_or(o, "kv-heads", 8),
                                       .head_dim = (uint32_t)lode_options_count_or(o, "head-dim", 128),
                                       .rope = {.theta = (double)lode_options_count_or(o, "theta", 500000)}};
    wish->tokens = lode_options_count_or(o, "tokens", 65536);
    wish->documents = (uint32_t)lode_options_count_or(o, "documents", 4);
}

/* What a capture brings itself, and what it cannot give. */
static lode_status_t check_capture(const lode_step_wish_t *wish)
{
    LODE_TRY(lode_source_check_capture(&wish->options));
    if (wish->capture && wish->alike >= 0)
        return lode_fail(LODE_ERR_INVALID, "--alike: a capture's queries are what they are");
    if (wish->capture && wish->new_tokens > 1)
        return lode_fail(LODE_ERR_INVALID, "--new-tokens %u: a capture's queries come one at a time", wish->new_tokens);
    return LODE_OK;
}

static void read_counts(lode_step_wish_t *wish)
{
    const lode_options_t *o = &wish->options;
    wish->sinks = (uint32_t)lode_options_count(o, "sinks");
    wish->window = (uint32_t)lode_options_count(o, "window");
    wish->streams = (uint32_t)lode_options_count(o, "streams");
    wish->new_tokens = (uint32_t)lode_options_count(o, "new-tokens");
    wish->steps = (uint32_t)lode_options_count(o, "steps");
    wish->warmup = (uint32_t)lode_options_count(o, "warmup");
    wish->dense_steps = (uint32_t)lode_options_count(o, "dense-steps");
    wish->check_steps = (int64_t)lode_options_count_or(o, "check-steps", UINT64_MAX);
    wish->query_run = (uint32_t)lode_options_count(o, "query-run");
    wish->seed = lode_options_count(o, "seed");
    wish->kill_rank = (int64_t)lode_options_count_or(o, "kill-rank", UINT64_MAX);
    wish->kill_step = (uint32_t)lode_options_count(o, "kill-step");
    wish->budget = lode_options_share(o, "budget");
    wish->alike = lode_options_get(o, "alike") ? lode_options_share(o, "alike") : -1;
    wish->sharp_share = lode_options_share(o, "sharp");
    wish->merge = strcmp(lode_options_get(o, "merge"), "max") == 0 ? LODE_MERGE_MAX : LODE_MERGE_MEAN;
    wish->generator = lode_options_get(o, "generator");
    wish->json = lode_options_get(o, "json");
    wish->capture = lode_options_get(o, "capture");
    wish->write = !lode_options_flag(o, "no-write") && !wish->capture && wish->kill_rank < 0;
}

static lode_status_t read_wish(lode_step_wish_t *wish)
{
    read_geometry(wish);
    read_counts(wish);
    LODE_TRY(lode_format_parse(lode_options_get(&wish->options, "format"), &wish->format));
    LODE_TRY(check_capture(wish));
    lode_generator_params_t knobs = {0};
    LODE_TRY(lode_generator_parse(wish->generator, &knobs));
    if (wish->alike >= 0 && (wish->streams < 2 || wish->kill_rank >= 0))
        return lode_fail(LODE_ERR_INVALID, "--alike compares streams with one: it needs --streams 2 or more, and all "
                                           "ranks alive");
    if (wish->kill_rank >= 0 && wish->kill_step >= wish->steps)
        return lode_fail(LODE_ERR_INVALID, "--kill-step %u: there are %u steps, from 0", wish->kill_step, wish->steps);
    wish->policy = lode_options_get(&wish->options, "policy");
    return lode_bench_policy(wish->policy, &wish->dense, &wish->landmark);
}

lode_status_t lode_step_wish_parse(int argc, char **argv, lode_step_wish_t *wish)
{
    lode_step_wish_t made = {0};
    LODE_TRY(lode_bench_options("bench step", lode_step_options, argc, argv, &made.options));
    lode_status_t status = read_wish(&made);
    if (status == LODE_OK)
        *wish = made;
    else
        lode_bench_options_free(&made.options);
    return status;
}
