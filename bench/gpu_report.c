/* SPDX-License-Identifier: Apache-2.0 */
/* The table as it grows, and the same as JSON; written by hand, since tests/gpu/kernels.c has no library for it. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "bench/gpu.h"
#include "bench/print.h"

static double judged_value(const lode_gpubench_row_t *row)
{
    return row->judge_us ? row->us : row->ratio;
}

static bool judged(const lode_gpubench_row_t *row)
{
    return row->timed && isfinite(judged_value(row)) && isfinite(row->target);
}

static bool met(const lode_gpubench_row_t *row)
{
    return row->at_most ? judged_value(row) <= row->target : judged_value(row) >= row->target;
}

/* -------------------------------------------------------------------- table */

void lode_gpubench_head(const lode_gpubench_t *b)
{
    printf("%s, compute capability %d.%d, %u processors, %" PRIu64 " MiB, second-level cache %" PRIu64 " KiB\n",
           b->info.name, b->info.major, b->info.minor, b->info.processors, b->info.memory_bytes >> 20,
           b->info.l2_bytes >> 10);
    if (b->emulated)
        printf("EMULATED on the processor: times say nothing, only the number of wrong values does\n");
    else if (b->small)
        printf("--small: times say nothing, only the number of wrong values does\n");
    printf("medians of %u slices in turns with the floor, by events; seed %" PRIu64 "\n", b->slices, b->seed);
    printf("%-15s %-16s %2s %4s %9s %-5s %9s %7s %10s  %-15s %5s\n", "kernel", "format", "g", "dim", "figure", "unit",
           "floor", "ratio", "us", "target", "wrong");
    fflush(stdout);
}

void lode_gpubench_row_end(const lode_gpubench_row_t *row)
{
    printf("%-15s %-16s %2u %4u", row->kernel, row->format, row->group, row->head_dim);
    lode_print_number(9, "%.4g", row->figure);
    printf(" %-5s", row->unit);
    lode_print_number(9, "%.4g", row->floor);
    lode_print_number(7, "%.4g", row->ratio);
    lode_print_number(10, "%.4g", row->us);
    if (isfinite(row->target))
        printf("  %s %-5.4g%s %-5s", row->at_most ? "<=" : ">=", row->target, row->judge_us ? "us" : "",
               !judged(row) ? ""
               : met(row)   ? "met"
                            : "missed");
    else
        printf("  %15s", "");
    printf(" %5" PRIu64 "%s%s\n", row->wrong, row->note[0] ? "  " : "", row->note);
    fflush(stdout);
}

/* --------------------------------------------------------------------- JSON */

static void put_text(FILE *f, const char *key, const char *text)
{
    fprintf(f, "\"%s\": \"", key);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(f, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            fprintf(f, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, f);
    fputc('"', f);
}

static void put_number(FILE *f, const char *key, double value)
{
    if (isfinite(value))
        fprintf(f, ", \"%s\": %.9g", key, value);
    else
        fprintf(f, ", \"%s\": null", key);
}

static void put_row(FILE *f, const lode_gpubench_row_t *row)
{
    fputs("    {", f);
    put_text(f, "kernel", row->kernel);
    fputs(", ", f);
    put_text(f, "format", row->format);
    fprintf(f, ", \"group\": %u, \"head_dim\": %u", row->group, row->head_dim);
    put_number(f, "figure", row->figure);
    fputs(", ", f);
    put_text(f, "unit", row->unit);
    put_number(f, "floor", row->floor);
    fputs(", ", f);
    put_text(f, "beside", row->beside);
    put_number(f, "ratio", row->ratio);
    put_number(f, "us", row->us);
    put_number(f, "target", row->target);
    fprintf(f, ", \"judged\": \"%s\"", row->judge_us ? "us" : "ratio");
    fprintf(f, ", \"met\": %s", !judged(row) ? "null" : met(row) ? "true" : "false");
    put_number(f, "hit_rate", row->hit_rate);
    fprintf(f, ", \"wrong\": %" PRIu64 ", ", row->wrong);
    put_text(f, "note", row->note);
    fputc('}', f);
}

static void put_head(FILE *f, const lode_gpubench_t *b)
{
    fputs("{\n  \"device\": {", f);
    put_text(f, "name", b->info.name);
    fputs(", ", f);
    put_text(f, "uuid", b->info.uuid);
    fputs(", ", f);
    put_text(f, "bus", b->info.bus);
    fprintf(f, ", \"major\": %d, \"minor\": %d, \"processors\": %u, \"memory_bytes\": %" PRIu64, b->info.major,
            b->info.minor, b->info.processors, b->info.memory_bytes);
    fprintf(f, ", \"l2_bytes\": %" PRIu64 "},\n", b->info.l2_bytes);
    fprintf(f, "  \"emulated\": %s, \"small\": %s, \"slices\": %u, \"seed\": %" PRIu64 ",\n",
            b->emulated ? "true" : "false", b->small ? "true" : "false", b->slices, b->seed);
}

static void put_failures(FILE *f, const lode_gpubench_t *b)
{
    fputs("  \"failed\": [", f);
    for (uint32_t i = 0; i < b->failure_count; i++) {
        fputs(i ? ", {" : "{", f);
        put_text(f, "subject", b->failures[i].subject);
        fputs(", ", f);
        put_text(f, "why", b->failures[i].why);
        fputc('}', f);
    }
    fputs("],\n", f);
}

static lode_status_t write_json(const lode_gpubench_t *b, uint64_t wrong, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    put_head(f, b);
    put_failures(f, b);
    fprintf(f, "  \"wrong\": %" PRIu64 ",\n  \"rows\": [\n", wrong);
    for (uint32_t i = 0; i < b->count; i++) {
        put_row(f, &b->rows[i]);
        fputs(i + 1 < b->count ? ",\n" : "\n", f);
    }
    fputs("  ]\n}\n", f);
    int bad = ferror(f);
    bad |= fclose(f);
    return bad ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno)) : LODE_OK;
}

lode_status_t lode_gpubench_report(const lode_gpubench_t *b, const char *path)
{
    uint64_t wrong = 0;
    uint32_t missed = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        wrong += b->rows[i].wrong;
        missed += judged(&b->rows[i]) && !met(&b->rows[i]);
    }
    printf("%" PRIu64 " wrong values, %u targets missed, %u subjects failed\n", wrong, missed, b->failure_count);
    fflush(stdout);
    if (path)
        LODE_TRY(write_json(b, wrong, path));
    if (wrong)
        return lode_fail(LODE_ERR_INTERNAL, "%" PRIu64 " values were wrong", wrong);
    if (b->failure_count)
        return lode_fail(LODE_ERR_INTERNAL, "%u subjects failed, the first: %s: %s", b->failure_count,
                         b->failures[0].subject, b->failures[0].why);
    return b->count ? LODE_OK : lode_fail(LODE_ERR_INVALID, "--filter %s: no row has that in its name", b->filter);
}
