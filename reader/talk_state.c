/* SPDX-License-Identifier: Apache-2.0 */
/* The course of a talk: who goes into the next pass, and what follows from what they drew. No model, no tokens. */
#include "reader/talk_inside.h"

void lode_course_begin(lode_talk_course_t *course, lode_talk_mode_t mode, bool hear_at_once, uint32_t probe_every)
{
    *course = (lode_talk_course_t){.mode = mode,
                                   .hear_at_once = hear_at_once,
                                   .probe_every = probe_every,
                                   .state = LODE_TALK_LISTENING,
                                   .thinker = mode == LODE_TALK_NO_THOUGHT ? LODE_PART_NONE : LODE_PART_IDLE,
                                   .writer = LODE_PART_IDLE};
}

/* --------------------------------------------------------------------- hear */

/* Once nothing can follow from it any more, input is refused. */
bool lode_course_may_hear(const lode_talk_course_t *course)
{
    bool alone = course->mode == LODE_TALK_NO_THOUGHT && course->writer != LODE_PART_IDLE;
    return course->state != LODE_TALK_ENDED && course->thinker != LODE_PART_DONE && !alone;
}

static void end_thoughts(lode_talk_course_t *course)
{
    course->thinker = LODE_PART_DONE;
    course->writer = LODE_PART_RUNS;
    course->state = LODE_TALK_WRITING;
}

void lode_course_hear(lode_talk_course_t *course, bool some, bool more)
{
    course->heard = course->heard || some;
    course->waiting = course->waiting || some;
    course->more = more;
    if (course->thinker == LODE_PART_RESTS && !course->more && !course->waiting)
        end_thoughts(course); /* the stop that it drew counts now */
}

/* --------------------------------------------------------------------- plan */

static bool takes_input(const lode_talk_course_t *course)
{
    bool in_sentence = course->thinker == LODE_PART_RUNS && !course->at_sentence;
    return course->waiting && (course->hear_at_once || !in_sentence);
}

static bool is_probe_due(const lode_talk_course_t *course)
{
    if (course->mode != LODE_TALK_AT_ONCE || course->state != LODE_TALK_THINKING)
        return false;
    if (course->thinker == LODE_PART_RESTS)
        return !course->probed_here;
    return course->thinker == LODE_PART_RUNS && (course->at_paragraph || course->since_probe >= course->probe_every);
}

static bool is_thinking(const lode_talk_course_t *course, bool input)
{
    switch (course->thinker) {
    case LODE_PART_IDLE:
        return course->heard;
    case LODE_PART_RUNS:
        return true;
    case LODE_PART_RESTS:
        return input && !course->thinker_full;
    case LODE_PART_NONE:
    case LODE_PART_DONE:
        break;
    }
    return false;
}

static bool is_writing(const lode_talk_course_t *course)
{
    if (course->mode == LODE_TALK_NO_THOUGHT) /* nobody answers half a request without a thought */
        return course->heard && !course->more;
    return course->state == LODE_TALK_BOTH || course->state == LODE_TALK_WRITING;
}

lode_talk_plan_t lode_course_plan(const lode_talk_course_t *course)
{
    lode_talk_plan_t plan = {0};
    if (course->state == LODE_TALK_ENDED)
        return plan;
    plan.input = takes_input(course);
    plan.thinker = is_thinking(course, plan.input);
    plan.thinker_again = plan.thinker && course->thinker == LODE_PART_RESTS;
    plan.writer = is_writing(course);
    plan.writer_again = plan.writer && course->writer_stopped;
    plan.control = is_probe_due(course);
    return plan;
}

/* -------------------------------------------------------------------- learn */

static void learn_thought(lode_talk_course_t *course, const lode_talk_plan_t *plan, const lode_talk_drawn_t *drawn)
{
    bool expected = course->more || course->waiting;
    course->thinker = LODE_PART_RUNS;
    course->at_paragraph = drawn->paragraph;
    course->at_sentence = drawn->sentence;
    course->since_probe = plan->control ? 1 : course->since_probe + 1;
    course->probed_here = plan->control; /* a probe sees what goes along with it */
    if (!drawn->stopped)
        return;
    course->thinker_full = drawn->full;
    course->thinker = expected ? LODE_PART_RESTS : LODE_PART_DONE;
}

/* @return whether the words have ended */
static bool learn_word(lode_talk_course_t *course, const lode_talk_drawn_t *drawn)
{
    bool alone = course->thinker == LODE_PART_DONE || course->thinker == LODE_PART_NONE;
    bool expected = course->more || course->waiting;
    course->writer = LODE_PART_RUNS;
    course->writer_stopped = drawn->stopped;
    course->probed_here = drawn->stopped; /* who has nothing more to say is not asked again before there is a thought */
    if (drawn->stopped)
        course->writer = drawn->full || alone || !expected ? LODE_PART_DONE : LODE_PART_RESTS;
    else if (drawn->paragraph && !alone)
        course->writer = LODE_PART_RESTS;
    return course->writer == LODE_PART_DONE;
}

static lode_talk_state_t without_words(const lode_talk_course_t *course)
{
    lode_talk_course_t then = *course;
    then.state = LODE_TALK_THINKING;
    bool thinks = course->thinker == LODE_PART_RUNS || course->waiting || is_probe_due(&then);
    return thinks ? LODE_TALK_THINKING : LODE_TALK_LISTENING;
}

static lode_talk_state_t next_state(lode_talk_course_t *course, bool yes)
{
    if (course->writer == LODE_PART_DONE)
        return LODE_TALK_ENDED;
    if (course->thinker == LODE_PART_DONE || (course->mode == LODE_TALK_NO_THOUGHT && course->writer == LODE_PART_RUNS))
        return LODE_TALK_WRITING;
    if (course->writer == LODE_PART_RUNS || yes)
        return LODE_TALK_BOTH;
    return without_words(course);
}

void lode_course_learn(lode_talk_course_t *course, const lode_talk_plan_t *plan, const lode_talk_learnt_t *learnt)
{
    lode_talk_state_t before = course->state;
    if (plan->input) {
        course->waiting = false;
        course->probed_here = false;
    }
    if (plan->control)
        course->probed_here = true;
    if (plan->thinker)
        learn_thought(course, plan, &learnt->thinker);
    else if (course->thinker == LODE_PART_RESTS && course->thinker_full && !course->more && !course->waiting)
        course->thinker = LODE_PART_DONE; /* it waited for this input, but has no room for a thought about it */
    if (plan->writer)
        learn_word(course, &learnt->writer);
    course->state = next_state(course, plan->control && learnt->yes);
    if (course->state == LODE_TALK_BOTH || course->state == LODE_TALK_WRITING)
        course->writer = LODE_PART_RUNS;
    if (before == LODE_TALK_BOTH && course->state != LODE_TALK_BOTH)
        course->since_probe = 0;
}
