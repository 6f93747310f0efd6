/* SPDX-License-Identifier: Apache-2.0 */
/* The report of talks as a page of one file: two charts and two tables, no scripts. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "bench/page.h"
#include "bench/streams.h"

/* -------------------------------------------------------------------- charts */

/* Of one chart, in the units of its picture. */
enum { WIDTH = 520, HEIGHT = 300, LEFT = 56, RIGHT = 12, TOP = 34, BOTTOM = 46, GRID = 4 };

typedef struct chart {
    const lode_streams_bench_t *b;
    lode_streams_measure_t measure;
    const char *title;
    double top; /* value at its upper end */
} chart_t;

static const char *const mode_colours[LODE_TALK_MODES] = {"#1b7837", "#c2571a", "#6a6a6a"};
/* Of policies, in their order. */
static const char *const dashes[] = {"", "6 3", "2 3", "9 3 2 3"};

static const char *dash_of(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    uint32_t line = 0;
    for (uint32_t i = 0; &b->rows[i] < row; i++)
        line += b->rows[i].reading != b->rows[i + 1].reading || b->rows[i].budget != b->rows[i + 1].budget;
    return dashes[line % (sizeof dashes / sizeof *dashes)];
}

/* The least of 1, 2, 5, 10, 20 … that is not less. */
static double round_up(double x)
{
    double power = pow(10, floor(log10(x)));
    return x <= power ? power : x <= 2 * power ? 2 * power : x <= 5 * power ? 5 * power : 10 * power;
}

static lode_mean_t value_of(const chart_t *chart, const lode_streams_row_t *row)
{
    return lode_mean(row->values[chart->measure], chart->b->samples);
}

static double x_of(const chart_t *chart, const lode_streams_row_t *row)
{
    double step = (double)(WIDTH - LEFT - RIGHT) / chart->b->arrival_count;
    return LEFT + step * ((double)(row->arrival - chart->b->arrivals) + 0.5);
}

static double y_of(const chart_t *chart, double value)
{
    double share = fmin(fmax(value / chart->top, 0), 1);
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
}

static void set_top(chart_t *chart)
{
    double most = 0;
    for (uint32_t i = 0; i < chart->b->row_count; i++) {
        lode_mean_t mean = value_of(chart, &chart->b->rows[i]);
        double end = mean.mean + (isfinite(mean.error) ? mean.error : 0);
        most = isfinite(end) ? fmax(most, end) : most;
    }
    chart->top = most > 0 ? GRID * round_up(most / GRID) : 1;
}

static void write_axes(FILE *out, const chart_t *chart)
{
    const lode_streams_bench_t *b = chart->b;
    fprintf(out, "<text x=\"%d\" y=\"18\" class=\"title\">%s</text>\n", LEFT, chart->title);
    for (int i = 0; i <= GRID; i++) {
        double value = chart->top * i / GRID, y = y_of(chart, value);
        fprintf(out,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, value);
    }
    double step = (double)(WIDTH - LEFT - RIGHT) / b->arrival_count;
    for (uint32_t i = 0; i < b->arrival_count; i++)
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", LEFT + step * (i + 0.5),
                HEIGHT - BOTTOM + 18, b->arrivals[i].name);
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">second half of the request, after steps</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8);
}

static void write_point(FILE *out, const chart_t *chart, const lode_streams_row_t *row)
{
    lode_mean_t mean = value_of(chart, row);
    double x = x_of(chart, row), error = isfinite(mean.error) ? mean.error : 0;
    if (!isfinite(mean.mean))
        return;
    if (error > 0)
        fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>", x, x,
                y_of(chart, mean.mean - error), y_of(chart, mean.mean + error), mode_colours[row->mode]);
    fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"><title>", x, y_of(chart, mean.mean),
            mode_colours[row->mode]);
    lode_page_escape(out, row->reading->name);
    fprintf(out, ", %s, second half %s: %.4g", lode_talk_mode_name(row->mode), row->arrival->name, mean.mean);
    if (error > 0)
        fprintf(out, " +- %.2g", error);
    fprintf(out, "</title></circle>\n");
}

/* Rows that differ in their arrival alone lie mode_count apart. */
static void write_line(FILE *out, const chart_t *chart, const lode_streams_row_t *first)
{
    const lode_streams_bench_t *b = chart->b;
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\" stroke-dasharray=\"%s\" points=\"",
            mode_colours[first->mode], dash_of(b, first));
    for (uint32_t i = 0; i < b->arrival_count; i++) {
        const lode_streams_row_t *row = &first[i * b->mode_count];
        double mean = value_of(chart, row).mean;
        if (isfinite(mean))
            fprintf(out, "%.1f,%.1f ", x_of(chart, row), y_of(chart, mean));
    }
    fputs("\"/>\n", out);
    for (uint32_t i = 0; i < b->arrival_count; i++)
        write_point(out, chart, &first[i * b->mode_count]);
}

/* The first row of each line, or NULL after the last. */
static const lode_streams_row_t *next_line(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    uint32_t at = (uint32_t)(row - b->rows) + 1, group = b->arrival_count * b->mode_count;
    if (at % group == b->mode_count)
        at += group - b->mode_count;
    return at < b->row_count ? &b->rows[at] : NULL;
}

static void write_chart(FILE *out, const lode_streams_bench_t *b, lode_streams_measure_t measure, const char *title)
{
    chart_t chart = {.b = b, .measure = measure, .title = title};
    set_top(&chart);
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", WIDTH, HEIGHT, title);
    write_axes(out, &chart);
    for (const lode_streams_row_t *line = b->rows; line; line = next_line(b, line))
        write_line(out, &chart, line);
    fputs("</svg>\n", out);
}

static void write_legend(FILE *out, const lode_streams_bench_t *b)
{
    fputs("<ul class=\"legend\">\n", out);
    for (const lode_streams_row_t *line = b->rows; line; line = next_line(b, line)) {
        fprintf(out,
                "<li><svg viewBox=\"0 0 40 10\"><line x1=\"0\" x2=\"40\" y1=\"5\" y2=\"5\" stroke=\"%s\" "
                "stroke-width=\"2\" stroke-dasharray=\"%s\"/></svg> %s, ",
                mode_colours[line->mode], dash_of(b, line), lode_talk_mode_name(line->mode));
        lode_page_escape(out, line->reading->name);
        if (line->reading->kind != LODE_READING_DENSE)
            fprintf(out, " at %.4g&nbsp;%%", 100 * line->budget);
        fputs("</li>\n", out);
    }
    fputs("</ul>\n", out);
}

/* -------------------------------------------------------------------- tables */

static void write_mean(FILE *out, lode_mean_t mean, int digits)
{
    if (!isfinite(mean.mean)) {
        fputs("<td>–</td>", out);
        return;
    }
    fprintf(out, "<td>%.*f", digits, mean.mean);
    if (isfinite(mean.error))
        fprintf(out, " <small>± %.*f</small>", digits, mean.error);
    fputs("</td>", out);
}

static void write_names(FILE *out, const lode_streams_row_t *row)
{
    fputs("<tr><td>", out);
    lode_page_escape(out, row->reading->name);
    fprintf(out, "</td><td>%.4g</td><td>%s</td>", 100 * row->budget, row->arrival->name);
}

static void write_rows(FILE *out, const lode_streams_bench_t *b)
{
    fputs("<h2>All talks</h2>\n<p>Means over samples, with their standard errors.</p>\n<table><thead><tr>"
          "<th>policy</th><th>budget&nbsp;%</th><th>second half</th><th>mode</th>",
          out);
    for (int m = 0; m < LODE_STREAMS_MEASURES; m++)
        fprintf(out, "<th>%s</th>", lode_streams_measures[m].label);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_streams_row_t *row = &b->rows[i];
        write_names(out, row);
        fprintf(out, "<td>%s</td>", lode_talk_mode_name(row->mode));
        for (int m = 0; m < LODE_STREAMS_MEASURES; m++)
            write_mean(out, lode_mean(row->values[m], b->samples), lode_streams_measures[m].digits);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>\n", out);
}

static void write_ratio(FILE *out, const lode_streams_bench_t *b, const lode_streams_row_t *row,
                        const lode_streams_row_t *other, lode_streams_measure_t measure)
{
    write_mean(out, lode_mean_ratio(other->values[measure], row->values[measure], b->samples), 2);
}

static void write_ratios(FILE *out, const lode_streams_bench_t *b)
{
    fputs("<h2>Thinking first over at once</h2>\n<p>Sample by sample: how many times as long thinking first takes "
          "(geometric means), and the points that at once has more.</p>\n<table><thead><tr><th>policy</th>"
          "<th>budget&nbsp;%</th><th>second half</th><th>first word, steps</th><th>first word, ms</th><th>total "
          "delay</th><th>score</th></tr></thead>\n<tbody>\n",
          out);
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_streams_row_t *row = &b->rows[i], *other = lode_streams_partner(b, row);
        if (!other)
            continue;
        write_names(out, row);
        write_ratio(out, b, row, other, LODE_STREAMS_FIRST_STEPS);
        write_ratio(out, b, row, other, LODE_STREAMS_FIRST_MS);
        write_ratio(out, b, row, other, LODE_STREAMS_DELAY);
        write_mean(out,
                   lode_mean_difference(row->values[LODE_STREAMS_SCORE], other->values[LODE_STREAMS_SCORE], b->samples),
                   1);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>\n", out);
}

/* ---------------------------------------------------------------------- page */

static void write_head(FILE *out, const json_t *report)
{
    static const char *const shown[] = {
        "model", "samples_file", "samples", "documents_per_sample", "ranks",       "format", "host", "speech_rate",
        "chunk", "synthesis_ms", "step_ms", "probe_every",          "hear_at_once"};
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Lodemark: streams</title>\n"
          "<style>body{font:15px/1.45 sans-serif;margin:2em auto;max-width:76em;padding:0 1em}"
          ".charts{display:flex;flex-wrap:wrap;gap:1em}.charts>svg{flex:1 1 24em;max-width:100%;height:auto}"
          "svg text{font:12px sans-serif}svg text.title{font-weight:bold}.grid{stroke:#ddd}"
          ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2em 1.5em;padding:0}.legend svg{width:40px;"
          "height:10px}table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}"
          "th,td{padding:.2em .6em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
          "th{white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left}small{color:#666}"
          "dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1em}dd{margin:0}</style></head><body>\n"
          "<h1>Hearing, thinking and speaking at once</h1>\n",
          out);
    lode_page_settings(out, report, shown, sizeof shown / sizeof *shown);
}

lode_status_t lode_streams_page(const char *path, const lode_streams_bench_t *b, const json_t *report)
{
    FILE *out = fopen(path, "w");
    if (!out)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    write_head(out, report);
    fputs("<div class=\"charts\">\n", out);
    write_chart(out, b, LODE_STREAMS_FIRST_STEPS, "Steps until the first word");
    write_chart(out, b, LODE_STREAMS_DELAY, "Total delay of the speech, seconds");
    fputs("</div>\n", out);
    write_legend(out, b);
    write_ratios(out, b);
    write_rows(out, b);
    fputs("</body></html>\n", out);
    bool wrong = ferror(out) != 0;
    wrong = fclose(out) != 0 || wrong;
    return wrong ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno)) : LODE_OK;
}
