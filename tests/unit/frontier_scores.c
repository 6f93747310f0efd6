/* SPDX-License-Identifier: Apache-2.0 */
/* Scores of a model beside a frontier's rows. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/frontier.h"

TestSuite(scores, .timeout = 60);

/* A file of the report's kind, gone at the end. */
static json_t *read_scores(const char *text, lode_status_t expected)
{
    char path[] = "/tmp/lodemark-scores-XXXXXX";
    json_t *reports = NULL;
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    cr_assert(lode_frontier_scores_read(path, &reports) == expected, "%s", lode_error_message());
    cr_assert(expected == LODE_OK || strstr(lode_error_message(), path), "%s", lode_error_message());
    unlink(path);
    return reports;
}

#define ROW(policy, budget, score) "{\"policy\":\"" policy "\",\"budget\":" budget ",\"score\":" score "}"
#define REPORT(transform, rows) "{\"task\":\"text2json\",\"transform\":" transform ",\"rows\":[" rows "]}"

static double score_at(const json_t *reports, const char *name, double budget)
{
    lode_chooser_t policy;
    cr_assert(lode_chooser_parse(name, &policy) == LODE_OK, "%s", lode_error_message());
    return lode_frontier_score(reports, &policy, budget);
}

Test(scores, stand_beside_the_policy_that_was_run)
{
    json_t *plain =
        read_scores(REPORT("null", ROW("dense", "100", "90.5") "," ROW("landmark2", "3.125", "88") "," ROW(
                                       "landmark16:c8", "3.125", "61.5") "," ROW("shadowkv", "3.125", "40")),
                    LODE_OK);
    cr_expect(score_at(plain, "dense", 1) == 90.5);
    cr_expect(score_at(plain, "landmark2:plain", 0.03125) == 88);
    cr_expect(isnan(score_at(plain, "landmark2", 0.03125)), "no balance stood before what was run");
    cr_expect(isnan(score_at(plain, "landmark2:plain", 0.1)));
    cr_expect(isnan(score_at(plain, "landmark4:plain", 0.03125)));
    cr_expect(score_at(plain, "landmark16:c8", 0.03125) == 61.5);
    cr_expect(score_at(plain, "shadowkv", 0.03125) == 40);
    cr_expect(isnan(score_at(plain, "quest16", 0.03125)) && isnan(score_at(NULL, "dense", 1)));
    json_t *balanced = read_scores(REPORT("\"t.bin\"", ROW("landmark2", "3.125", "89")), LODE_OK);
    cr_expect(score_at(balanced, "landmark2", 0.03125) == 89 && isnan(score_at(balanced, "landmark2:plain", 0.03125)));
    json_t *paper = read_scores(
        REPORT("null", ROW("landmark2:higgs", "5", "70") "," ROW("landmark2:higgs:nocentre", "5", "60")), LODE_OK);
    cr_expect(score_at(paper, "landmark2:higgs", 0.05) == 60, "the paper's codes are not centred");
    json_decref(plain);
    json_decref(balanced);
    json_decref(paper);
}

Test(scores, a_score_may_be_missing_but_nothing_else)
{
    json_t *none = read_scores(REPORT("null", ROW("dense", "100", "null")), LODE_OK);
    cr_expect(isnan(score_at(none, "dense", 1)));
    json_decref(none);
    read_scores("{\"task\":\"text2json\"", LODE_ERR_FORMAT);
    read_scores("[]", LODE_ERR_FORMAT);
    read_scores("{\"rows\":[]}", LODE_ERR_FORMAT);
    read_scores(REPORT("null", "{\"policy\":\"dense\",\"score\":1}"), LODE_ERR_FORMAT);
    read_scores(REPORT("null", "{\"policy\":3,\"budget\":1,\"score\":1}"), LODE_ERR_FORMAT);
    read_scores(REPORT("null", ROW("dense", "100", "\"high\"")), LODE_ERR_FORMAT);
    json_t *reports;
    cr_expect(lode_frontier_scores_read("/nonexistent/scores.json", &reports) == LODE_ERR_IO);
}
