/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <math.h>

#include "bench/index.h"
#include "bench/print.h"

static json_t *row_json(const lode_index_row_t *row)
{
    json_t *object =
        json_pack("{s:s s:s s:I s:s s:I s:o s:o s:o s:o s:o s:o s:b s:I}", "what", row->what, "head", row->kind,
                  "landmarks", (json_int_t)row->landmarks, "budget", row->budget, "tokens", (json_int_t)row->wanted,
                  "figure_ms", lode_job_number(row->figure_ms), "linear_ms", lode_job_number(row->linear_ms), "faster",
                  lode_job_number(row->linear_ms / row->figure_ms), "visited", lode_job_number(row->visited), "recall",
                  lode_job_number(row->recall), "mass", lode_job_number(row->mass), "automatic", (int)row->automatic,
                  "wrong", (json_int_t)row->wrong);
    if (object && row->note[0])
        json_object_set_new(object, "note", json_string(row->note));
    return object;
}

static void print_row(const lode_index_row_t *row)
{
    printf("%-10s %9" PRIu64 " %-12s %-6s", row->what, row->landmarks, row->budget, row->kind);
    lode_print_number(9, "%.4g", row->figure_ms);
    lode_print_number(9, "%.4g", row->linear_ms);
    lode_print_number(7, "%.2f", row->linear_ms / row->figure_ms);
    lode_print_number(8, "%.3f", row->visited);
    lode_print_number(7, "%.3f", row->recall);
    lode_print_number(7, "%.3f", row->mass);
    printf(" %5s %5" PRIu64 "%s%s\n", row->automatic ? "yes" : "no", row->wrong, row->note[0] ? "  " : "", row->note);
}

lode_status_t lode_index_report(const lode_index_bench_t *b, const char *path)
{
    uint64_t wrong = 0;
    json_t *list = json_array();
    printf("one KV head of %d query heads, head_dim %d, one thread; medians of %u queries in turns with the scan of "
           "all\n",
           LODE_INDEX_QUERIES, LODE_INDEX_DIM, b->slices);
    printf("recall: of the tokens that the scan of all chooses; mass: of the softmax mass in them\n");
    printf("%-10s %9s %-12s %-6s %9s %9s %7s %8s %7s %7s %5s %5s\n", "what", "landmarks", "budget", "head", "ms",
           "all ms", "faster", "visited", "recall", "mass", "auto", "wrong");
    for (uint32_t i = 0; i < b->count; i++) {
        print_row(&b->rows[i]);
        json_array_append_new(list, row_json(&b->rows[i]));
        wrong += b->rows[i].wrong;
    }
    printf("%" PRIu64 " wrong values\n", wrong);
    fflush(stdout);
    json_t *whole = json_pack("{s:i s:b s:I s:o}", "slices", (int)b->slices, "quick", (int)b->quick, "wrong",
                              (json_int_t)wrong, "rows", list);
    lode_status_t status = whole ? lode_job_write_json(path, whole)
                                 : lode_fail(LODE_ERR_INTERNAL, "the results could not be put into JSON");
    json_decref(whole);
    LODE_TRY(status);
    return wrong ? lode_fail(LODE_ERR_INTERNAL, "%" PRIu64 " values were wrong", wrong) : LODE_OK;
}
