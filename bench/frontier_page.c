/* SPDX-License-Identifier: Apache-2.0 */
/* The report as a page that needs nothing else: plots that gnuplot draws, and a table that sorts. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/frontier.h"
#include "bench/page.h"

enum { PATH = 4096, PLOTS = 3, ROWS = LODE_CHOOSERS_MAX * LODE_BUDGETS_MAX };

typedef struct plot {
    const char *name, *title, *label, *settings;
    double (*of)(const lode_frontier_row_t *row);
} plot_t;

static double mass_of(const lode_frontier_row_t *row)
{
    return row->mass;
}
static double error_of(const lode_frontier_row_t *row)
{
    return row->error;
}
static double facts_of(const lode_frontier_row_t *row)
{
    return row->facts;
}

static const plot_t plots[PLOTS] = {
    {"mass", "Share of the softmax mass that was found", "mass", "set yrange [*:1]", mass_of},
    {"error", "Relative error of the output", "error", "set logscale y", error_of},
    {"facts", "Share of the planted facts that were found", "facts", "set yrange [0:1]", facts_of},
};

bool lode_frontier_can_plot(void)
{
    const char *path = getenv("PATH");
    char file[PATH];
    for (size_t length; path && *path; path += length + (path[length] == ':')) {
        length = strcspn(path, ":");
        if (snprintf(file, sizeof file, "%.*s/gnuplot", (int)length, path) < PATH && access(file, X_OK) == 0)
            return true;
    }
    return false;
}

/* Dense stands off to the right and says nothing: it is everything. */
static bool is_drawn(const plot_t *plot, const lode_frontier_row_t *row)
{
    return row->policy->kind != LODE_CHOOSER_DENSE && row->bytes_per_step > 0 && isfinite(plot->of(row));
}

/* Page "F.html" has its plots in "F-mass.svg" … */
static bool plot_path(const char *page, const plot_t *plot, const char *ending, char path[PATH])
{
    size_t length = strlen(page), html = 5;
    if (length > html && strcmp(page + length - html, ".html") == 0)
        length -= html;
    return snprintf(path, PATH, "%.*s-%s.%s", (int)length, page, plot->name, ending) < PATH;
}

/* gnuplot's strings: a quote is written twice in single ones. */
static void quote(FILE *out, const char *text)
{
    fputc('\'', out);
    for (; *text; text++)
        fprintf(out, *text == '\'' ? "''" : "%c", *text);
    fputc('\'', out);
}

static void write_curves(FILE *out, const plot_t *plot, const lode_frontier_row_t *rows, uint32_t n)
{
    uint32_t curves = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_drawn(plot, &rows[i]))
            continue;
        if (i == 0 || rows[i].policy != rows[i - 1].policy || !is_drawn(plot, &rows[i - 1]))
            fprintf(out, "%s$c%u << E\n", curves ? "E\n" : "", curves), curves++;
        fprintf(out, "%.9g %.9g\n", rows[i].bytes_per_step / 1e6, plot->of(&rows[i]));
    }
    fprintf(out, "%s", curves ? "E\n" : "");
}

static void write_plot_line(FILE *out, const plot_t *plot, const lode_frontier_row_t *rows, uint32_t n)
{
    uint32_t curves = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_drawn(plot, &rows[i]) ||
            (i > 0 && rows[i].policy == rows[i - 1].policy && is_drawn(plot, &rows[i - 1])))
            continue;
        fprintf(out, "%s$c%u with linespoints lw %d dt %d pt %u title ", curves ? ", " : "plot ", curves,
                rows[i].policy->ours ? 2 : 1, rows[i].policy->ours ? 1 : 2, curves % 13 + 1);
        quote(out, rows[i].policy->name);
        curves++;
    }
    fprintf(out, "\n");
}

static lode_status_t draw(const char *page, const plot_t *plot, const lode_frontier_row_t *rows, uint32_t n)
{
    char svg[PATH], png[PATH];
    if (!plot_path(page, plot, "svg", svg) || !plot_path(page, plot, "png", png))
        return lode_fail(LODE_ERR_INVALID, "the name of page %s is too long", page);
    FILE *out = popen("gnuplot", "w");
    if (!out)
        return lode_fail(LODE_ERR_IO, "gnuplot did not start: %s", strerror(errno));
    write_curves(out, plot, rows, n);
    fprintf(out,
            "set title '%s'\nset xlabel 'MB fetched a step'\nset ylabel '%s'\nset logscale x\n%s\n"
            "set key outside right top noenhanced\nset grid\n",
            plot->title, plot->label, plot->settings);
    fprintf(out, "set terminal svg size 960,520 name '%s' font 'sans-serif,12' background '#ffffff'\nset output ",
            plot->name);
    quote(out, svg);
    fprintf(out, "\n");
    write_plot_line(out, plot, rows, n);
    fprintf(out, "set terminal pngcairo size 1440,780 fontscale 1.2\nset output ");
    quote(out, png);
    fprintf(out, "\nreplot\n");
    if (pclose(out) != 0)
        return lode_fail(LODE_ERR_IO, "gnuplot failed to draw %s", svg);
    return LODE_OK;
}

/* A page may hold an <svg> element, not the lines before it that make it a file. */
static lode_status_t embed(FILE *out, const char *page, const plot_t *plot)
{
    char path[PATH], line[4096];
    bool begun = false;
    plot_path(page, plot, "svg", path);
    FILE *svg = fopen(path, "r");
    if (!svg)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    fprintf(out, "<figure>\n");
    while (fgets(line, sizeof line, svg)) {
        begun = begun || strncmp(line, "<svg", 4) == 0;
        if (begun)
            fputs(line, out);
    }
    fprintf(out, "</figure>\n");
    fclose(svg);
    return begun ? LODE_OK : lode_fail(LODE_ERR_FORMAT, "%s holds no <svg>", path);
}

static void write_head(FILE *out, const json_t *report)
{
    static const char *const shown[] = {"machine", "geometry", "generator", "capture", "seed",
                                        "runs",    "steps",    "sinks",     "window",  "merge"};
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Lodemark: bytes against "
          "accuracy</title>\n<style>body{font:15px/1.45 sans-serif;margin:2em auto;max-width:76em;padding:0 1em}"
          "figure{margin:1em 0}svg{max-width:100%;height:auto}table{border-collapse:collapse;font-variant-numeric:"
          "tabular-nums}th,td{padding:.2em .6em;text-align:right;border-bottom:1px solid #ddd}th:first-child,"
          "td:first-child{text-align:left}th{cursor:pointer;position:sticky;top:0;background:#fff}tr.ours{background:"
          "#eef5ee}dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1em}dd{margin:0}</style></head><body>\n"
          "<h1>Bytes against accuracy</h1>\n",
          out);
    lode_page_settings(out, report, shown, sizeof shown / sizeof *shown);
}

static void write_beaten(FILE *out, const lode_frontier_row_t *rows, uint32_t n)
{
    static lode_beaten_t beaten[ROWS];
    uint32_t compared, better = lode_frontier_beaten(rows, n, beaten, &compared);
    fprintf(out,
            "<h2>Rivals that beat ours</h2>\n<p>%u rows of rivals compared with the best of ours at as many bytes "
            "a step and no more landmark memory, or with the smallest of ours where none is as small: %u "
            "better.</p>\n<ul>\n",
            compared, better);
    for (uint32_t i = 0; i < better; i++) {
        const lode_beaten_t *b = &beaten[i];
        fprintf(out, "<li>%s at %.4g&nbsp;%% beats %s: ", b->rival->policy->name, 100 * b->rival->budget,
                b->ours->policy->name);
        if (b->by_mass)
            fprintf(out, "mass %.4f against %.4f", b->rival->mass, b->mass);
        if (b->by_error)
            fprintf(out, "%serror %.4f against %.4f", b->by_mass ? ", " : "", b->rival->error, b->error);
        fprintf(out, "%s</li>\n", b->memory ? "" : " (with less memory)");
    }
    fprintf(out, "</ul>\n");
}

static void write_cell(FILE *out, double x, int digits)
{
    if (isfinite(x))
        fprintf(out, "<td>%.*f</td>", digits, x);
    else
        fprintf(out, "<td data-none>–</td>");
}

static void write_table(FILE *out, const lode_frontier_row_t *rows, uint32_t n, double link, bool scores)
{
    fputs("<h2>All rows</h2>\n<p>A click on a heading sorts; another turns the order round. Green: ours.</p>\n"
          "<table class=\"rows\"><thead><tr><th>policy</th><th>budget&nbsp;%</th><th>landmark bytes a "
          "token</th><th>resident bytes a "
          "token</th><th>MB a step</th><th>MB not fetched the step before</th>",
          out);
    for (uint32_t l = 0; l < LODE_LINKS; l++)
        fprintf(out, "<th>ms at %.0f&nbsp;Gbit/s</th>", lode_links[l]);
    if (link > 0)
        fprintf(out, "<th>ms at the %.1f&nbsp;Gbit/s measured</th>", link);
    fputs("<th>mass</th><th>oracle's mass</th><th>error</th><th>facts</th><th>hit rate</th>", out);
    fputs(scores ? "<th>score</th></tr></thead>\n<tbody>\n" : "</tr></thead>\n<tbody>\n", out);
    for (uint32_t i = 0; i < n; i++) {
        const lode_frontier_row_t *r = &rows[i];
        fprintf(out, "<tr%s><td>%s</td>", r->policy->ours ? " class=\"ours\"" : "", r->policy->name);
        write_cell(out, 100 * r->budget, 3);
        write_cell(out, r->bytes.landmarks, 1);
        write_cell(out, r->bytes.residents, 1);
        write_cell(out, r->bytes_per_step / 1e6, 3);
        write_cell(out, r->reused / 1e6, 3);
        for (uint32_t l = 0; l < LODE_LINKS; l++)
            write_cell(out, lode_link_ms(r->bytes_per_step, lode_links[l]), 3);
        if (link > 0)
            write_cell(out, lode_link_ms(r->bytes_per_step, link), 3);
        write_cell(out, r->mass, 4);
        write_cell(out, r->oracle, 4);
        write_cell(out, r->error, 4);
        write_cell(out, r->facts, 3);
        write_cell(out, r->hits, 3);
        if (scores)
            write_cell(out, r->score, 2);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>\n<script>\n"
          "document.querySelectorAll('.rows th').forEach((th, column) => th.addEventListener('click', () => {\n"
          "  const body = document.querySelector('.rows tbody'), down = th.dataset.order === 'up';\n"
          "  const value = row => { const t = row.cells[column].textContent, x = parseFloat(t);\n"
          "    return column === 0 ? t : (isNaN(x) ? -Infinity : x); };\n"
          "  document.querySelectorAll('.rows th').forEach(other => delete other.dataset.order);\n"
          "  th.dataset.order = down ? 'down' : 'up';\n"
          "  [...body.rows].sort((a, b) => { const x = value(a), y = value(b);\n"
          "    return (x > y ? 1 : x < y ? -1 : 0) * (down ? -1 : 1); }).forEach(row => body.append(row));\n"
          "}));\n</script>\n",
          out);
}

static bool has_curve(const plot_t *plot, const lode_frontier_row_t *rows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (is_drawn(plot, &rows[i]))
            return true;
    return false;
}

lode_status_t lode_frontier_page(const char *path, const lode_frontier_params_t *p, const lode_frontier_found_t *found,
                                 const json_t *report)
{
    static lode_frontier_row_t rows[ROWS];
    uint32_t n = lode_frontier_rows(p, found, rows);
    bool can = lode_frontier_can_plot();
    lode_status_t status = LODE_OK;
    for (uint32_t i = 0; i < PLOTS && can; i++)
        if (has_curve(&plots[i], rows, n))
            LODE_TRY(draw(path, &plots[i], rows, n));
    FILE *out = fopen(path, "w");
    if (!out)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    write_head(out, report);
    for (uint32_t i = 0; i < PLOTS && can && status == LODE_OK; i++)
        if (has_curve(&plots[i], rows, n))
            status = embed(out, path, &plots[i]);
    if (!can)
        fputs("<p>There are no plots: gnuplot was not found when this page was made (Debian's gnuplot-nox).</p>\n",
              out);
    write_beaten(out, rows, n);
    if (p->scores)
        lode_frontier_scores_write(out, p->scores);
    write_table(out, rows, n, p->link, p->scores);
    fputs("</body></html>\n", out);
    int wrong = ferror(out);
    wrong |= fclose(out);
    if (status == LODE_OK && wrong)
        status = lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    return status;
}
