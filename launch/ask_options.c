/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of `lodemark ask`. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/options.h"
#include "launch/ask.h"

static const lode_option_t ask_options[] = {
    {"docs", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "files and folders of text to ask; more may follow, and the option may be given again"},
    {"model", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "folder with config.json, model.safetensors, tokenizer.json [the small model that comes along]"},
    {"question", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "what to ask"},
    {"questions", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file with a question a line; without either, lines of standard input are asked"},
    {"split", "file", LODE_OPTION_CHOICE, "file|paragraph|line", 0, 0,
     "what a document is: a file, text between empty lines, or a line"},
    {"budget", "3.125%", LODE_OPTION_SHARE, NULL, 0, 0,
     "share of the documents' tokens that a KV head may read a step"},
    {"policy", "landmark2", LODE_OPTION_TEXT, NULL, 0, 0,
     "dense, or landmark16, 8, 4, 2, 1 with :c2 to :c16, :higgs, :nocentre, :index"},
    {"format", "bf16", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how records are stored"},
    {"merge", "max", LODE_OPTION_CHOICE, "max|mean", 0, 0, "how the query heads of a group agree on a token"},
    {"sinks", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "first tokens of the documents that are always read"},
    {"window", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "last tokens that are always read, beside the question"},
    {"max-tokens", "512", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "most tokens of an answer"},
    {"temperature", "0", LODE_OPTION_TEXT, NULL, 0, 0, "0: the likeliest token each time; higher: more various"},
    {"top-p", "100%", LODE_OPTION_SHARE, NULL, 0, 0, "draw from the likeliest tokens that have this share together"},
    {"top-k", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "draw from so many at most; 0: from all"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of what is drawn"},
    {"compare", "no", LODE_OPTION_FLAG, NULL, 0, 0,
     "ask each question densely as well: what that answers, reads and takes"},
    {"focus", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20,
     "find this many documents that matter most to the question first, and answer from those alone; 0: from all"},
    {"sources", "yes", LODE_OPTION_FLAG, NULL, 0, 0, "find out which documents an answer comes from"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "write answers and costs to this file as one JSON object; - for stdout"},
    {"cluster", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "contact file of a lodemarkd to keep the documents in, instead of this job [LODEMARK_CLUSTER]"},
    {"token-file", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "file with that service's token [LODEMARK_TOKEN_FILE]"},
    {NULL},
};

void lode_ask_help(FILE *out)
{
    fprintf(out,
            "lodemark ask --docs PATH... [OPTIONS]\n"
            "mpirun -n RANKS lodemark ask --docs PATH... [OPTIONS]\n\n"
            "Read documents into the memory of all ranks, or of a running lodemarkd, and ask a language model about\n"
            "them. Each document is read in once; every question is asked of all of them at once. Without mpirun one\n"
            "process does it all.\n\nOptions\n");
    lode_options_help(ask_options, out);
    fprintf(out, "\nOptions of the cluster (also as variables, LODEMARK_ARENA for --arena)\n");
    lode_options_help(lode_library_options, out);
}

/* ------------------------------------------------------------------------ words */

/* --docs may stand several times, each with several paths behind it: taken out before the options are read. */
static lode_status_t take_paths(int argc, char **argv, lode_ask_wish_t *wish, char **rest, int *rest_count)
{
    bool docs = false;
    *rest_count = 0;
    for (int i = 0; i < argc; i++) {
        bool option = strncmp(argv[i], "--", 2) == 0;
        if (strcmp(argv[i], "--docs") == 0 && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
            docs = true;
        } else if (strncmp(argv[i], "--docs=", 7) == 0) {
            wish->paths[wish->path_count++] = argv[i] + 7;
            docs = true;
        } else if (!option && docs) {
            wish->paths[wish->path_count++] = argv[i];
        } else if (option) {
            docs = false;
            rest[(*rest_count)++] = argv[i];
            if (!strchr(argv[i], '=') && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0)
                rest[(*rest_count)++] = argv[++i];
        } else {
            return lode_fail(LODE_ERR_INVALID, "\"%s\": a document? They follow --docs; see lodemark ask --help",
                             argv[i]);
        }
    }
    return LODE_OK;
}

static lode_status_t read_words(int argc, char **argv, lode_ask_wish_t *wish)
{
    int count;
    char **words = calloc((size_t)argc + 1, sizeof *words);
    wish->paths = calloc((size_t)argc + 1, sizeof *wish->paths);
    lode_status_t status = words && wish->paths ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for options");
    if (status == LODE_OK)
        status = take_paths(argc, argv, wish, words, &count);
    if (status == LODE_OK)
        status = lode_bench_options("ask", ask_options, count, words, &wish->options);
    free(words);
    return status;
}

/* ----------------------------------------------------------------------- values */

static lode_status_t read_temperature(const char *text, double *temperature)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(value) || value < 0 || value > 100)
        return lode_fail(LODE_ERR_INVALID, "--temperature \"%s\": a number from 0 to 100", text);
    *temperature = value;
    return LODE_OK;
}

/* The model beside an installed command; else that of the source tree it was built from. */
static void default_model(char *path, size_t room)
{
    char self[2048] = {0}, config[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash = length > 0 ? strrchr(self, '/') : NULL;
    if (slash) {
        *slash = 0;
        snprintf(path, room, "%s/" LODE_MODEL_INSTALLED, self);
        snprintf(config, sizeof config, "%s/config.json", path);
        if (access(config, R_OK) == 0)
            return;
    }
    snprintf(path, room, "%s", LODE_MODEL_SOURCE);
}

static void read_policy(lode_ask_wish_t *wish)
{
    const lode_options_t *o = &wish->options;
    wish->asking.policy = (lode_policy_t){
        .select = wish->dense ? LODE_SELECT_DENSE : LODE_SELECT_LANDMARK,
        .merge = strcmp(lode_options_get(o, "merge"), "mean") == 0 ? LODE_MERGE_MEAN : LODE_MERGE_MAX,
        .budget_share = lode_options_share(o, "budget"),
        .sinks = (uint32_t)lode_options_count(o, "sinks"),
        .window = (uint32_t)lode_options_count(o, "window"),
    };
}

static lode_status_t read_values(lode_ask_wish_t *wish)
{
    const lode_options_t *o = &wish->options;
    const char *model = lode_options_get(o, "model"), *split = lode_options_get(o, "split");
    if (model)
        snprintf(wish->model, sizeof wish->model, "%s", model);
    else
        default_model(wish->model, sizeof wish->model);
    wish->reader.model = wish->model;
    wish->reader.threads = (uint32_t)lode_options_count_or(o, "threads", 0);
    wish->split = *split == 'f' ? LODE_SPLIT_FILE : *split == 'p' ? LODE_SPLIT_PARAGRAPH : LODE_SPLIT_LINE;
    LODE_TRY(lode_format_parse(lode_options_get(o, "format"), &wish->reader.format));
    LODE_TRY(lode_bench_policy(lode_options_get(o, "policy"), &wish->dense, &wish->reader.landmark));
    read_policy(wish);
    wish->asking.sampling = (lode_sampling_t){.top_p = lode_options_share(o, "top-p"),
                                              .top_k = (uint32_t)lode_options_count(o, "top-k"),
                                              .seed = lode_options_count(o, "seed")};
    LODE_TRY(read_temperature(lode_options_get(o, "temperature"), &wish->asking.sampling.temperature));
    wish->asking.most_tokens = (uint32_t)lode_options_count(o, "max-tokens");
    wish->asking.focus = (uint32_t)lode_options_count(o, "focus");
    wish->compare = lode_options_flag(o, "compare");
    wish->asking.sources = lode_options_flag(o, "sources");
    wish->json = lode_options_get(o, "json");
    return LODE_OK;
}

static lode_status_t check_wish(const lode_ask_wish_t *wish)
{
    const lode_options_t *o = &wish->options;
    if (!wish->path_count)
        return lode_fail(LODE_ERR_INVALID, "which documents? --docs PATH... names files or folders");
    if (lode_options_get(o, "question") && lode_options_get(o, "questions"))
        return lode_fail(LODE_ERR_INVALID, "--question and --questions: one of them");
    if (wish->client && lode_job_ranks_hint() > 1)
        return lode_fail(LODE_ERR_INVALID, "a service is asked without mpirun; unset LODEMARK_CLUSTER, or leave out "
                                           "--cluster, to use the memory of this job's ranks");
    return LODE_OK;
}

lode_status_t lode_ask_wish_read(int argc, char **argv, lode_ask_wish_t *wish)
{
    const char *cluster = getenv("LODEMARK_CLUSTER");
    *wish = (lode_ask_wish_t){0};
    LODE_TRY(read_words(argc, argv, wish));
    wish->client = lode_options_get(&wish->options, "cluster") || (cluster && *cluster);
    LODE_TRY(read_values(wish));
    return check_wish(wish);
}

void lode_ask_wish_free(lode_ask_wish_t *wish)
{
    free(wish->paths);
    if (wish->options.values)
        lode_bench_options_free(&wish->options);
}
