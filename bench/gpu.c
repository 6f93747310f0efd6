/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "bench/gpu.h"

static const lode_option_t gpu_options[] = {
    {"device", "0", LODE_OPTION_COUNT, NULL, 0, 1023, "which of this machine's devices"},
    {"filter", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "only rows whose \"kernel/format\" has this text in it"},
    {"slices", "60", LODE_OPTION_COUNT, NULL, 1, 1000, "slices of each figure and of its floor, in turns"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of the inputs"},
    {"small", NULL, LODE_OPTION_FLAG, NULL, 0, 0,
     "tiny sizes and one slice: all values are compared, the times are of no worth"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file as one JSON object"},
    {NULL},
};

const lode_gpubench_subject_t lode_gpubench_kernels[] = {
    {"copies", lode_gpubench_copies}, {"scan", lode_gpubench_scan},   {"query_prepare", lode_gpubench_prepare},
    {"select", lode_gpubench_select}, {"cache", lode_gpubench_cache}, {"gather", lode_gpubench_gather},
    {"attend", lode_gpubench_attend}, {"merge", lode_gpubench_merge}, {NULL},
};

static void print_help(const char *command)
{
    printf("%s [OPTIONS]\n\n"
           "The operations of a step on a GPU, each compared with a reference on the processor and then measured in\n"
           "turns with its floor: reading device memory, copying it, or copying over the bus.\n\nOptions\n",
           command);
    lode_options_help(gpu_options, stdout);
}

static lode_status_t read_options(const char *command, int argc, char **argv, lode_gpubench_t *b)
{
    int rest = argc;
    LODE_TRY(lode_options_create(gpu_options, &b->options));
    LODE_TRY(lode_options_parse(&b->options, argc, argv, &rest));
    if (rest < argc)
        return lode_fail(LODE_ERR_INVALID, "\"%s\": %s takes options only, each beginning with --", argv[rest],
                         command);
    b->small = lode_options_flag(&b->options, "small");
    b->slices = b->small ? 1 : (uint32_t)lode_options_count(&b->options, "slices");
    b->seed = lode_options_count(&b->options, "seed");
    b->filter = lode_options_get(&b->options, "filter");
    return lode_ops_get("scalar", &b->scalar);
}

static lode_status_t open_device(lode_gpubench_t *b)
{
    uint32_t devices, ordinal = (uint32_t)lode_options_count(&b->options, "device");
    lode_status_t status = lode_device_get("cuda", &b->ops);
    if (status != LODE_OK)
        return lode_fail(status, "this build has no CUDA: configure it again where nvcc is on the PATH");
    status = b->ops->count(&devices);
    if (status != LODE_OK)
        return lode_fail(status, "no GPU to measure: %s", b->ops->error());
    if (ordinal >= devices)
        return lode_fail(LODE_ERR_INVALID, "--device %u: this machine has %u", ordinal, devices);
    LODE_GPU(b, b->ops->query(ordinal, &b->info));
    LODE_GPU(b, b->ops->open(ordinal, &b->device));
    int before;
    LODE_GPU(b, b->ops->enter(b->device, &before));
    LODE_GPU(b, b->ops->stream_create(b->device, &b->stream));
    LODE_GPU(b, b->ops->event_create(b->device, &b->begin));
    LODE_GPU(b, b->ops->event_create(b->device, &b->end));
    b->emulated = strcasestr(b->info.name, "emulated") != NULL;
    return LODE_OK;
}

static void close_device(lode_gpubench_t *b)
{
    lode_gpubench_free_all(b);
    if (b->begin)
        b->ops->event_destroy(b->begin);
    if (b->end)
        b->ops->event_destroy(b->end);
    if (b->stream)
        b->ops->stream_destroy(b->stream);
    if (b->device)
        b->ops->close(&b->device);
}

/* A subject that fails does not keep the others from their turn. */
static void run_subjects(lode_gpubench_t *b, const lode_gpubench_subject_t *subject)
{
    for (; subject && subject->name; subject++) {
        uint32_t before = b->count;
        if (subject->run(b) != LODE_OK && b->failure_count < sizeof b->failures / sizeof *b->failures) {
            lode_gpubench_failure_t *failure = &b->failures[b->failure_count++];
            failure->subject = subject->name;
            snprintf(failure->why, sizeof failure->why, "%s", lode_error_message());
            printf("%s failed: %s\n", subject->name, failure->why);
            fflush(stdout);
            if (b->count > before && !b->rows[b->count - 1].note[0])
                snprintf(b->rows[b->count - 1].note, sizeof b->rows->note, "not measured: the subject failed");
        }
        lode_gpubench_free_all(b);
    }
}

static lode_status_t check_output(const char *path)
{
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file)
        fclose(file);
    return file || !path ? LODE_OK : lode_fail(LODE_ERR_IO, "--json %s: the file cannot be written", path);
}

static lode_status_t run(lode_gpubench_t *b, const lode_gpubench_subject_t *extra)
{
    const char *json = lode_options_get(&b->options, "json");
    LODE_TRY(open_device(b));
    LODE_TRY(check_output(json));
    lode_gpubench_head(b);
    run_subjects(b, lode_gpubench_kernels);
    run_subjects(b, extra);
    return lode_gpubench_report(b, json);
}

int lode_gpubench_main(const char *command, int argc, char **argv, const lode_gpubench_subject_t *extra)
{
    static lode_gpubench_t b;
    int code = 0;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(command);
            return 0;
        }
    b = (lode_gpubench_t){0};
    lode_status_t status = read_options(command, argc, argv, &b);
    if (status != LODE_OK)
        code = 2;
    else
        code = run(&b, extra) != LODE_OK;
    if (code)
        fprintf(stderr, "lodemark: %s\n", lode_error_message());
    close_device(&b);
    lode_options_destroy(&b.options);
    return code;
}
