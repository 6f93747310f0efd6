/* SPDX-License-Identifier: Apache-2.0 */
/* `bench gpu` on an emulated device: all its rows with no wrong value, its JSON, and what it refuses. */
#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/gpu.h"
#include "tests/emulator/emulator.h"

static char path[] = "/tmp/lodemark-bench-gpu-XXXXXX";

static void begin(void)
{
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
}
static void end(void)
{
    unlink(path);
}
TestSuite(bench_gpu, .init = begin, .fini = end, .timeout = 200);

static int bench(int argc, char **argv)
{
    return lode_gpubench_main("bench gpu", argc, argv, NULL);
}

/* A row with all that a reader of the file counts on; a time of an emulator is judged by nobody. */
static void check_row(const json_t *row)
{
    static const char *const columns[] = {"kernel", "format", "group", "head_dim", "figure", "unit",
                                          "floor",  "beside", "ratio", "us",       "target", "judged",
                                          "met",    "wrong",  "note",  "hit_rate"};
    const char *name = json_string_value(json_object_get(row, "kernel"));
    cr_assert(name);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        cr_assert(json_object_get(row, columns[i]), "%s has no %s", name, columns[i]);
    cr_assert(json_object_size(row) == sizeof columns / sizeof *columns);
    cr_assert(json_integer_value(json_object_get(row, "wrong")) == 0, "%s", name);
    cr_assert(json_is_number(json_object_get(row, "figure")), "%s was not measured", name);
    cr_assert(json_is_null(json_object_get(row, "met")), "%s is judged", name);
}

static bool has(const json_t *rows, const char *kernel)
{
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i,
                       row) if (strcmp(json_string_value(json_object_get(row, "kernel")), kernel) == 0) return true;
    return false;
}

Test(bench_gpu, all_rows_are_right)
{
    static const char *const kernels[] = {
        "device_read",   "device_copy",   "host_to_device", "device_to_host", "scan",           "scan_moved",
        "query_prepare", "select",        "select_guess",   "want",           "where",          "keep",
        "gather",        "gather_copies", "attend",         "attend_random",  "attend_scatter", "merge"};
    const char *seed = getenv("LODEMARK_TEST_SEED");
    char number[24];
    snprintf(number, sizeof number, "%llu", seed ? strtoull(seed, NULL, 0) : (unsigned long long)lode_now_ns());
    fprintf(stderr, "LODEMARK_TEST_SEED=%s\n", number);
    char *words[] = {(char *)"--small", (char *)"--json", path, (char *)"--seed", number};
    cr_assert(bench(5, words) == 0, "%s", lode_error_message());
    json_error_t error;
    json_t *whole = json_load_file(path, 0, &error);
    cr_assert(whole, "%s", error.text);
    cr_assert(json_is_true(json_object_get(whole, "emulated")) && json_is_true(json_object_get(whole, "small")));
    cr_assert(json_array_size(json_object_get(whole, "failed")) == 0);
    cr_assert(json_string_value(json_object_get(json_object_get(whole, "device"), "name")));
    const json_t *rows = json_object_get(whole, "rows"), *row;
    size_t i;
    json_array_foreach(rows, i, row) check_row(row);
    for (i = 0; i < sizeof kernels / sizeof *kernels; i++)
        cr_assert(has(rows, kernels[i]), "there is no row of %s", kernels[i]);
    json_decref(whole);
}

/* What a kernel gets wrong is counted, and the exit code says so. */
static lode_device_ops_t broken;
static lode_status_t (*right_merge)(lode_device_stream_t, const lode_device_parts_t *, uint32_t, uint32_t, uint32_t,
                                    uint32_t, float *, float *);

static lode_status_t wrong_merge(lode_device_stream_t stream, const lode_device_parts_t *sets, uint32_t set_count,
                                 uint32_t rows, uint32_t group, uint32_t dim, float *out, float *lse)
{
    lode_status_t status = right_merge(stream, sets, set_count, rows, group, dim, out, lse);
    return status == LODE_OK ? broken.fill(stream, out + 1, 0, sizeof *out) : status;
}

Test(bench_gpu, wrong_values_are_counted)
{
    const lode_device_ops_t *ops;
    cr_assert(lode_device_get("cuda", &ops) == LODE_OK);
    broken = *ops;
    right_merge = ops->merge;
    broken.merge = wrong_merge;
    memcpy((void *)(uintptr_t)ops, &broken, sizeof broken);
    char *words[] = {(char *)"--small", (char *)"--filter", (char *)"merge"};
    cr_assert(bench(3, words) == 1);
    cr_assert(strstr(lode_error_message(), "wrong"), "%s", lode_error_message());
}

Test(bench_gpu, refuses)
{
    lode_emulator_t settings;
    char *unknown[] = {(char *)"--smal"}, *word[] = {(char *)"attend"}, *far[] = {(char *)"--device", (char *)"7"};
    char *nowhere[] = {(char *)"--json", (char *)"/nonexistent/x.json"};
    char *nothing[] = {(char *)"--small", (char *)"--filter", (char *)"no such row"}, *help[] = {(char *)"--help"};
    cr_assert(bench(1, unknown) == 2);
    cr_assert(bench(1, word) == 2 && strstr(lode_error_message(), "options only"), "%s", lode_error_message());
    cr_assert(bench(2, far) == 1 && strstr(lode_error_message(), "--device 7"), "%s", lode_error_message());
    cr_assert(bench(2, nowhere) == 1 && strstr(lode_error_message(), "cannot be written"), "%s", lode_error_message());
    cr_assert(bench(3, nothing) == 1 && strstr(lode_error_message(), "no such row"), "%s", lode_error_message());
    cr_assert(bench(1, help) == 0);
    lode_emulator_get(&settings);
    settings.driver = false;
    lode_emulator_set(&settings);
    cr_assert(bench(0, NULL) == 1 && strstr(lode_error_message(), "no GPU"), "%s", lode_error_message());
}
