/* SPDX-License-Identifier: Apache-2.0 */
/* The course of a talk over scripted draws and probes: no model, no tokens. */
#include <criterion/criterion.h>
#include <string.h>

#include "reader/talk_inside.h"

TestSuite(talk_state, .timeout = 60);

enum { EVERY = 3 };

static lode_talk_course_t course;

static void begin(lode_talk_mode_t mode)
{
    lode_course_begin(&course, mode, false, EVERY);
    cr_assert(course.state == LODE_TALK_LISTENING);
}

static void hear(bool some, bool more)
{
    cr_assert(lode_course_may_hear(&course));
    lode_course_hear(&course, some, more);
}

/*
 * A step: who must go, "i", "t", "w", "c", and "T", "W" for those that are asked again; what thinker and writer drew,
 * "." a sentence's end, "p" a paragraph's, "s" a stop, "f" a limit; the probe's answer; and the state after it.
 */
static lode_talk_drawn_t drawn(const char *what)
{
    return (lode_talk_drawn_t){.stopped = strpbrk(what, "sf") != NULL,
                               .full = strchr(what, 'f') != NULL,
                               .paragraph = strpbrk(what, "psf") != NULL,
                               .sentence = strpbrk(what, ".psf") != NULL};
}

#define STEP(who, thought, word, yes, after) step(who, thought, word, yes, after, __LINE__)
static void step(const char *who, const char *thought, const char *word, bool yes, lode_talk_state_t after, int line)
{
    char goes[8] = "";
    lode_talk_plan_t plan = lode_course_plan(&course);
    lode_talk_learnt_t learnt = {drawn(thought), drawn(word), yes};
    snprintf(goes, sizeof goes, "%s%s%s%s", plan.input ? "i" : "",
             !plan.thinker        ? ""
             : plan.thinker_again ? "T"
                                  : "t",
             !plan.writer        ? ""
             : plan.writer_again ? "W"
                                 : "w",
             plan.control ? "c" : "");
    cr_assert(strcmp(goes, who) == 0, "line %d: \"%s\" go, not \"%s\"", line, goes, who);
    cr_assert(lode_plan_is_empty(&plan) == !*who);
    if (*who)
        lode_course_learn(&course, &plan, &learnt);
    cr_assert(course.state == after, "line %d: state %d, not %d", line, course.state, after);
}

Test(talk_state, nothing_happens_before_something_is_heard)
{
    for (int mode = LODE_TALK_AT_ONCE; mode <= LODE_TALK_NO_THOUGHT; mode++) {
        begin((lode_talk_mode_t)mode);
        STEP("", "", "", false, LODE_TALK_LISTENING);
        hear(false, true);
        STEP("", "", "", false, LODE_TALK_LISTENING);
    }
}

Test(talk_state, without_thoughts_the_writer_waits_for_all_of_the_request)
{
    begin(LODE_TALK_NO_THOUGHT);
    hear(true, true);
    STEP("i", "", "", false, LODE_TALK_LISTENING);
    STEP("", "", "", false, LODE_TALK_LISTENING);
    hear(true, true);
    hear(true, false);
    STEP("iw", "", "p", false, LODE_TALK_WRITING);
    cr_assert(!lode_course_may_hear(&course));
    STEP("w", "", "", false, LODE_TALK_WRITING);
    STEP("w", "", "s", false, LODE_TALK_ENDED);
    STEP("", "", "", false, LODE_TALK_ENDED);
    begin(LODE_TALK_NO_THOUGHT); /* a promise that is not kept */
    hear(true, true);
    STEP("i", "", "", false, LODE_TALK_LISTENING);
    hear(false, false);
    STEP("w", "", "f", false, LODE_TALK_ENDED);
}

Test(talk_state, thoughts_first_are_never_probed)
{
    begin(LODE_TALK_THINK_FIRST);
    hear(true, false);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    for (int i = 0; i < 3 * EVERY; i++)
        STEP("t", i % 2 ? "p" : ".", "", false, LODE_TALK_THINKING);
    STEP("t", "s", "", false, LODE_TALK_WRITING);
    cr_assert(!lode_course_may_hear(&course));
    STEP("w", "", "p", false, LODE_TALK_WRITING);
    STEP("w", "", "s", false, LODE_TALK_ENDED);
    cr_assert(!lode_course_may_hear(&course));
}

Test(talk_state, the_thinker_is_probed_every_few_steps_and_at_the_ends_of_paragraphs)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, false);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    STEP("t", "", "", false, LODE_TALK_THINKING);
    STEP("t", "", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", false, LODE_TALK_THINKING); /* three passes */
    STEP("t", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", false, LODE_TALK_THINKING); /* a paragraph, and the count begins anew */
    STEP("t", ".", "", false, LODE_TALK_THINKING);
    STEP("t", "", "", false, LODE_TALK_THINKING);
    STEP("tc", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
}

Test(talk_state, the_writer_speaks_to_the_end_of_its_paragraph)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, false);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "p", "", false, LODE_TALK_BOTH); /* no probes */
    for (int i = 0; i < 2 * EVERY; i++)
        STEP("tw", "", "", false, LODE_TALK_BOTH);
    STEP("tw", "", "p", false, LODE_TALK_THINKING);
    for (int i = 0; i < EVERY; i++)
        STEP("t", "", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "p", "p", false, LODE_TALK_THINKING);
    STEP("tc", "s", "", true, LODE_TALK_WRITING); /* the end of thoughts counts for more than a yes */
    STEP("w", "", "p", false, LODE_TALK_WRITING);
    STEP("w", "", "s", false, LODE_TALK_ENDED);
}

Test(talk_state, thoughts_that_end_leave_the_writer_where_it_is)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, false);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "f", "p", false, LODE_TALK_WRITING); /* beside a paragraph's end */
    STEP("w", "", "p", false, LODE_TALK_WRITING);
    STEP("w", "", "f", false, LODE_TALK_ENDED);
}

Test(talk_state, words_that_end_beside_thoughts_end_the_talk)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, false);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "", "s", false, LODE_TALK_ENDED);
    begin(LODE_TALK_AT_ONCE); /* both at once */
    hear(true, false);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "s", "s", false, LODE_TALK_ENDED);
}

Test(talk_state, input_waits_for_the_end_of_a_sentence)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, true);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    hear(true, true);
    STEP("t", "", "", false, LODE_TALK_THINKING);
    STEP("t", ".", "", false, LODE_TALK_THINKING);
    STEP("itc", "", "", true, LODE_TALK_BOTH);
    hear(true, false);
    STEP("tw", "", "", false, LODE_TALK_BOTH);
    STEP("tw", ".", "", false, LODE_TALK_BOTH);
    STEP("itw", "", "", false, LODE_TALK_BOTH);
    cr_assert(lode_course_may_hear(&course));
    hear(true, false); /* more than was promised, but there are thoughts still */
    lode_course_begin(&course, LODE_TALK_AT_ONCE, true, EVERY);
    hear(true, true);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    hear(true, false);
    STEP("it", "", "", false, LODE_TALK_THINKING); /* at once */
    STEP("t", "", "", false, LODE_TALK_THINKING);
}

Test(talk_state, a_thinker_does_not_end_before_what_was_promised)
{
    begin(LODE_TALK_THINK_FIRST);
    hear(true, true);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    STEP("t", "s", "", false, LODE_TALK_LISTENING);
    STEP("", "", "", false, LODE_TALK_LISTENING);
    hear(true, true);
    STEP("iT", "", "", false, LODE_TALK_THINKING); /* drawn anew */
    STEP("t", "s", "", false, LODE_TALK_LISTENING);
    hear(true, true);
    STEP("iT", "s", "", false, LODE_TALK_LISTENING);
    hear(false, false); /* nothing came: the stop counts */
    cr_assert(course.state == LODE_TALK_WRITING && !lode_course_may_hear(&course));
    STEP("w", "", "s", false, LODE_TALK_ENDED);
}

Test(talk_state, input_that_waits_is_taken_in_before_an_end)
{
    begin(LODE_TALK_THINK_FIRST);
    hear(true, true);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    hear(true, false);
    STEP("t", "s", "", false, LODE_TALK_THINKING);
    STEP("iT", "s", "", false, LODE_TALK_WRITING);
}

Test(talk_state, what_is_settled_is_said_before_it_listens)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, true);
    STEP("it", "", "", false, LODE_TALK_THINKING);
    STEP("t", "s", "", false, LODE_TALK_THINKING);
    STEP("c", "", "", true, LODE_TALK_BOTH);
    STEP("w", "", "", false, LODE_TALK_BOTH);
    STEP("w", "", "p", false, LODE_TALK_THINKING);
    STEP("c", "", "", true, LODE_TALK_BOTH);
    STEP("w", "", "p", false, LODE_TALK_THINKING);
    STEP("c", "", "", false, LODE_TALK_LISTENING);
    STEP("", "", "", false, LODE_TALK_LISTENING);
    hear(true, false);
    STEP("iT", "", "", false, LODE_TALK_THINKING);
    STEP("t", "s", "", false, LODE_TALK_WRITING);
}

Test(talk_state, a_probe_beside_the_stop_need_not_be_repeated)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, true);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "s", "", false, LODE_TALK_LISTENING);
    hear(true, true);
    STEP("iT", "s", "", false, LODE_TALK_THINKING); /* the input may have settled something */
    STEP("c", "", "", false, LODE_TALK_LISTENING);
}

Test(talk_state, words_do_not_end_before_what_was_promised)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, true);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "p", "s", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tW", "", "", false, LODE_TALK_BOTH); /* drawn anew */
    STEP("tw", "s", "", false, LODE_TALK_BOTH);
    STEP("w", "", "s", false, LODE_TALK_LISTENING); /* who has nothing to say is not asked again */
    hear(true, false);
    STEP("iT", "", "", false, LODE_TALK_THINKING);
    STEP("t", "s", "", false, LODE_TALK_WRITING);
    STEP("W", "", "", false, LODE_TALK_WRITING);
    STEP("w", "", "s", false, LODE_TALK_ENDED);
}

Test(talk_state, a_full_thinker_takes_input_in_but_thinks_no_more)
{
    begin(LODE_TALK_THINK_FIRST);
    hear(true, true);
    STEP("it", "f", "", false, LODE_TALK_LISTENING);
    hear(true, true);
    STEP("i", "", "", false, LODE_TALK_LISTENING);
    hear(true, false);
    STEP("i", "", "", false, LODE_TALK_WRITING);
    STEP("w", "", "", false, LODE_TALK_WRITING);
}

Test(talk_state, a_full_writer_ends_the_talk_whatever_was_promised)
{
    begin(LODE_TALK_AT_ONCE);
    hear(true, true);
    STEP("it", "p", "", false, LODE_TALK_THINKING);
    STEP("tc", "", "", true, LODE_TALK_BOTH);
    STEP("tw", "", "f", false, LODE_TALK_ENDED);
    cr_assert(!lode_course_may_hear(&course));
}

/* Whatever happens, somebody goes or it listens or has ended; and input is never lost. */
Test(talk_state, random_courses_never_stand_still)
{
    for (uint64_t seed = 0; seed < 20000; seed++) {
        uint64_t at = 0, ends = 0;
        lode_course_begin(&course, (lode_talk_mode_t)(seed % 3), seed & 4, 1 + (uint32_t)(seed & 3));
        for (int i = 0; i < 60 && course.state != LODE_TALK_ENDED; i++) {
            uint64_t r = lode_mix(seed, at++);
            if (r % 7 == 0 && lode_course_may_hear(&course) && i < 40)
                lode_course_hear(&course, true, r & 256);
            else if (i == 40 && lode_course_may_hear(&course))
                lode_course_hear(&course, !course.heard, false);
            lode_talk_state_t before = course.state;
            lode_talk_plan_t plan = lode_course_plan(&course);
            if (lode_plan_is_empty(&plan)) {
                cr_assert(before == LODE_TALK_LISTENING && !course.waiting, "seed %lu", (unsigned long)seed);
                continue;
            }
            cr_assert(!(plan.control && plan.writer) && (plan.thinker || !plan.thinker_again));
            bool waits = course.waiting;
            uint64_t d = lode_mix(seed, at++);
            lode_talk_learnt_t learnt = {.thinker = {.stopped = d % 11 == 0, .sentence = d & 16, .paragraph = d & 32},
                                         .writer = {.stopped = (d >> 8) % 13 == 0, .paragraph = (d >> 8) & 32},
                                         .yes = (d >> 20) & 1};
            if (i > 40)
                learnt.thinker.stopped = learnt.writer.stopped = true;
            lode_course_learn(&course, &plan, &learnt);
            cr_assert(course.waiting == (waits && !plan.input), "seed %lu", (unsigned long)seed);
            cr_assert(course.state != LODE_TALK_ENDED || !course.waiting, "seed %lu", (unsigned long)seed);
            cr_assert(course.state != LODE_TALK_WRITING || !course.more, "seed %lu", (unsigned long)seed);
            ends += course.state == LODE_TALK_ENDED;
        }
        cr_assert(course.state == LODE_TALK_ENDED && ends == 1, "seed %lu: state %d", (unsigned long)seed,
                  course.state);
    }
}
