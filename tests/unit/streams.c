/* SPDX-License-Identifier: Apache-2.0 */
/* What bench streams works out: against values worked out by hand. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <string.h>

#include "bench/streams.h"

TestSuite(streams, .timeout = 60);

static void expect_near(double value, double wanted)
{
    cr_expect(fabs(value - wanted) <= 1e-12 * fmax(1, fabs(wanted)), "%.17g is not %.17g", value, wanted);
}

static void expect_refused(lode_status_t status, lode_status_t wanted, const char *word)
{
    cr_assert(status == wanted, "%s", lode_status_string(status));
    cr_expect(strstr(lode_error_message(), word) != NULL, "\"%s\" does not say \"%s\"", lode_error_message(), word);
}

/* --------------------------------------------------------------------- names */

Test(streams, arrivals)
{
    lode_arrival_t a[LODE_ARRIVALS_MAX];
    uint32_t count;
    cr_assert(lode_arrivals_parse("never,0,016,half", a, &count) == LODE_OK && count == 4);
    cr_expect(a[0].kind == LODE_ARRIVAL_NEVER && strcmp(a[0].name, "never") == 0);
    cr_expect(a[1].kind == LODE_ARRIVAL_AFTER && a[1].steps == 0 && strcmp(a[1].name, "0") == 0);
    cr_expect(a[2].kind == LODE_ARRIVAL_AFTER && a[2].steps == 16 && strcmp(a[2].name, "16") == 0);
    cr_expect(a[3].kind == LODE_ARRIVAL_HALF && strcmp(a[3].name, "half") == 0);
    expect_refused(lode_arrivals_parse("4,many", a, &count), LODE_ERR_INVALID, "\"many\"");
    expect_refused(lode_arrivals_parse("4,-1", a, &count), LODE_ERR_INVALID, "\"-1\"");
    expect_refused(lode_arrivals_parse("1.5", a, &count), LODE_ERR_INVALID, "\"1.5\"");
    expect_refused(lode_arrivals_parse("65537", a, &count), LODE_ERR_INVALID, "65536");
    expect_refused(lode_arrivals_parse("", a, &count), LODE_ERR_INVALID, "\"\"");
    expect_refused(lode_arrivals_parse("4,", a, &count), LODE_ERR_INVALID, "\"\"");
    expect_refused(lode_arrivals_parse("4,never,04", a, &count), LODE_ERR_INVALID, "\"04\" is named twice");
    expect_refused(lode_arrivals_parse("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", a, &count), LODE_ERR_INVALID,
                   "more than 16");
}

Test(streams, modes)
{
    lode_talk_mode_t m[LODE_TALK_MODES];
    uint32_t count;
    cr_assert(lode_talk_modes_parse("no-thought,at-once", m, &count) == LODE_OK && count == 2);
    cr_expect(m[0] == LODE_TALK_NO_THOUGHT && m[1] == LODE_TALK_AT_ONCE);
    for (uint32_t i = 0; i < count; i++)
        cr_expect(strcmp(lode_talk_mode_name(m[i]), i ? "at-once" : "no-thought") == 0);
    expect_refused(lode_talk_modes_parse("at-one", m, &count), LODE_ERR_INVALID, "did you mean \"at-once\"");
    expect_refused(lode_talk_modes_parse("aloud", m, &count), LODE_ERR_INVALID, "\"aloud\"");
    expect_refused(lode_talk_modes_parse("", m, &count), LODE_ERR_INVALID, "no mode");
    expect_refused(lode_talk_modes_parse("at-once,think-first,at-once", m, &count), LODE_ERR_INVALID,
                   "\"at-once\" is named twice");
    expect_refused(lode_talk_modes_parse("at-once,think-first,no-thought,at-once", m, &count), LODE_ERR_INVALID,
                   "twice");
}

/* -------------------------------------------------------------------- halves */

static void expect_halves(const char *request, const char *second)
{
    size_t at = 0;
    cr_assert(lode_request_halves(request, strlen(request), &at) == LODE_OK, "%s", lode_error_message());
    cr_expect(strcmp(request + at, second) == 0, "\"%s\" is not \"%s\"", request + at, second);
}

Test(streams, halves_of_a_request)
{
    expect_halves("Request: list every drill made in St. Gallen that the documents describe. Answer with a list.",
                  " Answer with a list.");
    expect_halves("List films of Dr. No!! All of them! And quickly.", " And quickly.");
    expect_halves("Which lamp weighs 2.5 kg. or more\nof them? Say\nwhich.", " Say\nwhich.");
    expect_halves("Gr\xc3\xbc\xc3\x9f"
                  "e.\nMehr.",
                  "\nMehr.");
    const char *bad[] = {"", "Request: list every drill.", "Request: list e.g. this", "one.two", "a. b. c. d", "word."};
    size_t at = 77;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_refused(lode_request_halves(bad[i], strlen(bad[i]), &at), LODE_ERR_FORMAT, "no second sentence");
    cr_expect(at == 77);
}

Test(streams, made_requests_have_halves)
{
    lode_text2json_params_t params = {
        .seed = 3, .domains = 15, .tokens_min = 400, .tokens_max = 700, .items_min = 2, .items_max = 2};
    for (uint64_t i = 0; i < 40; i++) {
        lode_text2json_sample_t sample;
        lode_problem_t problem;
        size_t at;
        cr_assert(lode_text2json_make(&params, i, &sample) == LODE_OK);
        cr_assert(lode_problem_split(sample.problem, strlen(sample.problem), &problem) == LODE_OK);
        cr_assert(lode_request_halves(problem.request, problem.request_bytes, &at) == LODE_OK);
        cr_expect(strncmp(problem.request + at, " Answer with a JSON list", 24) == 0, "%s", problem.request);
        lode_problem_free(&problem);
        lode_text2json_sample_free(&sample);
    }
}

/* --------------------------------------------------------------------- delay */

/* chunks of 2 at 4 tokens a second: each is half a second of speech, the last one of one token a quarter */
Test(streams, delay)
{
    lode_speech_t speech = {.rate = 4, .chunk = 2};
    const double said[] = {1, 1.5, 1.75, 2, 4};
    /* ready 1.5: heard 1.5 to 2; ready 2: 2 to 2.5, no wait; ready 4: 1.5 late */
    expect_near(lode_speech_delay(&speech, said, 5), 1.5 + 0 + 1.5);
    expect_near(lode_speech_delay(&speech, said, 4), 1.5);
    expect_near(lode_speech_delay(&speech, said, 1), 1);
    cr_expect(isnan(lode_speech_delay(&speech, said, 0)));
    speech.synthesis_s = 0.25; /* ready 1.75, 2.25, 4.25: the second is ready when the first ends */
    expect_near(lode_speech_delay(&speech, said, 5), 1.75 + 0 + (4.25 - 2.75));
    speech = (lode_speech_t){.rate = 0.5, .chunk = 2}; /* four seconds of speech each: only the first is waited for */
    expect_near(lode_speech_delay(&speech, said, 5), 1.5);
    speech = (lode_speech_t){.rate = 1e9, .chunk = 1}; /* speech takes no time: all that passes is waited for */
    expect_near(lode_speech_delay(&speech, said, 5) + 4e-9, 4);
}

/* --------------------------------------------------------------------- means */

Test(streams, means)
{
    const double a[] = {2, NAN, 4, 9}, b[] = {1, 5, 1, NAN};
    lode_mean_t mean = lode_mean(a, 4);
    expect_near(mean.mean, 5); /* 3, 1, 4 from it: 26 / 2 / 3 */
    expect_near(mean.error, sqrt(26.0 / 6));
    cr_expect(mean.count == 3);
    mean = lode_mean_ratio(a, b, 4); /* 2 and 4: logarithms 1 and 2 times log 2 */
    expect_near(mean.mean, sqrt(8));
    expect_near(mean.error, sqrt(8) * log(2) / 2);
    cr_expect(mean.count == 2);
    mean = lode_mean_difference(a, b, 4); /* 1 and 3 */
    expect_near(mean.mean, 2);
    expect_near(mean.error, 1);
    const double none[] = {NAN, 0};
    mean = lode_mean(none, 1);
    cr_expect(isnan(mean.mean) && isnan(mean.error) && mean.count == 0);
    mean = lode_mean(b, 1);
    cr_expect(mean.mean == 1 && isnan(mean.error) && mean.count == 1);
    cr_expect(isnan(lode_mean_ratio(a, none, 2).mean), "what is 0 has no ratio");
}

/* --------------------------------------------------------------------- talks */

/* Takes in a request, thinks twice, listens twice, takes in the rest, is probed, speaks three words in two steps. */
static void note_talk(lode_track_t *track)
{
    const lode_talk_step_t steps[] = {
        {.tokens = {[LODE_TALK_INPUT] = 9, [LODE_TALK_THINKER] = 1},
         .said = {[LODE_TALK_THINKER] = 1},
         .records_wanted = 1000,
         .step_ns = 40000000},
        {.tokens = {[LODE_TALK_THINKER] = 1},
         .said = {[LODE_TALK_THINKER] = 1},
         .records_wanted = 10,
         .bytes_fetched = 30,
         .step_ns = 2000000},
        {.state = LODE_TALK_LISTENING},
        {.state = LODE_TALK_LISTENING},
        {.tokens = {[LODE_TALK_INPUT] = 5}, .probed = true, .yes = 0.1, .no = 0.2, .step_ns = 20000000},
        {.tokens = {[LODE_TALK_THINKER] = 1, [LODE_TALK_CONTROL] = 3},
         .said = {[LODE_TALK_THINKER] = 1},
         .probed = true,
         .yes = 0.3,
         .no = 0.2,
         .records_wanted = 20,
         .bytes_fetched = 60,
         .step_ns = 4000000},
        {.tokens = {[LODE_TALK_THINKER] = 1, [LODE_TALK_WRITER] = 2},
         .said = {[LODE_TALK_WRITER] = 1},
         .records_wanted = 30,
         .step_ns = 6000000},
        {.tokens = {[LODE_TALK_WRITER] = 1},
         .said = {[LODE_TALK_WRITER] = 2},
         .records_wanted = 40,
         .step_ns = 8000000},
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        cr_assert(lode_track_add(track, &steps[i]) == LODE_OK);
}

Test(streams, what_a_talk_comes_to)
{
    lode_track_t track = {0};
    lode_speech_t speech = {.rate = 500, .chunk = 2};
    double v[LODE_STREAMS_MEASURES];
    note_talk(&track);
    cr_assert(lode_track_measure(&track, 0, &speech, 8, v) == LODE_OK);
    /* plain steps take 2, 4, 6 and 8 ms, so listening 5 each: 40, 42, 47, 52, 72, 76, 82, 90 */
    expect_near(v[LODE_STREAMS_FIRST_STEPS], 7);
    expect_near(v[LODE_STREAMS_FIRST_MS], 82);
    expect_near(v[LODE_STREAMS_STEPS], 8);
    expect_near(v[LODE_STREAMS_MS], 90);
    expect_near(v[LODE_STREAMS_DELAY], 0.090); /* words at 82, 90, 90: the first two are ready at 90, the third too */
    expect_near(v[LODE_STREAMS_THOUGHTS], 3);
    expect_near(v[LODE_STREAMS_WORDS], 3);
    expect_near(v[LODE_STREAMS_STEP_MS], 5);
    expect_near(v[LODE_STREAMS_CHOSEN], (10 + 20 + 30 + 40) * 8 / 4.0);
    expect_near(v[LODE_STREAMS_FETCHED], 90 / 4.0);
    expect_near(v[LODE_STREAMS_PROBES], 2);
    expect_near(v[LODE_STREAMS_YES], 1);
    cr_assert(lode_track_measure(&track, 50, &speech, 8, v) == LODE_OK);
    expect_near(v[LODE_STREAMS_FIRST_MS], 350);
    expect_near(v[LODE_STREAMS_MS], 400);
    expect_near(v[LODE_STREAMS_DELAY], 0.4);
    expect_near(v[LODE_STREAMS_STEP_MS], 5);
    lode_track_free(&track);
    cr_expect(track.count == 0 && track.steps == NULL);
}

Test(streams, a_silent_talk)
{
    lode_track_t track = {0};
    lode_talk_step_t step = {.tokens = {[LODE_TALK_INPUT] = 3}, .step_ns = 7000000};
    lode_speech_t speech = {.rate = 1, .chunk = 5};
    double v[LODE_STREAMS_MEASURES];
    cr_assert(lode_track_measure(&track, 0, &speech, 8, v) == LODE_OK);
    cr_expect(v[LODE_STREAMS_MS] == 0 && v[LODE_STREAMS_STEPS] == 0 && isnan(v[LODE_STREAMS_FIRST_MS]));
    cr_assert(lode_track_add(&track, &step) == LODE_OK);
    cr_assert(lode_track_measure(&track, 0, &speech, 8, v) == LODE_OK);
    cr_expect(isnan(v[LODE_STREAMS_FIRST_STEPS]) && isnan(v[LODE_STREAMS_DELAY]) && isnan(v[LODE_STREAMS_STEP_MS]));
    cr_expect(v[LODE_STREAMS_WORDS] == 0 && v[LODE_STREAMS_MS] == 7);
    lode_track_free(&track);
}
