/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/bench.h"
#include "bench/kernels.h"
#include "bench/options.h"

static const lode_option_t kernel_options[] = {
    {"level", "all", LODE_OPTION_TEXT, NULL, 0, 0,
     "instruction set, as lodemark info lists them; all: the best if it is above avx512, avx512, avx2"},
    {"only", "all", LODE_OPTION_CHOICE, "all|scan|topk|gather|attend|plain|step", 0, 0, "subject to measure"},
    {"threads", "2", LODE_OPTION_COUNT, NULL, 1, LODE_POOL_THREADS,
     "threads of the rows that compare with one; at most the cores there are"},
    {"slices", "60", LODE_OPTION_COUNT, NULL, 1, 1000, "slices of each figure and of its floor, in turns"},
    {"arena", "256MiB", LODE_OPTION_BYTES, NULL, 16 << 20, 512 << 20, "memory that is read; well over the caches"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of the inputs"},
    {"quick", NULL, LODE_OPTION_FLAG, NULL, 0, 0, "3 slices, 32 MiB: all checks, but figures of no worth"},
    {"sweep", NULL, LODE_OPTION_FLAG, NULL, 0, 0,
     "scans and attention for every format, group (1 to 16) and head dim, instead of the rows with targets"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file as one JSON object"},
    {NULL},
};

static const struct {
    const char *name;
    lode_kernel_subject_t run;
} subjects[] = {
    {"scan", lode_kernels_scan},     {"topk", lode_kernels_topk},   {"gather", lode_kernels_gather},
    {"attend", lode_kernels_attend}, {"plain", lode_kernels_plain}, {"step", lode_kernels_step},
};

static void print_help(void)
{
    printf(
        "lodemark bench kernels [OPTIONS]\n\n"
        "The arithmetic of this machine's processors, kernel by kernel and instruction set by instruction set: first\n"
        "compared with double, then measured in turns with its floor (reading memory in order, copying it, or the\n"
        "scan that came before); and whole steps beside their stages. One process.\n\nOptions\n");
    lode_options_help(kernel_options, stdout);
}

static lode_status_t map(size_t bytes, uint8_t **at)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu MiB to measure with", bytes >> 20);
    madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: without it the figures are those of small pages */
    *at = memory;
    return LODE_OK;
}

static lode_status_t create_memory(lode_kernels_bench_t *b)
{
    LODE_TRY(map(b->arena_bytes, &b->arena));
    LODE_TRY(map(b->reply_bytes, &b->reply));
    uint64_t *word = (uint64_t *)(void *)b->arena;
    for (size_t i = 0; i < b->arena_bytes / 8; i++)
        word[i] = lode_mix(b->random, i);
    memset(b->reply, 1, b->reply_bytes);
    return LODE_OK;
}

static void free_memory(lode_kernels_bench_t *b)
{
    if (b->arena)
        munmap(b->arena, b->arena_bytes);
    if (b->reply)
        munmap(b->reply, b->reply_bytes);
}

static lode_status_t read_options(lode_kernels_bench_t *b)
{
    const lode_options_t *o = &b->options;
    uint32_t cores = lode_pool_cores();
    b->quick = lode_options_flag(o, "quick");
    b->sweep = lode_options_flag(o, "sweep");
    b->slices = b->quick ? 3 : (uint32_t)lode_options_count(o, "slices");
    b->arena_bytes = (b->quick ? 32 << 20 : lode_options_count(o, "arena")) >> 21 << 21;
    b->reply_bytes = b->arena_bytes / 4 < 8 << 20 ? 8 << 20 : b->arena_bytes / 4;
    b->threads = (uint32_t)lode_options_count(o, "threads");
    b->threads = b->threads > cores ? cores : b->threads;
    b->random = lode_options_count(o, "seed");
    return lode_ops_get("scalar", &b->scalar);
}

/* A level by its name is an error where it is missing; "all" shows its rows as skipped. */
static lode_status_t run_level(lode_kernels_bench_t *b, const char *level, bool wanted)
{
    const char *only = lode_options_get(&b->options, "only");
    lode_status_t status = lode_ops_get(level, &b->ops);
    if (status != LODE_OK) {
        b->ops = NULL;
        if (wanted)
            return lode_fail(status, "--level %s: this processor or build lacks it (lodemark info lists the backends)",
                             level);
    }
    b->level = level;
    for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++)
        if (strcmp(only, "all") == 0 || strcmp(only, subjects[i].name) == 0)
            LODE_TRY(subjects[i].run(b));
    return LODE_OK;
}

static lode_status_t run(lode_kernels_bench_t *b)
{
    const char *level = lode_options_get(&b->options, "level"), *json = lode_options_get(&b->options, "json");
    bool all = strcmp(level, "all") == 0;
    if (json)
        LODE_TRY(lode_job_check_output(json));
    LODE_TRY(create_memory(b));
    LODE_TRY(lode_pool_create(b->threads, &b->pool));
    const lode_ops_t *best;
    LODE_TRY(lode_ops_get("auto", &best));
    bool above =
        strcmp(best->level, "scalar") != 0 && strcmp(best->level, "avx2") != 0 && strcmp(best->level, "avx512") != 0;
    if (all && above)
        LODE_TRY(run_level(b, best->level, true));
    LODE_TRY(run_level(b, all ? "avx512" : level, !all));
    if (all)
        LODE_TRY(run_level(b, "avx2", false));
    lode_progress_end(&b->progress);
    return lode_kernels_report(b, json);
}

int lode_bench_kernels(int argc, char **argv)
{
    static lode_kernels_bench_t b;
    int code = LODE_EXIT_OK;
    if (lode_job_rank_hint())
        return LODE_EXIT_OK; /* started by mpirun: one rank measures, or they would disturb each other */
    if (lode_bench_wants_help(argc, argv)) {
        print_help();
        return LODE_EXIT_OK;
    }
    lode_status_t status = lode_bench_own_options("bench kernels", kernel_options, argc, argv, &b.options);
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
    free_memory(&b);
    lode_options_destroy(&b.options);
    lode_job_end();
    return code;
}
