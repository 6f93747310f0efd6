/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/rounds.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

void lode_rounds_begin(lode_rounds_t *rounds, uint64_t deadline_ns)
{
    *rounds = (lode_rounds_t){.deadline_ns = deadline_ns};
}

static lode_status_t refuse_ended(const lode_rounds_t *rounds)
{
    return lode_fail(LODE_ERR_UNSUPPORTED, "there are no broadcasts any more: %s", rounds->cause);
}

lode_status_t lode_rounds_give(lode_rounds_t *rounds, uint32_t count, uint64_t *first)
{
    if (rounds->ended)
        return refuse_ended(rounds);
    if (count == 0 || count > LODE_ROUNDS_GIVEN || rounds->given + count > rounds->next + LODE_ROUNDS_GIVEN)
        return lode_fail(LODE_ERR_FULL, "%" PRIu64 " broadcasts are to be made before %u more",
                         rounds->given - rounds->next, count);
    *first = rounds->given;
    rounds->given += count;
    return LODE_OK;
}

/* While a round runs its own deadline counts; between rounds, that of one that lacks. */
static void watch_gap(lode_rounds_t *rounds, uint64_t now)
{
    bool later = false;
    for (uint32_t i = 0; i < LODE_ROUNDS_AHEAD; i++)
        later |= rounds->here[i];
    if (rounds->running)
        return;
    if (!later || rounds->here[rounds->next % LODE_ROUNDS_AHEAD])
        rounds->since_ns = 0;
    else if (rounds->since_ns == 0)
        rounds->since_ns = now;
}

static bool same(const lode_round_t *a, const lode_round_t *b)
{
    return a->number == b->number && a->root == b->root && a->layer == b->layer && a->block == b->block &&
           a->first == b->first && a->end == b->end && a->bytes == b->bytes;
}

lode_status_t lode_rounds_add(lode_rounds_t *rounds, const lode_round_t *round, uint64_t now)
{
    if (rounds->ended)
        return refuse_ended(rounds);
    uint64_t passed = rounds->next + rounds->running;
    if (round->number < passed) /* of a sender who did not hear our answer */
        return LODE_OK;
    if (round->number - rounds->next >= LODE_ROUNDS_AHEAD)
        return lode_fail(LODE_ERR_FULL, "broadcast %" PRIu64 " is announced and %" PRIu64 " comes next", round->number,
                         rounds->next);
    uint32_t at = round->number % LODE_ROUNDS_AHEAD;
    if (rounds->here[at] && !same(&rounds->ahead[at], round))
        return lode_fail(LODE_ERR_FORMAT, "two broadcasts are announced as number %" PRIu64 ", of ranks %u and %u",
                         round->number, rounds->ahead[at].root, round->root);
    rounds->ahead[at] = *round;
    rounds->here[at] = true;
    watch_gap(rounds, now);
    return LODE_OK;
}

bool lode_rounds_start(lode_rounds_t *rounds, lode_round_t *round, uint64_t now)
{
    uint32_t at = rounds->next % LODE_ROUNDS_AHEAD;
    if (rounds->ended || rounds->running || !rounds->here[at])
        return false;
    *round = rounds->ahead[at];
    rounds->here[at] = false;
    rounds->running = true;
    rounds->since_ns = now;
    return true;
}

void lode_rounds_finish(lode_rounds_t *rounds, uint64_t now)
{
    rounds->running = false;
    rounds->next++;
    rounds->since_ns = 0;
    watch_gap(rounds, now);
}

bool lode_rounds_late(lode_rounds_t *rounds, uint64_t now)
{
    if (!rounds->ended && rounds->since_ns && now - rounds->since_ns > rounds->deadline_ns)
        lode_rounds_end(rounds, "broadcast %" PRIu64 " %s within %" PRIu64 " ms", rounds->next,
                        rounds->running ? "did not end" : "was not announced", rounds->deadline_ns / 1000000);
    return rounds->ended;
}

bool lode_rounds_end(lode_rounds_t *rounds, const char *format, ...)
{
    if (rounds->ended)
        return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rounds->cause, sizeof rounds->cause, format, arguments);
    va_end(arguments);
    rounds->ended = true;
    rounds->running = false;
    rounds->since_ns = 0;
    memset(rounds->here, 0, sizeof rounds->here);
    return true;
}
