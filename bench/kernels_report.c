/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <math.h>

#include "bench/kernels.h"
#include "bench/print.h"

static bool judged(const lode_kernel_row_t *row)
{
    return isfinite(row->ratio) && isfinite(row->target);
}

static bool met(const lode_kernel_row_t *row)
{
    return row->at_most ? row->ratio <= row->target : row->ratio >= row->target;
}

static json_t *row_json(const lode_kernel_row_t *row)
{
    json_t *object = json_pack("{s:s s:s s:i s:s s:i s:i s:o s:s s:o s:o s:o s:o s:I}", "kernel", row->kernel, "level",
                               row->level, "threads", (int)row->threads, "format", row->format, "group",
                               (int)row->group, "head_dim", (int)row->head_dim, "figure", lode_job_number(row->figure),
                               "unit", row->unit, "floor", lode_job_number(row->floor), "ratio",
                               lode_job_number(row->ratio), "target", lode_job_number(row->target), "met",
                               judged(row) ? json_boolean(met(row)) : json_null(), "wrong", (json_int_t)row->wrong);
    if (object && row->note[0])
        json_object_set_new(object, "note", json_string(row->note));
    return object;
}

static void print_row(const lode_kernel_row_t *row)
{
    printf("%-13s %-6s %2u %-10s %2u %4u", row->kernel, row->level, row->threads, row->format, row->group,
           row->head_dim);
    lode_print_number(9, "%.4g", row->figure);
    printf(" %-5s", row->unit);
    lode_print_number(9, "%.4g", row->floor);
    lode_print_number(7, "%.4g", row->ratio);
    if (isfinite(row->target))
        printf("  %s %-5.4g %-6s", row->at_most ? "<=" : ">=", row->target,
               !judged(row) ? ""
               : met(row)   ? "met"
                            : "missed");
    else
        printf("  %15s", "");
    printf(" %5" PRIu64 "%s%s\n", row->wrong, row->note[0] ? "  " : "", row->note);
}

lode_status_t lode_kernels_report(const lode_kernels_bench_t *b, const char *path)
{
    uint64_t wrong = 0;
    uint32_t missed = 0;
    json_t *list = json_array();
    printf("medians of %u slices in turns with the floor; rates by processor time; arena %zu MiB\n", b->slices,
           b->arena_bytes >> 20);
    printf("%-13s %-6s %2s %-10s %2s %4s %9s %-5s %9s %7s  %-15s %5s\n", "kernel", "level", "t", "format", "g", "dim",
           "figure", "unit", "floor", "ratio", "target", "wrong");
    for (uint32_t i = 0; i < b->count; i++) {
        print_row(&b->rows[i]);
        json_array_append_new(list, row_json(&b->rows[i]));
        wrong += b->rows[i].wrong;
        missed += judged(&b->rows[i]) && !met(&b->rows[i]);
    }
    printf("%" PRIu64 " wrong values, %u targets missed\n", wrong, missed);
    fflush(stdout);
    json_t *whole =
        json_pack("{s:i s:I s:b s:I s:o}", "slices", (int)b->slices, "arena_bytes", (json_int_t)b->arena_bytes, "quick",
                  (int)b->quick, "wrong", (json_int_t)wrong, "rows", list);
    lode_status_t status = whole ? lode_job_write_json(path, whole)
                                 : lode_fail(LODE_ERR_INTERNAL, "the results could not be put into JSON");
    json_decref(whole);
    LODE_TRY(status);
    return wrong ? lode_fail(LODE_ERR_INTERNAL, "%" PRIu64 " values were wrong", wrong) : LODE_OK;
}
