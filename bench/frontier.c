/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark bench frontier`: options, the run, and where its report goes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/frontier.h"
#include "bench/options.h"

#define POLICIES                                                                                                     \
    "dense,oracle,landmark1,landmark1.5,landmark2,landmark2:plain,landmark2:higgs,landmark2:c2,landmark4,landmark4:" \
    "c2,"                                                                                                            \
    "landmark16:c8,shadowkv,quest16,quest32,arkvale32,freekv,topp,random"

static const lode_option_t frontier_options[] = {
    {"tokens", NULL, LODE_OPTION_COUNT, NULL, 256, UINT64_C(1) << 24, "context length [131072; a capture's is all]"},
    {"layers", NULL, LODE_OPTION_COUNT, NULL, 1, 256, "layers, generated alike [1]"},
    {"heads", NULL, LODE_OPTION_COUNT, NULL, 1, 1024, "query heads [32]"},
    {"kv-heads", NULL, LODE_OPTION_COUNT, NULL, 1, 256, "KV heads; they divide the query heads [8]"},
    {"head-dim", NULL, LODE_OPTION_CHOICE, "64|128|256", 0, 0, "elements of a head [128]"},
    {"theta", NULL, LODE_OPTION_COUNT, NULL, 2, 0, "base of the rotary frequencies [500000]"},
    LODE_GENERATOR_OPTION("model"),
    {"sharp", "50%", LODE_OPTION_SHARE, NULL, 0, 0, "generated KV heads that look up single facts"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, UINT64_C(1) << 62, "of all that is generated"},
    {"capture", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "take keys, values and queries from this safetensors file instead"},
    {"quick", "no", LODE_OPTION_FLAG, NULL, 0, 0, "16384 tokens, 16 heads, 4 KV heads, 1 run: to try things"},
    {"policies", POLICIES, LODE_OPTION_TEXT, NULL, 0, 0, "names separated by commas, see below"},
    {"budgets", "0.5%,1%,1.56%,3.125%,5%,10%", LODE_OPTION_TEXT, NULL, 0, 0, "shares of the tokens, ascending"},
    {"merge", "max", LODE_OPTION_CHOICE, "max|mean", 0, 0, "a group asks by each head's softmax or by its mean query"},
    {"sinks", "4", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "first tokens that stay and are always chosen"},
    {"window", "64", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "last tokens that stay and are always chosen"},
    {"rank", "160", LODE_OPTION_COUNT, NULL, 1, 65536, "shadowkv: of its keys"},
    {"outliers", "48", LODE_OPTION_COUNT, NULL, 0, 65536, "shadowkv: chunks a head that stay"},
    {"local", "4", LODE_OPTION_COUNT, NULL, 0, 65536, "shadowkv: chunks at the end that stay"},
    {"top-p", "95%", LODE_OPTION_SHARE, NULL, 0, 0, "topp: of the mass in the budget's tokens"},
    {"kinship", "80%", LODE_OPTION_SHARE, NULL, 0, 0, "freekv: least cosine to the query before"},
    {"fit", "256", LODE_OPTION_COUNT, NULL, 1, 4096, "generated queries that transforms are made from"},
    {"runs", NULL, LODE_OPTION_COUNT, NULL, 1, 64, "runs of queries to judge by [2]"},
    {"steps", "4", LODE_OPTION_COUNT, NULL, 1, 64, "consecutive queries of a run"},
    {"level", "auto", LODE_OPTION_CHOICE, "auto|scalar|avx2|avx512", 0, 0, "instruction set"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file, after each policy"},
    {"html", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write a page to this file, plots beside it"},
    {"scores", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "files of bench text2json --json, separated by commas: a model's scores, to stand beside the rows"},
    {"resume", "no", LODE_OPTION_FLAG, NULL, 0, 0, "keep what the --json file has of the same settings"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/** What a command line became. */
typedef struct frontier {
    lode_options_t *options;
    lode_source_t source;
    lode_frontier_params_t params;
    lode_chooser_t policies[LODE_CHOOSERS_MAX];
    lode_frontier_found_t found[LODE_CHOOSERS_MAX];
    json_t *settings;
    const char *json, *html;
} frontier_t;

/* Whatever can be wrong is found here, before the long run. */
static lode_status_t prepare(frontier_t *f)
{
    const lode_options_t *o = f->options;
    lode_frontier_params_t *p = &f->params;
    bool quick = lode_options_flag(o, "quick");
    f->json = lode_options_get(o, "json");
    f->html = lode_options_get(o, "html");
    p->policies = f->policies;
    LODE_TRY(lode_choosers_parse(lode_options_get(o, "policies"), f->policies, &p->policy_count));
    LODE_TRY(lode_budgets_parse(lode_options_get(o, "budgets"), p->budgets, &p->budget_count));
    if (lode_options_flag(o, "resume") && !f->json)
        return lode_fail(LODE_ERR_INVALID, "--resume goes on from the --json file: name it");
    if (f->json && f->html && strcmp(f->json, f->html) == 0)
        return lode_fail(LODE_ERR_INVALID, "--json and --html are both %s", f->json);
    p->merge = strcmp(lode_options_get(o, "merge"), "max") == 0 ? LODE_MERGE_MAX : LODE_MERGE_MEAN;
    p->sinks = (uint32_t)lode_options_count(o, "sinks");
    p->window = (uint32_t)lode_options_count(o, "window");
    p->shadow = (lode_shadow_params_t){.rank = (uint32_t)lode_options_count(o, "rank"),
                                       .chunk = lode_shadow_published.chunk,
                                       .outliers = (uint32_t)lode_options_count(o, "outliers"),
                                       .local = (uint32_t)lode_options_count(o, "local")};
    p->share = lode_options_share(o, "top-p");
    p->kinship = lode_options_share(o, "kinship");
    p->fit = (uint32_t)lode_options_count(o, "fit");
    p->runs = (uint32_t)lode_options_count_or(o, "runs", quick ? 1 : 2);
    p->steps = (uint32_t)lode_options_count(o, "steps");
    p->seed = lode_options_count(o, "seed");
    p->level = lode_options_get(o, "level");
    if (p->job.rank == 0 && f->json)
        LODE_TRY(lode_job_check_output(f->json));
    if (p->job.rank == 0 && f->html)
        LODE_TRY(lode_job_check_output(f->html));
    if (p->job.rank == 0 && lode_options_get(o, "scores"))
        LODE_TRY(lode_frontier_scores_read(lode_options_get(o, "scores"), &p->scores));
    lode_source_defaults_t defaults = {quick ? 16384 : 131072, quick ? 16 : 32, quick ? 4 : 8};
    LODE_TRY(lode_source_open(o, &defaults, &f->source));
    p->source = &f->source;
    f->settings = lode_frontier_settings(p, lode_options_get(o, "generator"), lode_options_get(o, "capture"));
    if (!f->settings)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the report");
    json_object_set_new(f->settings, "sharp", json_real(100 * lode_options_share(o, "sharp")));
    return lode_frontier_check(p);
}

/* A first run has no report yet. Rank 0 reads, since others may not see its files. */
static lode_status_t read_kept(frontier_t *f)
{
    json_error_t error;
    if (f->params.job.rank > 0 || !lode_options_flag(f->options, "resume") || access(f->json, F_OK) != 0)
        return LODE_OK;
    json_t *report = json_load_file(f->json, 0, &error);
    if (!report)
        return lode_fail(LODE_ERR_FORMAT, "--resume: %s, line %d: %s", f->json, error.line, error.text);
    lode_status_t status = lode_frontier_resume(&f->params, report, f->settings, f->found);
    json_decref(report);
    return status;
}

static lode_status_t resume(frontier_t *f)
{
    uint64_t layers[LODE_CHOOSERS_MAX];
    LODE_TRY(lode_job_agree(read_kept(f)));
    for (uint32_t i = 0; i < f->params.policy_count; i++)
        layers[i] = f->found[i].layers;
    lode_job_sum_counts(&f->params.job, layers, f->params.policy_count);
    for (uint32_t i = 0; i < f->params.policy_count; i++) {
        f->found[i].layers = (uint32_t)layers[i];
        lode_job_sum(&f->params.job, (double *)f->found[i].sum, sizeof f->found[i].sum / sizeof(double));
    }
    return LODE_OK;
}

/* A whole file takes the place of the one before, so that an interruption leaves one of the two. */
static lode_status_t write_json(const char *path, const json_t *report)
{
    char part[4096];
    struct stat info;
    bool plain = stat(path, &info) != 0 || S_ISREG(info.st_mode);
    if (snprintf(part, sizeof part, "%s%s", path, plain ? ".part" : "") >= (int)sizeof part)
        return lode_fail(LODE_ERR_INVALID, "the name of file %s is too long", path);
    if (json_dump_file(report, part, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) != 0 ||
        (plain && rename(part, path) != 0))
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    return LODE_OK;
}

static lode_status_t keep(void *context)
{
    frontier_t *f = context;
    if (!f->json)
        return LODE_OK;
    json_t *report = lode_frontier_json(&f->params, f->found, f->settings);
    lode_status_t status = write_json(f->json, report);
    json_decref(report);
    return status;
}

static lode_status_t report(frontier_t *f)
{
    lode_frontier_print(&f->params, f->found);
    LODE_TRY(keep(f));
    if (!f->html)
        return LODE_OK;
    json_t *whole = lode_frontier_json(&f->params, f->found, f->settings);
    lode_status_t status = lode_frontier_page(f->html, &f->params, f->found, whole);
    json_decref(whole);
    return status;
}

static lode_status_t run(frontier_t *f)
{
    LODE_TRY(lode_job_agree(prepare(f)));
    f->params.link = lode_job_link(&f->params.job);
    LODE_TRY(resume(f));
    if (f->html && f->params.job.rank == 0 && !lode_frontier_can_plot())
        fprintf(stderr, "lodemark: gnuplot was not found (Debian: gnuplot-nox): the page will have no plots\n");
    LODE_TRY(lode_frontier_run(&f->params, f->found, keep, f));
    return lode_job_agree(f->params.job.rank == 0 ? report(f) : LODE_OK);
}

static void print_help(void)
{
    printf("lodemark bench frontier [OPTIONS]\n\nHow much of attention each policy keeps for the bytes that it moves: "
           "mass found, error of the output, recall of\nplanted facts, hit rate between steps, by budget. "
           "docs/frontier.md says how it is counted. Under mpirun, the ranks\nshare the KV heads.\n\n");
    lode_options_help(frontier_options, stdout);
    printf(
        "\nPolicies\n"
        "  dense, oracle         all tokens; the best tokens by exact keys\n"
        "  landmark1, 2, 4, 8    ours, with the balance that `lodemark calibrate` makes; :plain without it; :cN one\n"
        "                        a chunk of N in 1, 2, 4, 8, 16; :nocentre\n"
        "  landmark1.5           ours: means of 4 in 2 bits, what they leave of each key in 1; :plain\n"
        "  landmark2:higgs, 4    the paper's codes, uncentred (arXiv 2604.08426); :centre: centred and balanced; :cN\n"
        "  landmark16            bf16 keys, or with :cN means of N\n"
        "  shadowkv              means of 8, keys of low rank (2410.21465)\n"
        "  quest16, quest32      least and greatest of a page (2406.10774)\n"
        "  arkvale32             ArkVale's cuboids of a page\n"
        "  freekv                pages of 32 that the query before would choose (2505.13109)\n"
        "  topp                  of the budget's tokens the fewest that hold a share (2502.02770)\n"
        "  random                by chance\n");
    lode_generator_help(stdout);
}

static int failed(lode_status_t status)
{
    bool usage = status == LODE_ERR_INVALID || status == LODE_ERR_GEOMETRY;
    return usage ? LODE_EXIT_USAGE : LODE_EXIT_FAILED;
}

int lode_bench_frontier(int argc, char **argv)
{
    static frontier_t f;
    lode_options_t options;
    int rest, code = LODE_EXIT_OK;
    if (lode_options_create(frontier_options, &options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    f.options = &options;
    lode_status_t status = lode_options_parse(&options, argc, argv, &rest);
    if (status == LODE_OK && lode_options_flag(&options, "help")) {
        if (lode_job_rank_hint() == 0)
            print_help();
        lode_options_destroy(&options);
        return LODE_EXIT_OK;
    }
    if (status == LODE_OK && rest < argc)
        status = lode_fail(LODE_ERR_INVALID, "\"%s\": bench frontier takes options only, each beginning with --",
                           argv[rest]);
    if (status == LODE_OK)
        status = lode_job_begin(&f.params.job);
    if (status == LODE_OK)
        status = run(&f);
    if (status != LODE_OK)
        code = lode_job_refuse(failed(status), "%s", lode_error_message());
    else
        lode_job_end();
    json_decref(f.settings);
    json_decref(f.params.scores);
    lode_source_close(&f.source);
    lode_options_destroy(&options);
    return code;
}
