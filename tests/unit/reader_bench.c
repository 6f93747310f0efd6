/* SPDX-License-Identifier: Apache-2.0 */
/* Problems cut into documents; names of policies. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_score.h"

TestSuite(split, .timeout = 60);
TestSuite(readings, .timeout = 60);
TestSuite(look_ups, .timeout = 60);

/* ------------------------------------------------------------------ problems */

static lode_problem_t split(const char *text)
{
    lode_problem_t problem;
    cr_assert(lode_problem_split(text, strlen(text), &problem) == LODE_OK, "%s", lode_error_message());
    return problem;
}

static void expect_text(const char *text, size_t bytes, const char *wanted)
{
    cr_expect(bytes == strlen(wanted) && memcmp(text, wanted, bytes) == 0, "\"%.*s\" is not \"%s\"", (int)bytes, text,
              wanted);
}

Test(split, a_problem_as_it_is_made)
{
    lode_problem_t p = split("Read these. A request follows.\n\nDocument 1\nOne thing.\nMore of it.\n\nDocument 12\n"
                             "Another thing.\n\nRequest: list every thing.\nAll of them.\n");
    cr_assert(p.count == 2);
    expect_text(p.documents[0].text, p.documents[0].bytes, "Document 1\nOne thing.\nMore of it.");
    expect_text(p.documents[1].text, p.documents[1].bytes, "Document 12\nAnother thing.");
    cr_expect(strcmp(p.documents[1].name, "Document 12") == 0);
    expect_text(p.request, p.request_bytes, "Request: list every thing.\nAll of them.");
    lode_problem_free(&p);
    cr_expect(p.documents == NULL && p.count == 0);
}

Test(split, only_whole_lines_are_headers)
{
    lode_problem_t p = split("Document 1\nSee Document 2\nDocument 2 says so.\nDocument x\n Document 3\nDocument \n"
                             "Request: is a word here\nDocument 4\nRequests:\nRequest of old\nRequest: now");
    cr_assert(p.count == 2, "%u", p.count);
    cr_expect(strcmp(p.documents[0].name, "Document 1") == 0 && strcmp(p.documents[1].name, "Document 4") == 0);
    expect_text(p.documents[1].text, p.documents[1].bytes, "Document 4\nRequests:\nRequest of old");
    expect_text(p.request, p.request_bytes, "Request: now");
    lode_problem_free(&p);
}

static void expect_refused(const char *text, const char *word)
{
    lode_problem_t problem;
    cr_assert(lode_problem_split(text, strlen(text), &problem) == LODE_ERR_FORMAT, "%s", text);
    cr_expect(strstr(lode_error_message(), word) != NULL, "\"%s\" does not say \"%s\"", lode_error_message(), word);
}

Test(split, what_is_no_problem_is_refused)
{
    expect_refused("", "no documents");
    expect_refused("Request: of nothing", "no documents");
    expect_refused("Document 1\nA thing.", "after its 1 documents");
    expect_refused("Request: too early\nDocument 1\nA thing.", "after its 1 documents");
    expect_refused("Document 1\n\nDocument 2\nA thing.\nRequest: x", "\"Document 1\" has no text");
    expect_refused("Document 1\nA thing.\nDocument 2\n  \nRequest: x", "\"Document 2\" has no text");
}

Test(split, a_made_sample_comes_apart_without_loss)
{
    lode_text2json_params_t params = {.task = LODE_TASK_TEXT2JSON,
                                      .seed = 5,
                                      .domains = 15,
                                      .tokens_min = 1500,
                                      .tokens_max = 2500,
                                      .items_min = 3,
                                      .items_max = 5};
    for (uint64_t i = 0; i < 8; i++) {
        lode_text2json_sample_t sample;
        cr_assert(lode_text2json_make(&params, i, &sample) == LODE_OK);
        lode_problem_t p = split(sample.problem);
        cr_expect(p.count == sample.documents);
        for (uint32_t d = 0; d < p.count; d++) {
            char name[32];
            snprintf(name, sizeof name, "Document %u", d + 1);
            cr_expect(strcmp(p.documents[d].name, name) == 0);
            cr_expect(d == 0 || p.documents[d].text > p.documents[d - 1].text + p.documents[d - 1].bytes);
        }
        cr_expect(strncmp(p.request, "Request: list every", 19) == 0);
        lode_problem_free(&p);
        lode_text2json_sample_free(&sample);
    }
}

/* ------------------------------------------------------------------ look-ups */

static json_t *gold_of(const char *text)
{
    json_t *gold = json_loads(text, 0, NULL);
    cr_assert(gold && lode_text2json_check_gold(gold) == LODE_OK, "%s", lode_error_message());
    return gold;
}

Test(look_ups, every_value_is_asked_for_by_its_label)
{
    json_t *gold = gold_of("[{\"name\":\"Keldik Z290\",\"weight\":\"5110 g\",\"material\":\"bamboo\"},"
                           "{\"name\":\"Dr. Holm\",\"phone\":\"030 55\",\"aura\":\"blue\"}]");
    lode_question_t *questions;
    uint32_t count;
    cr_assert(lode_questions_look_up(gold, &questions, &count) == LODE_OK && count == 4);
    cr_expect(strcmp(questions[0].text, "What is the weight of Keldik Z290?") == 0, "%s", questions[0].text);
    cr_expect(strcmp(questions[0].value, "5110 g") == 0 && questions[0].bytes == strlen(questions[0].text));
    cr_expect(strcmp(questions[1].text, "What is the body of Keldik Z290?") == 0 ||
                  strstr(questions[1].text, "material"),
              "%s", questions[1].text);
    cr_expect(strcmp(questions[3].text, "What is the aura of Dr. Holm?") == 0, "a key nobody knows is its own label");
    lode_questions_free(questions, count);
    json_decref(gold);
}

Test(look_ups, documents_that_are_needed_stay)
{
    json_t *gold = gold_of("[{\"name\":\"Ann\",\"a\":\"1\",\"b\":\"2\"},{\"name\":\"Bob\",\"a\":\"3\",\"b\":\"4\"}]");
    const char *text = "Document 1\nx\nDocument 2\nBob is 3.\nDocument 3\ny\nDocument 4\nz\nDocument 5\nAnn is 1.\n"
                       "Document 6\nw\nRequest: all";
    bool chosen[6] = {false};
    for (uint64_t seed = 0; seed < 40; seed++) {
        lode_problem_t p = split(text);
        lode_problem_keep(&p, gold, 3, seed);
        cr_assert(p.count == 3);
        uint32_t last = 0, needed = 0;
        for (uint32_t i = 0; i < p.count; i++) {
            uint32_t number = (uint32_t)strtoul(p.documents[i].name + 9, NULL, 10);
            cr_expect(number > last, "in their order");
            last = number;
            needed += number == 2 || number == 5;
            chosen[number - 1] = true;
        }
        cr_expect(needed == 2);
        lode_problem_free(&p);
    }
    for (uint32_t i = 0; i < 6; i++)
        cr_expect(chosen[i], "document %u was never taken", i + 1);
    lode_problem_t p = split(text);
    lode_problem_keep(&p, gold, 0, 1);
    cr_expect(p.count == 6);
    lode_problem_keep(&p, gold, 1, 1);
    cr_expect(p.count == 2, "what is needed stays, whatever is asked for");
    lode_problem_free(&p);
    json_decref(gold);
}

/* ------------------------------------------------------------------ policies */

Test(readings, names)
{
    lode_reading_t readings[LODE_READINGS_MAX];
    uint32_t count, stores;
    cr_assert(lode_readings_parse("landmark4,dense,shadowkv,landmark2:c4,shadowkv:r64", readings, &count, &stores) ==
              LODE_OK);
    cr_expect(count == 5 && stores == 2);
    cr_expect(readings[0].store == 0 && readings[1].store == 0 && readings[3].store == 1);
    cr_expect(readings[1].kind == LODE_READING_DENSE && readings[1].landmark.bits == 4, "dense reads what there is");
    cr_expect(readings[2].kind == LODE_READING_SHADOW && readings[2].rank == 0 && readings[4].rank == 64);
    cr_expect(readings[3].landmark.chunk == 4);
    cr_assert(lode_readings_parse("dense", readings, &count, &stores) == LODE_OK && stores == 1 && count == 1);
    cr_assert(lode_readings_parse("shadowkv", readings, &count, &stores) == LODE_OK && stores == 0);
}

static void expect_unknown(const char *text, const char *word)
{
    lode_reading_t readings[LODE_READINGS_MAX];
    uint32_t count, stores;
    cr_assert(lode_readings_parse(text, readings, &count, &stores) == LODE_ERR_INVALID, "%s", text);
    cr_expect(strstr(lode_error_message(), word) != NULL, "\"%s\" does not say \"%s\"", lode_error_message(), word);
}

Test(readings, slips_are_answered_with_the_nearest_name)
{
    expect_unknown("dence", "did you mean \"dense\"");
    expect_unknown("dense,shadokv", "did you mean \"shadowkv\"");
    expect_unknown("landmrk2", "did you mean \"landmark2\"");
    expect_unknown("landmark3", "did you mean \"landmark");
    expect_unknown("landmark2:c3", ":c3");
    expect_unknown("shadowkv:r", "a rank is a whole number");
    expect_unknown("shadowkv:rx", "a rank is a whole number");
    expect_unknown("shadowkv:r0", "a rank is a whole number");
    expect_unknown("shadowkvx", "shadowkv");
    expect_unknown("quest16", "there are dense");
    expect_unknown("dense,dense", "named twice");
    expect_unknown("", "no policy");
    expect_unknown("a-name-that-is-longer-than-any-policy-may-ever-be", "no policy");
}

Test(readings, narrow_keys_get_the_share_of_the_published_rank)
{
    cr_expect(lode_shadow_rank(1024) == 160 && lode_shadow_rank(512) == 160 && lode_shadow_rank(256) == 160);
    cr_expect(lode_shadow_rank(128) == 20 && lode_shadow_rank(64) == 10 && lode_shadow_rank(160) == 25);
}
