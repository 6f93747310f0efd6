/* SPDX-License-Identifier: Apache-2.0 */
/* Sums to rows, rows to a table and to JSON and back, and who beats whom. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "bench/frontier.h"

const double lode_links[LODE_LINKS] = {10, 25, 100, 400};

double lode_link_ms(double bytes, double gigabits)
{
    return bytes * 8 / (gigabits * 1e9) * 1e3;
}

/* --------------------------------------------------------------------- rows */

static lode_outcome_t all_kinds(const lode_outcome_t *kinds)
{
    lode_outcome_t sum = {0};
    for (uint32_t k = 0; k < LODE_HEAD_KINDS; k++) {
        sum.count += kinds[k].count;
        sum.mass += kinds[k].mass;
        sum.error += kinds[k].error;
        sum.fetched += kinds[k].fetched;
        sum.again += kinds[k].again;
        sum.again_of += kinds[k].again_of;
        sum.facts_found += kinds[k].facts_found;
        sum.facts += kinds[k].facts;
    }
    return sum;
}

/* The oracle is first, and its budgets are everybody's but dense's, whose oracle is itself. */
static lode_frontier_row_t make_row(const lode_frontier_params_t *p, const lode_frontier_found_t *found, uint32_t i,
                                    uint32_t b)
{
    const lode_geometry_t *g = &p->source->geometry;
    const lode_chooser_t *policy = &p->policies[i];
    bool dense = policy->kind == LODE_CHOOSER_DENSE;
    const lode_outcome_t *kinds = found[i].sum[b], *oracle_kinds = dense ? kinds : found[0].sum[b];
    lode_outcome_t all = all_kinds(kinds), oracle = all_kinds(oracle_kinds);
    lode_frontier_row_t row = {
        .policy = policy,
        .budget = dense ? 1 : p->budgets[b],
        .bytes = lode_chooser_count_bytes(policy, &p->shadow, g->kv_heads, g->head_dim, p->source->starts[1]),
        .mass = all.mass / all.count,
        .oracle = oracle.mass / oracle.count,
        .error = all.error / all.count,
        .facts = all.facts > 0 ? all.facts_found / all.facts : NAN,
        .hits = all.again_of > 0 ? all.again / all.again_of : NAN,
        .score = lode_frontier_score(p->scores, policy, dense ? 1 : p->budgets[b]),
        .kinds = kinds,
        .oracle_kinds = oracle_kinds};
    row.bytes_per_step = all.fetched / all.count * g->kv_heads * g->layers * row.bytes.fetched;
    row.reused = row.bytes_per_step * (all.again_of > 0 ? 1 - row.hits : 1);
    return row;
}

uint32_t lode_frontier_rows(const lode_frontier_params_t *p, const lode_frontier_found_t *found,
                            lode_frontier_row_t *rows)
{
    uint32_t n = 0, layers = p->source->geometry.layers;
    for (uint32_t i = 0; i < p->policy_count && found[0].layers == layers; i++)
        for (uint32_t b = 0; b < lode_chooser_budgets(&p->policies[i], p->budget_count) && found[i].layers == layers;
             b++)
            rows[n++] = make_row(p, found, i, b);
    return n;
}

/* ------------------------------------------------------------------- beaten */

#define LEAST_LEAD 1e-4 /* less is no difference: it would be printed as none */

/* A policy's figure at so many bytes, between its two nearest rows by the logarithm of bytes. @return false below its
 * least bytes */
static bool figure_at(const lode_frontier_row_t *rows, uint32_t n, double bytes, bool error, double *figure)
{
    const double slack = 1 + 1e-9;
    if (bytes * slack < rows[0].bytes_per_step)
        return false;
    uint32_t i = 0;
    while (i + 1 < n && rows[i + 1].bytes_per_step <= bytes * slack)
        i++;
    double from = error ? rows[i].error : rows[i].mass;
    *figure = from;
    if (i + 1 < n && rows[i + 1].bytes_per_step > rows[i].bytes_per_step) {
        double to = error ? rows[i + 1].error : rows[i + 1].mass;
        double low = rows[i].bytes_per_step, high = rows[i + 1].bytes_per_step;
        double way = low > 0 ? log(bytes / low) / log(high / low) : (bytes - low) / (high - low);
        *figure = from + (to - from) * fmax(way, 0);
    }
    return true;
}

static double memory_of(const lode_frontier_row_t *row)
{
    return row->bytes.landmarks + row->bytes.residents;
}

static uint32_t rows_of(const lode_frontier_row_t *rows, uint32_t count, uint32_t i)
{
    uint32_t n = 1;
    while (i + n < count && rows[i + n].policy == rows[i].policy)
        n++;
    return n;
}

/* Dense, oracle and chance are bounds. */
static bool is_rival(const lode_chooser_t *policy)
{
    return !policy->ours && policy->kind != LODE_CHOOSER_DENSE && policy->kind != LODE_CHOOSER_ORACLE &&
           policy->kind != LODE_CHOOSER_RANDOM;
}

/* The best of ours in no more than `memory`. @return whether there is one to compare with */
static bool best_of_ours(const lode_frontier_row_t *rows, uint32_t count, double memory, double bytes,
                         lode_beaten_t *best)
{
    bool any = false;
    double mass, error;
    for (uint32_t i = 0, n; i < count; i += n) {
        n = rows_of(rows, count, i);
        if (!rows[i].policy->ours || memory_of(&rows[i]) > memory * (1 + 1e-9) ||
            !figure_at(&rows[i], n, bytes, false, &mass) || !figure_at(&rows[i], n, bytes, true, &error))
            continue;
        if (!any || mass > best->mass) {
            best->mass = mass;
            best->ours = &rows[i];
        }
        best->error = any ? fmin(best->error, error) : error;
        any = true;
    }
    return any;
}

uint32_t lode_frontier_beaten(const lode_frontier_row_t *rows, uint32_t count, lode_beaten_t *beaten,
                              uint32_t *compared)
{
    uint32_t n = 0;
    double least = INFINITY;
    for (uint32_t i = 0; i < count; i++)
        if (rows[i].policy->ours)
            least = fmin(least, memory_of(&rows[i]));
    *compared = 0;
    for (uint32_t i = 0; i < count; i++) {
        lode_beaten_t one = {.rival = &rows[i], .memory = memory_of(&rows[i]) * (1 + 1e-9) >= least};
        if (!is_rival(rows[i].policy) ||
            !best_of_ours(rows, count, fmax(memory_of(&rows[i]), least), rows[i].bytes_per_step, &one))
            continue;
        ++*compared;
        one.by_mass = rows[i].mass > one.mass + LEAST_LEAD;
        one.by_error = rows[i].error < one.error - LEAST_LEAD;
        if (one.by_mass || one.by_error)
            beaten[n++] = one;
    }
    return n;
}

/* -------------------------------------------------------------------- print */

static void print_beaten(const lode_frontier_row_t *rows, uint32_t count)
{
    static lode_beaten_t beaten[LODE_CHOOSERS_MAX * LODE_BUDGETS_MAX];
    uint32_t compared, n = lode_frontier_beaten(rows, count, beaten, &compared);
    printf("\n%u rows of rivals compared with the best of ours at as many bytes a step and no more landmark memory "
           "(or the\nsmallest of ours, where none is as small): %u better\n",
           compared, n);
    for (uint32_t i = 0; i < n; i++) {
        const lode_beaten_t *b = &beaten[i];
        printf("  %s at %.4g %% beats %s:", b->rival->policy->name, 100 * b->rival->budget, b->ours->policy->name);
        if (b->by_mass)
            printf(" mass %.4f against %.4f", b->rival->mass, b->mass);
        if (b->by_error)
            printf("%s error %.4f against %.4f", b->by_mass ? "," : "", b->rival->error, b->error);
        if (!b->memory)
            printf(" (it keeps %.0f bytes a token, ours %.0f)", memory_of(b->rival), memory_of(b->ours));
        printf("\n");
    }
}

static void print_share(double share)
{
    if (isnan(share))
        printf("      –");
    else
        printf(" %6.3f", share);
}

void lode_frontier_print(const lode_frontier_params_t *p, const lode_frontier_found_t *found)
{
    static lode_frontier_row_t rows[LODE_CHOOSERS_MAX * LODE_BUDGETS_MAX];
    uint32_t n = lode_frontier_rows(p, found, rows);
    printf("%-18s %7s %9s %9s %9s %9s  %6s %6s %7s %6s %6s%s\n", "policy", "budget", "B/token", "resident", "MB a step",
           "ms at 100", "mass", "oracle", "error", "facts", "again", p->scores ? "  score" : "");
    for (uint32_t i = 0; i < n; i++) {
        const lode_frontier_row_t *r = &rows[i];
        printf("%-18s %5.4g %% %9.1f %9.1f %9.3f %9.3f  %6.4f %6.4f %7.4f", r->policy->name, 100 * r->budget,
               r->bytes.landmarks, r->bytes.residents, r->bytes_per_step / 1e6, lode_link_ms(r->bytes_per_step, 100),
               r->mass, r->oracle, r->error);
        print_share(r->facts);
        print_share(r->hits);
        if (p->scores && isnan(r->score))
            printf("      –");
        else if (p->scores)
            printf(" %6.2f", r->score);
        printf("\n");
    }
    if (p->link > 0)
        printf(
            "\nthe link between the first and the last rank, by MPI: %.1f Gbit/s; what moves %.3f MB takes %.3f ms\n",
            p->link, rows[n - 1].bytes_per_step / 1e6, lode_link_ms(rows[n - 1].bytes_per_step, p->link));
    print_beaten(rows, n);
    fflush(stdout);
}

/* --------------------------------------------------------------------- JSON */

static json_t *kinds_json(const lode_frontier_params_t *p, const lode_frontier_row_t *row)
{
    json_t *kinds = json_object();
    for (uint32_t k = 0; k < LODE_HEAD_KINDS; k++) {
        const lode_outcome_t *o = &row->kinds[k];
        if (o->count > 0)
            json_object_set_new(kinds, p->source->captured ? "capture" : lode_head_kind_names[k],
                                json_pack("{s:f s:f s:f s:o}", "found_mass", o->mass / o->count, "oracle_mass",
                                          row->oracle_kinds[k].mass / row->oracle_kinds[k].count, "rel_error",
                                          o->error / o->count, "hit_rate",
                                          lode_job_number(o->again_of > 0 ? o->again / o->again_of : NAN)));
    }
    return kinds;
}

static json_t *row_json(const lode_frontier_params_t *p, const lode_frontier_row_t *row)
{
    json_t *links = json_object();
    char name[32];
    for (uint32_t i = 0; i < LODE_LINKS; i++) {
        snprintf(name, sizeof name, "%.0f", lode_links[i]);
        json_object_set_new(links, name, json_real(lode_link_ms(row->bytes_per_step, lode_links[i])));
    }
    if (p->link > 0)
        json_object_set_new(links, "measured", json_real(lode_link_ms(row->bytes_per_step, p->link)));
    json_t *made =
        json_pack("{s:s s:f s:b s:f s:f s:f s:f s:o s:f s:f s:f s:o s:o s:o}", "policy", row->policy->name, "budget",
                  100 * row->budget, "ours", (int)row->policy->ours, "landmark_bytes_per_token", row->bytes.landmarks,
                  "resident_bytes_per_token", row->bytes.residents, "bytes_per_step", row->bytes_per_step,
                  "bytes_per_step_reused", row->reused, "link_ms", links, "found_mass", row->mass, "oracle_mass",
                  row->oracle, "rel_error", row->error, "facts_recall", lode_job_number(row->facts), "hit_rate",
                  lode_job_number(row->hits), "kinds", kinds_json(p, row));
    if (p->scores)
        json_object_set_new(made, "task_score", lode_job_number(row->score));
    return made;
}

static json_t *beaten_json(const lode_frontier_row_t *rows, uint32_t count)
{
    static lode_beaten_t beaten[LODE_CHOOSERS_MAX * LODE_BUDGETS_MAX];
    uint32_t compared, n = lode_frontier_beaten(rows, count, beaten, &compared);
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(
            list, json_pack("{s:s s:f s:s s:b s:b s:b s:f s:f s:f s:f}", "policy", beaten[i].rival->policy->name,
                            "budget", 100 * beaten[i].rival->budget, "ours", beaten[i].ours->policy->name, "by_mass",
                            (int)beaten[i].by_mass, "by_error", (int)beaten[i].by_error, "no_more_memory",
                            (int)beaten[i].memory, "found_mass", beaten[i].rival->mass, "ours_found_mass",
                            beaten[i].mass, "rel_error", beaten[i].rival->error, "ours_rel_error", beaten[i].error));
    return json_pack("{s:i s:o}", "compared", (int)compared, "better", list);
}

/* The sums themselves, so that another run may go on from them to the bit. */
static json_t *kept_json(const lode_frontier_params_t *p, const lode_frontier_found_t *found)
{
    json_t *kept = json_object();
    for (uint32_t i = 0; i < p->policy_count; i++) {
        if (!found[i].layers)
            continue;
        json_t *numbers = json_array();
        for (uint32_t b = 0; b < p->budget_count; b++)
            for (uint32_t k = 0; k < LODE_HEAD_KINDS; k++) {
                double sums[LODE_OUTCOME_NUMBERS];
                memcpy(sums, &found[i].sum[b][k], sizeof sums);
                for (uint32_t j = 0; j < LODE_OUTCOME_NUMBERS; j++)
                    json_array_append_new(numbers, json_real(sums[j]));
            }
        json_object_set_new(kept, p->policies[i].name,
                            json_pack("{s:i s:o}", "layers", (int)found[i].layers, "sums", numbers));
    }
    return kept;
}

static void read_processor(char *name, size_t room)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, room, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (colon && strncmp(line, "model name", 10) == 0) {
            snprintf(name, room, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
            break;
        }
    }
    if (file)
        fclose(file);
}

static json_t *machine_json(const lode_frontier_params_t *p)
{
    char host[256] = "", processor[256];
    gethostname(host, sizeof host - 1);
    read_processor(processor, sizeof processor);
    const lode_ops_t *ops;
    const char *level = lode_ops_get(p->level, &ops) == LODE_OK ? ops->level : p->level;
    return json_pack("{s:s s:s s:i s:s s:i s:o}", "host", host, "processor", processor, "cores",
                     (int)sysconf(_SC_NPROCESSORS_ONLN), "level", level, "ranks", (int)p->job.ranks, "link_gbit_per_s",
                     lode_job_number(p->link > 0 ? p->link : NAN));
}

json_t *lode_frontier_settings(const lode_frontier_params_t *p, const char *generator, const char *capture)
{
    const lode_geometry_t *g = &p->source->geometry;
    json_t *budgets = json_array();
    for (uint32_t b = 0; b < p->budget_count; b++)
        json_array_append_new(budgets, json_real(100 * p->budgets[b]));
    json_t *settings = json_pack(
        "{s:{s:I s:i s:i s:i s:i s:f} s:o s:i s:i s:i s:i s:i s:s s:i s:i s:i s:i s:f s:f}", "geometry", "tokens",
        (json_int_t)p->source->starts[1], "layers", (int)g->layers, "heads", (int)g->query_heads, "kv_heads",
        (int)g->kv_heads, "head_dim", (int)g->head_dim, "theta", g->rope.theta, "budgets", budgets, "fit", (int)p->fit,
        "runs", (int)p->runs, "steps", (int)p->steps, "sinks", (int)p->sinks, "window", (int)p->window, "merge",
        p->merge == LODE_MERGE_MAX ? "max" : "mean", "rank", (int)p->shadow.rank, "chunk", (int)p->shadow.chunk,
        "outliers", (int)p->shadow.outliers, "local", (int)p->shadow.local, "top_p", p->share, "kinship", p->kinship);
    json_object_set_new(settings, capture ? "capture" : "generator", json_string(capture ? capture : generator));
    json_object_set_new(settings, "seed", json_integer((json_int_t)p->seed));
    return settings;
}

json_t *lode_frontier_json(const lode_frontier_params_t *p, const lode_frontier_found_t *found, json_t *settings)
{
    static lode_frontier_row_t rows[LODE_CHOOSERS_MAX * LODE_BUDGETS_MAX];
    uint32_t n = lode_frontier_rows(p, found, rows);
    json_t *list = json_array(), *report = json_object();
    const char *key;
    json_t *value;
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, row_json(p, &rows[i]));
    json_object_set_new(report, "machine", machine_json(p));
    json_object_foreach(settings, key, value) json_object_set(report, key, value);
    json_object_set_new(report, "rows", list);
    if (p->scores)
        json_object_set(report, "scores", p->scores);
    json_object_set_new(report, "rivals", beaten_json(rows, n));
    json_object_set_new(report, "kept", kept_json(p, found));
    return report;
}

/* ------------------------------------------------------------------- resume */

static lode_status_t same_settings(const json_t *report, const json_t *settings)
{
    const char *key;
    json_t *value;
    json_object_foreach(
        (json_t *)(uintptr_t)settings, key,
        value) if (!json_equal(json_object_get(report, key),
                               value)) return lode_fail(LODE_ERR_INVALID,
                                                        "--resume: the report was made with another \"%s\"", key);
    return LODE_OK;
}

static lode_status_t take_kept(const lode_frontier_params_t *p, const char *name, const json_t *kept,
                               lode_frontier_found_t *found)
{
    json_t *layers = json_object_get(kept, "layers"), *sums = json_object_get(kept, "sums");
    size_t wanted = (size_t)p->budget_count * LODE_HEAD_KINDS * LODE_OUTCOME_NUMBERS, at = 0;
    lode_frontier_found_t made = {.layers = (uint32_t)json_integer_value(layers)};
    if (!json_is_integer(layers) || json_integer_value(layers) < 0 ||
        json_integer_value(layers) > p->source->geometry.layers || json_array_size(sums) != wanted)
        return lode_fail(LODE_ERR_FORMAT, "--resume: what the report kept of \"%s\" is not whole", name);
    for (uint32_t b = 0; b < p->budget_count; b++)
        for (uint32_t k = 0; k < LODE_HEAD_KINDS; k++) {
            double values[LODE_OUTCOME_NUMBERS];
            for (uint32_t j = 0; j < LODE_OUTCOME_NUMBERS; j++)
                values[j] = json_number_value(json_array_get(sums, at++));
            memcpy(&made.sum[b][k], values, sizeof values);
        }
    *found = made;
    return LODE_OK;
}

lode_status_t lode_frontier_resume(const lode_frontier_params_t *p, const json_t *report, const json_t *settings,
                                   lode_frontier_found_t *found)
{
    LODE_TRY(same_settings(report, settings));
    const json_t *kept = json_object_get(report, "kept");
    if (!json_is_object(kept))
        return lode_fail(LODE_ERR_FORMAT, "--resume: the report has no \"kept\"");
    for (uint32_t i = 0; i < p->policy_count; i++) {
        const json_t *one = json_object_get(kept, p->policies[i].name);
        if (one)
            LODE_TRY(take_kept(p, p->policies[i].name, one, &found[i]));
    }
    return LODE_OK;
}
