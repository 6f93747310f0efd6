/* SPDX-License-Identifier: Apache-2.0 */
/* Names, bytes, who beats whom and what a resumed run takes over. What policies find: tests/jobs/frontier. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <string.h>

#include "bench/frontier.h"

TestSuite(frontier, .timeout = 60);

/* -------------------------------------------------------------------- names */

static lode_chooser_t parse(const char *name)
{
    lode_chooser_t policy;
    cr_assert(lode_chooser_parse(name, &policy) == LODE_OK, "%s", lode_error_message());
    return policy;
}

static void expect_refused(lode_status_t status, const char *word)
{
    cr_assert(status == LODE_ERR_INVALID);
    cr_expect(strstr(lode_error_message(), word) != NULL, "\"%s\" does not say \"%s\"", lode_error_message(), word);
}

Test(frontier, names)
{
    lode_chooser_t ours = parse("landmark2:c4"), plain = parse("landmark2:plain"), higgs = parse("landmark2:higgs");
    cr_expect(ours.ours && ours.chunk == 4 && ours.landmark.chunk == 1 && ours.landmark.turn == LODE_TURN_BALANCE);
    cr_expect(plain.ours && plain.landmark.turn == LODE_TURN_HADAMARD && plain.landmark.centre == LODE_CENTRE_BLOCK);
    cr_expect(higgs.ours == false && higgs.landmark.form == LODE_FORM_HIGGS &&
              higgs.landmark.centre == LODE_CENTRE_NONE);
    lode_chooser_t centred = parse("landmark2:higgs:centre");
    cr_expect(centred.ours && centred.landmark.centre == LODE_CENTRE_BLOCK &&
              centred.landmark.turn == LODE_TURN_BALANCE);
    lode_chooser_t means = parse("landmark16:c8"), pages = parse("quest16");
    cr_expect(means.ours == false && means.landmark.form == LODE_FORM_MEANS && means.landmark.chunk == 8 &&
              means.chunk == 8);
    cr_expect(pages.landmark.form == LODE_FORM_BOX && pages.chunk == 16);
    cr_expect(parse("arkvale32").landmark.form == LODE_FORM_CUBOID);
    lode_chooser_t policy;
    lode_chooser_t residual = parse("landmark1.5"), unbalanced = parse("landmark1.5:plain");
    cr_expect(residual.ours && residual.landmark.form == LODE_FORM_RESIDUAL && residual.chunk == 1);
    cr_expect(residual.landmark.turn == LODE_TURN_BALANCE && unbalanced.landmark.turn == LODE_TURN_HADAMARD);
    expect_refused(lode_chooser_parse("landmark1.5:c2", &policy), "landmark1.5:c2");
    expect_refused(lode_chooser_parse("quest23", &policy), "did you mean \"quest");
    expect_refused(lode_chooser_parse("landmak2", &policy), "did you mean \"landmark2\"");
    expect_refused(lode_chooser_parse("landmark3", &policy), "did you mean \"landmark");
    expect_refused(lode_chooser_parse("landmark2:c3", &policy), ":c3");
    expect_refused(lode_chooser_parse("landmark2:higgs:plain", &policy), "no balance");
    expect_refused(lode_chooser_parse("something else", &policy), "there are dense");
    expect_refused(lode_chooser_parse("", &policy), "no policy");
}

Test(frontier, lists)
{
    static lode_chooser_t policies[LODE_CHOOSERS_MAX];
    double budgets[LODE_BUDGETS_MAX];
    uint32_t count;
    cr_assert(lode_choosers_parse("dense,oracle,topp", policies, &count) == LODE_OK);
    cr_expect(count == 3 && policies[0].kind == LODE_CHOOSER_ORACLE && policies[2].kind == LODE_CHOOSER_TOP_P);
    cr_expect(strcmp(policies[2].landmark.name, "topp") == 0);
    expect_refused(lode_choosers_parse("dense,topp,dense", policies, &count), "twice");
    expect_refused(lode_choosers_parse("dense,,topp", policies, &count), "no policy");
    cr_assert(lode_budgets_parse("0.5%,0.01,3.125%", budgets, &count) == LODE_OK);
    cr_expect(count == 3 && budgets[0] == 0.005 && budgets[1] == 0.01 && budgets[2] == 0.03125);
    expect_refused(lode_budgets_parse("1%,cheese", budgets, &count), "cheese");
    expect_refused(lode_budgets_parse("1%,", budgets, &count), "budgets");
    expect_refused(lode_budgets_parse("2%,1%", budgets, &count), "1%");
    expect_refused(lode_budgets_parse("1%,0.01", budgets, &count), "0.01");
    expect_refused(lode_budgets_parse("1%,101%", budgets, &count), "101%");
}

/* -------------------------------------------------------------------- bytes */

static lode_chooser_bytes_t bytes_of(const char *name)
{
    lode_chooser_t policy = parse(name);
    return lode_chooser_count_bytes(&policy, &lode_shadow_published, 8, 128, 131072);
}

/* The fair comparison of PAPERS.md: codes of 2 bits, means of 8 and boxes of 16 take about 256 bytes a token. */
Test(frontier, bytes)
{
    cr_expect(bytes_of("landmark2").landmarks == 8 * (32 + 2));
    cr_expect(bytes_of("landmark1.5").landmarks == 8 * (16 + 2 + (32 + 2) / 4.0));
    cr_expect(bytes_of("landmark2:higgs").landmarks == 8 * (32 + 2));
    cr_expect(bytes_of("landmark1:c2").landmarks == 8 * (16 + 2) / 2.0);
    cr_expect(bytes_of("landmark16:c8").landmarks == 256);
    cr_expect(bytes_of("quest16").landmarks == 256 && bytes_of("arkvale32").landmarks == 128);
    cr_expect(bytes_of("topp").landmarks == 8 * (64 + 2));
    cr_expect(bytes_of("oracle").landmarks == 2048);
    lode_chooser_bytes_t shadow = bytes_of("shadowkv"), dense = bytes_of("dense");
    cr_expect(dense.landmarks == 0 && dense.fetched == (double)lode_record_bytes(LODE_FORMAT_BF16, 128));
    cr_expect(shadow.fetched == 256, "ShadowKV fetches values alone: %g bytes", shadow.fetched);
    cr_expect(shadow.landmarks > 250 && shadow.landmarks < 256 && shadow.residents > 320, "%g, %g", shadow.landmarks,
              shadow.residents);
    cr_expect(lode_link_ms(12.5e6, 100) == 1);
}

/* ------------------------------------------------------------------- beaten */

static lode_frontier_row_t row(const lode_chooser_t *policy, double memory, double bytes, double mass, double error)
{
    return (lode_frontier_row_t){
        .policy = policy, .bytes = {.landmarks = memory}, .bytes_per_step = bytes, .mass = mass, .error = error};
}

Test(frontier, beaten)
{
    lode_chooser_t ours = parse("landmark2"), large = parse("landmark4"), quest = parse("quest16"),
                   small = parse("arkvale32"), chance = parse("random");
    lode_frontier_row_t rows[] = {
        row(&ours, 256, 100, 0.6, 0.4),        row(&ours, 256, 1000, 0.8, 0.2), /* between them, at 316: 0.7 and 0.3 */
        row(&large, 512, 100, 0.9, 0.1),       row(&large, 512, 1000, 0.95, 0.05),
        row(&quest, 256, 99, 0.99, 0.0),       /* fewer bytes than any of ours: not compared */
        row(&quest, 256, 316.228, 0.71, 0.31), /* more mass; landmark4 keeps too much to be held against it */
        row(&quest, 256, 2000, 0.79, 0.19),    /* less error */
        row(&small, 128, 100, 0.61, 0.5),      /* none of ours is as small: the smallest is held against it */
        row(&small, 128, 1000, 0.8, 0.2),      /* as good is not better */
        row(&chance, 0, 1000, 1, 0),
    };
    lode_beaten_t beaten[10];
    uint32_t compared, n = lode_frontier_beaten(rows, sizeof rows / sizeof *rows, beaten, &compared);
    cr_assert(n == 3 && compared == 4, "%u of %u", n, compared);
    cr_expect(beaten[0].rival == &rows[5] && beaten[0].by_mass && !beaten[0].by_error && beaten[0].memory);
    cr_expect(fabs(beaten[0].mass - 0.7) < 1e-4 && beaten[0].ours->policy == &ours, "%g", beaten[0].mass);
    cr_expect(beaten[1].rival == &rows[6] && !beaten[1].by_mass && beaten[1].by_error && beaten[1].mass == 0.8);
    cr_expect(beaten[2].rival == &rows[7] && beaten[2].by_mass && !beaten[2].memory);
}

/* ------------------------------------------------------------------- resume */

static lode_chooser_t policies[LODE_CHOOSERS_MAX];
static lode_frontier_found_t found[LODE_CHOOSERS_MAX], again[LODE_CHOOSERS_MAX];

static lode_frontier_params_t make_params(lode_source_t *source)
{
    lode_generator_params_t generator = {.seed = 1, .geometry = {1, 4, 2, 64, 0, 0, {.theta = 500000}}};
    cr_assert(lode_generator_parse("model", &generator) == LODE_OK);
    cr_assert(lode_source_generate(&generator, 512, 1, source) == LODE_OK);
    lode_frontier_params_t p = {.source = source,
                                .job = {0, 1},
                                .policies = policies,
                                .budgets = {0.05, 0.2},
                                .budget_count = 2,
                                .fit = 16,
                                .runs = 1,
                                .steps = 2,
                                .sinks = 4,
                                .window = 16,
                                .shadow = {32, 8, 4, 2},
                                .share = 0.9,
                                .kinship = 0.8,
                                .seed = 1,
                                .level = "auto"};
    return p;
}

Test(frontier, resume)
{
    lode_source_t source;
    lode_frontier_params_t p = make_params(&source);
    cr_assert(lode_choosers_parse("landmark2,shadowkv", policies, &p.policy_count) == LODE_OK);
    cr_assert(lode_frontier_run(&p, found, NULL, NULL) == LODE_OK, "%s", lode_error_message());
    json_t *settings = lode_frontier_settings(&p, "model", NULL), *report = lode_frontier_json(&p, found, settings);
    char *text = json_dumps(report, JSON_REAL_PRECISION(17));
    json_t *read = json_loads(text, 0, NULL);
    cr_assert(json_array_size(json_object_get(read, "rows")) == 6);
    cr_assert(lode_frontier_resume(&p, read, settings, again) == LODE_OK, "%s", lode_error_message());
    cr_expect(memcmp(found, again, sizeof found) == 0, "what was kept is not what was found");
    cr_assert(lode_frontier_run(&p, again, NULL, NULL) == LODE_OK);
    cr_expect(memcmp(found, again, sizeof found) == 0, "what was kept was judged again");

    json_t *sums = json_object_get(json_object_get(json_object_get(read, "kept"), "shadowkv"), "sums");
    json_array_remove(sums, 0);
    cr_expect(lode_frontier_resume(&p, read, settings, again) == LODE_ERR_FORMAT);
    json_object_set_new(read, "seed", json_integer(2));
    expect_refused(lode_frontier_resume(&p, read, settings, again), "seed");
    json_decref(read);
    json_decref(report);
    json_decref(settings);
    free(text);
    lode_source_close(&source);
}

Test(frontier, refuses_what_does_not_fit)
{
    lode_source_t source;
    lode_frontier_params_t p = make_params(&source);
    cr_assert(lode_choosers_parse("shadowkv", policies, &p.policy_count) == LODE_OK);
    cr_expect(lode_frontier_check(&p) == LODE_OK);
    p.shadow.rank = 160;
    expect_refused(lode_frontier_check(&p), "--rank");
    p.shadow.rank = 32;
    p.shadow.outliers = 64;
    expect_refused(lode_frontier_check(&p), "outliers");
    p.window = 500;
    expect_refused(lode_frontier_check(&p), "sees 512 tokens");
    lode_source_close(&source);
}
