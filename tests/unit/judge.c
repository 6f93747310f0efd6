/* SPDX-License-Identifier: Apache-2.0 */
/* What is published of kinds of landmarks holds on generated keys: orderings, with room to spare, at a small size. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "bench/landmarks.h"

TestSuite(judge, .timeout = 120);

static lode_landmark_table_t table;

static const lode_found_t *find(const char *name, lode_head_kind_t kind)
{
    uint32_t c = 0;
    while (lode_contestants[c].name && strcmp(lode_contestants[c].name, name) != 0)
        c++;
    cr_assert(lode_contestants[c].name != NULL, "no landmark is called %s", name);
    cr_assert(table.found[c][kind].count > 0, "%s took no part", name);
    return &table.found[c][kind];
}

static double top_page(const char *name, lode_head_kind_t kind)
{
    return find(name, kind)->top_page / find(name, kind)->count;
}

static double recall(const char *name, lode_head_kind_t kind)
{
    return find(name, kind)->recall / find(name, kind)->count;
}

/* Mass over the oracle's. */
static double ratio(const char *name, lode_head_kind_t kind, uint32_t budget)
{
    return find(name, kind)->mass[budget] / find("exact keys", kind)->mass[budget];
}

static lode_status_t judge(const char *only, uint32_t fit)
{
    lode_source_t source;
    lode_generator_params_t params = {.seed = 1, .geometry = {1, 16, 8, 64, 0, 0, {.theta = 500000}}};
    cr_assert(lode_generator_parse("model,needles=0.5", &params) == LODE_OK);
    params.sharp_share = 1;
    cr_assert(lode_source_generate(&params, 4096, 1, &source) == LODE_OK);
    lode_landmark_params_t p = {.source = &source,
                                .fit = fit,
                                .queries = 8,
                                .few = 16,
                                .sinks = 4,
                                .window = 16,
                                .threads = 2,
                                .level = "auto",
                                .only = only};
    lode_status_t status = lode_landmark_judge(&p, &table);
    lode_source_close(&source);
    return status;
}

Test(judge, published_orderings)
{
    cr_assert(judge("paper,Hadamard,means,Quest,cuboid", 1) == LODE_OK, "%s", lode_error_message());
    double cuboid = top_page("cuboid of 32 (ArkVale)", LODE_HEAD_FACTS);
    double centroid = top_page("means of 32", LODE_HEAD_FACTS);
    cr_expect(cuboid > 1.5 * centroid, "ArkVale: top page known by cuboids %.3f, by centroids %.3f", cuboid, centroid);
    double needle = ratio("means of 8 (ShadowKV)", LODE_HEAD_NEEDLE, 1);
    double facts = ratio("means of 8 (ShadowKV)", LODE_HEAD_FACTS, 1);
    cr_expect(needle > 0.6 && facts < 0.6 && needle > facts + 0.15, "means of 8: needle %.3f, facts %.3f", needle,
              facts);
    double codes = recall("HIGGS 2 bit, uncentred (paper)", LODE_HEAD_FACTS);
    double quest = recall("min and max of 16 (Quest)", LODE_HEAD_FACTS);
    cr_expect(codes > 0.3 && quest < codes / 2, "few tokens: by codes %.3f, by Quest %.3f", codes, quest);
    for (int kind = LODE_HEAD_FACTS; kind <= LODE_HEAD_NEEDLE; kind++) {
        double four = ratio("4 bit, Hadamard", kind, 0), two = ratio("2 bit, Hadamard", kind, 0);
        double one = ratio("1 bit, Hadamard", kind, 0);
        cr_expect(four > two && two > one, "4, 2, 1 bits: %.3f, %.3f, %.3f", four, two, one);
        cr_expect(two > ratio("means of 8 (ShadowKV)", kind, 0) && two > ratio("min and max of 16 (Quest)", kind, 0));
    }
}

/* On queries that it was not made from. */
Test(judge, the_balance_finds_more)
{
    cr_assert(judge("2 bit,1 bit,1.5 bit", 256) == LODE_OK, "%s", lode_error_message());
    for (int kind = LODE_HEAD_FACTS; kind <= LODE_HEAD_NEEDLE; kind++) {
        double plain = recall("2 bit, Hadamard", kind), balance = recall("2 bit, balance", kind);
        cr_expect(balance > plain, "2 bit: %.3f and %.3f", balance, plain);
        plain = recall("1 bit, Hadamard", kind), balance = recall("1 bit, balance", kind);
        cr_expect(balance > plain, "1 bit: %.3f and %.3f", balance, plain);
        double half = recall("1.5 bit: means of 4 and rest, balance", kind), more = recall("2 bit, balance", kind);
        cr_expect(half > balance && half < more, "1, 1.5, 2 bits: %.3f, %.3f, %.3f", balance, half, more);
        cr_expect(ratio("2 bit, balance", kind, 0) > ratio("HIGGS 2 bit, uncentred (paper)", kind, 0));
    }
}

Test(judge, refuses_what_does_not_fit)
{
    cr_assert(judge("quartz", 1) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "quartz") != NULL);
}
