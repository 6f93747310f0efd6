/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "bench/fetch.h"

static const char *skipped(const lode_fetch_row_t *row)
{
    if (row->figure->skipped[0])
        return row->figure->skipped;
    return row->floor && row->floor->skipped[0] ? row->floor->skipped : NULL;
}

static double ratio_of(const lode_fetch_row_t *row)
{
    double floor = row->floor ? lode_slices_median(row->floor) : 0;
    return floor > 0 ? lode_slices_median(row->figure) / floor : 0;
}

static json_t *row_json(const lode_fetch_row_t *row)
{
    const char *reason = skipped(row);
    double ratio = ratio_of(row);
    bool judged = !reason && row->target > 0 && ratio > 0;
    json_t *object =
        json_pack("{s:s s:s s:s? s:f s:i s:I}", "what", row->what, "transport", row->transport, "rival", row->rival,
                  "mb_per_s", lode_slices_median(row->figure), "slices", (int)row->figure->count, "wrong_values",
                  (json_int_t)(row->figure->wrong + (row->floor ? row->floor->wrong : 0)));
    json_object_set_new(object, "rival_mb_per_s",
                        row->floor && !reason ? json_real(lode_slices_median(row->floor)) : json_null());
    json_object_set_new(object, "ratio", ratio > 0 ? json_real(ratio) : json_null());
    json_object_set_new(object, "target", row->target > 0 ? json_real(row->target) : json_null());
    json_object_set_new(object, "met", judged ? json_boolean(ratio >= row->target) : json_null());
    json_object_set_new(object, "skipped", reason ? json_string(reason) : json_null());
    return object;
}

static void print_row(const lode_fetch_row_t *row)
{
    const char *reason = skipped(row);
    double ratio = ratio_of(row);
    printf("%-4s %-30s ", row->transport, row->what);
    if (row->figure->count)
        printf("%9.0f ", lode_slices_median(row->figure));
    else
        printf("%9s ", "-");
    if (reason) {
        printf("skipped: %s\n", reason);
        return;
    }
    if (row->floor)
        printf("%9.0f  %-24s %6.2f", lode_slices_median(row->floor), row->rival, ratio);
    if (row->target > 0)
        printf("  >= %-5.2f %s", row->target, ratio >= row->target ? "met" : "missed");
    printf("\n");
}

lode_status_t lode_fetch_report(const lode_fetch_bench_t *b, const lode_fetch_row_t *rows, size_t n)
{
    uint64_t wrong = 0;
    json_t *list = json_array();
    printf(
        "rank 0 asks, rank 1 owns %u pages of %.1f KiB; medians of %u slices of %u ms in turns, MB/s of 10^6 bytes\n",
        b->pages, (double)lode_fetch_page_bytes(b) / 1024, b->slices, b->slice_ms);
    printf("%-4s %-30s %9s %9s  %-24s %6s  %s\n", "", "fetched", "MB/s", "beside", "", "ratio", "target");
    for (size_t i = 0; i < n; i++) {
        print_row(&rows[i]);
        json_array_append_new(list, row_json(&rows[i]));
        wrong += rows[i].figure->wrong;
    }
    printf("%" PRIu64 " wrong values\n", wrong);
    fflush(stdout);
    json_t *whole = json_pack("{s:i s:i s:I s:i s:i s:s s:I s:o}", "ranks", (int)b->job.ranks, "slices", (int)b->slices,
                              "batch_bytes", (json_int_t)b->batch_bytes, "records", (int)b->records, "record_bytes",
                              (int)b->record_bytes, "reply", lode_config_get(b->config, "reply"), "wrong_values",
                              (json_int_t)wrong, "rows", list);
    lode_status_t status = whole ? lode_job_write_json(b->json, whole)
                                 : lode_fail(LODE_ERR_INTERNAL, "the results could not be put into JSON");
    json_decref(whole);
    LODE_TRY(status);
    return wrong ? lode_fail(LODE_ERR_INTERNAL, "%" PRIu64 " fetched values were wrong", wrong) : LODE_OK;
}
