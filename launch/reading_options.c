/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of what reads documents. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/device.h"
#include "bench/options.h"
#include "launch/reading.h"

void lode_reading_help(const lode_option_t *table, FILE *out)
{
    fprintf(out, "Options\n");
    lode_options_help(table, out);
    fprintf(out, "\nOptions of the cluster (also as variables, LODEMARK_ARENA for --arena)\n");
    lode_options_help(lode_library_options, out);
}

bool lode_reading_quiet(const lode_reading_t *reading)
{
    return reading->json && strcmp(reading->json, "-") == 0;
}

lode_status_t lode_reading_check_json(const lode_reading_t *reading)
{
    bool file = reading->json && !lode_reading_quiet(reading) && reading->job.rank == 0;
    return file ? lode_job_check_output(reading->json) : LODE_OK;
}

/* ------------------------------------------------------------------------ words */

static lode_status_t read_words(const char *command, const lode_option_t *table, int argc, char **argv,
                                lode_reading_t *reading)
{
    int count;
    char **words = calloc((size_t)argc + 1, sizeof *words);
    lode_status_t status = words ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for options");
    if (status == LODE_OK)
        status = lode_corpus_words(command, argc, argv, &reading->paths, words, &count);
    if (status == LODE_OK)
        status = lode_bench_options(command, table, count, words, &reading->options);
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

static void read_policy(lode_reading_t *reading)
{
    const lode_options_t *o = &reading->options;
    reading->policy = (lode_policy_t){
        .select = reading->dense ? LODE_SELECT_DENSE : LODE_SELECT_LANDMARK,
        .merge = strcmp(lode_options_get(o, "merge"), "mean") == 0 ? LODE_MERGE_MEAN : LODE_MERGE_MAX,
        .budget_share = lode_options_share(o, "budget"),
        .sinks = (uint32_t)lode_options_count(o, "sinks"),
        .window = (uint32_t)lode_options_count(o, "window"),
    };
}

static lode_status_t choose_gpu(const lode_options_t *options, uint32_t *ordinal)
{
    const lode_device_ops_t *ops;
    const char *asked = lode_options_get(options, "device-ordinal");
    if (lode_device_get("cuda", &ops) != LODE_OK)
        return lode_fail(LODE_ERR_UNSUPPORTED, "--device %s: this build has no CUDA backend",
                         lode_options_get(options, "device"));
    return lode_gpu_choose(ops, asked ? asked : "", lode_job_local_rank_hint(), ordinal);
}

/* Matrices are multiplied where steps run. */
static lode_status_t read_device(lode_reading_t *reading)
{
    const char *wish = lode_options_get(&reading->options, "device");
    uint32_t ordinal;
    if (!wish || strcmp(wish, "none") == 0)
        return LODE_OK;
    lode_status_t status = choose_gpu(&reading->options, &ordinal);
    if (status != LODE_OK)
        return strcmp(wish, "auto") == 0 && status != LODE_ERR_INVALID ? LODE_OK : status;
    snprintf(reading->device, sizeof reading->device, "cuda:%u", ordinal);
    reading->params.device = reading->device;
    return LODE_OK;
}

static lode_status_t read_values(lode_reading_t *reading)
{
    const lode_options_t *o = &reading->options;
    const char *model = lode_options_get(o, "model");
    if (model)
        snprintf(reading->model, sizeof reading->model, "%s", model);
    else
        default_model(reading->model, sizeof reading->model);
    reading->params.model = reading->model;
    reading->params.threads = (uint32_t)lode_options_count_or(o, "threads", 0);
    LODE_TRY(read_device(reading));
    reading->split = lode_split_of(lode_options_get(o, "split"));
    LODE_TRY(lode_format_parse(lode_options_get(o, "format"), &reading->params.format));
    LODE_TRY(lode_bench_policy(lode_options_get(o, "policy"), &reading->dense, &reading->params.landmark));
    read_policy(reading);
    reading->sampling = (lode_sampling_t){.top_p = lode_options_share(o, "top-p"),
                                          .top_k = (uint32_t)lode_options_count(o, "top-k"),
                                          .seed = lode_options_count(o, "seed")};
    LODE_TRY(read_temperature(lode_options_get(o, "temperature"), &reading->sampling.temperature));
    reading->json = lode_options_get(o, "json");
    return LODE_OK;
}

lode_status_t lode_reading_options(const char *command, const lode_option_t *table, int argc, char **argv,
                                   lode_reading_t *reading)
{
    const char *cluster = getenv("LODEMARK_CLUSTER");
    *reading = (lode_reading_t){.job = {.ranks = 1}};
    LODE_TRY(read_words(command, table, argc, argv, reading));
    reading->client = lode_options_get(&reading->options, "cluster") || (cluster && *cluster);
    LODE_TRY(read_values(reading));
    if (reading->client && lode_job_ranks_hint() > 1)
        return lode_fail(LODE_ERR_INVALID, "a service is asked without mpirun; unset LODEMARK_CLUSTER, or leave out "
                                           "--cluster, to use the memory of this job's ranks");
    return LODE_OK;
}
