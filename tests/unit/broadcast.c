/* SPDX-License-Identifier: Apache-2.0 */
/* The order of broadcasts and its end, and the choice whether there are any; without ranks, threads or NCCL. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/broadcast.h"
#include "cluster/rounds.h"

enum { DEADLINE = 1000 };

TestSuite(rounds, .timeout = 60);
TestSuite(broadcast, .timeout = 60);

static lode_round_t round_of(uint64_t number, uint32_t root)
{
    return (lode_round_t){.number = number, .root = root, .block = number * 7 + 1, .end = 32, .bytes = 4096};
}

Test(rounds, come_in_their_order)
{
    lode_rounds_t rounds;
    lode_round_t got;
    lode_rounds_begin(&rounds, DEADLINE);
    for (uint64_t i = 10; i-- > 0;) { /* the last first */
        lode_round_t round = round_of(i, (uint32_t)i % 3);
        cr_assert(not(lode_rounds_start(&rounds, &got, 5)));
        cr_assert(eq(int, lode_rounds_add(&rounds, &round, 5), LODE_OK));
        cr_assert(eq(int, lode_rounds_add(&rounds, &round, 5), LODE_OK), "the same again");
    }
    for (uint64_t i = 0; i < 10; i++) {
        cr_assert(lode_rounds_start(&rounds, &got, 5));
        cr_assert(eq(u64, got.number, i));
        cr_assert(eq(u64, got.block, i * 7 + 1));
        cr_assert(not(lode_rounds_start(&rounds, &got, 5)), "one at a time");
        cr_assert(eq(int, lode_rounds_add(&rounds, &got, 5), LODE_OK), "of a sender who heard no answer");
        lode_rounds_finish(&rounds, 5);
    }
    cr_assert(not(lode_rounds_start(&rounds, &got, 5)));
    cr_assert(not(lode_rounds_late(&rounds, UINT64_MAX)), "nothing is waited for");
}

Test(rounds, refuse_what_cannot_be)
{
    lode_rounds_t rounds;
    lode_rounds_begin(&rounds, DEADLINE);
    lode_round_t one = round_of(3, 1), other = round_of(3, 2), far = round_of(LODE_ROUNDS_AHEAD, 0);
    cr_assert(eq(int, lode_rounds_add(&rounds, &one, 0), LODE_OK));
    cr_assert(eq(int, lode_rounds_add(&rounds, &other, 0), LODE_ERR_FORMAT));
    cr_assert(eq(int, lode_rounds_add(&rounds, &far, 0), LODE_ERR_FULL));
    far.number = UINT64_MAX;
    cr_assert(eq(int, lode_rounds_add(&rounds, &far, 0), LODE_ERR_FULL));
}

Test(rounds, numbers_are_bounded)
{
    lode_rounds_t rounds;
    uint64_t first, next = 0;
    lode_round_t got;
    lode_rounds_begin(&rounds, DEADLINE);
    cr_assert(eq(int, lode_rounds_give(&rounds, 0, &first), LODE_ERR_FULL));
    cr_assert(eq(int, lode_rounds_give(&rounds, UINT32_MAX, &first), LODE_ERR_FULL));
    for (; lode_rounds_give(&rounds, 3, &first) == LODE_OK; next += 3)
        cr_assert(eq(u64, first, next));
    cr_assert(eq(u64, next, LODE_ROUNDS_GIVEN / 3 * 3));
    for (uint64_t i = 0; i < 3; i++) {
        lode_round_t round = round_of(i, 0);
        cr_assert(eq(int, lode_rounds_add(&rounds, &round, 0), LODE_OK));
        cr_assert(lode_rounds_start(&rounds, &got, 0));
        lode_rounds_finish(&rounds, 0);
    }
    cr_assert(eq(int, lode_rounds_give(&rounds, 3, &first), LODE_OK), "as some have been run");
}

Test(rounds, a_number_that_is_never_announced)
{
    lode_rounds_t rounds;
    lode_round_t later = round_of(1, 1);
    lode_rounds_begin(&rounds, DEADLINE);
    cr_assert(eq(int, lode_rounds_add(&rounds, &later, 100), LODE_OK));
    cr_assert(not(lode_rounds_late(&rounds, 100 + DEADLINE)));
    cr_assert(lode_rounds_late(&rounds, 101 + DEADLINE));
    cr_assert(ne(ptr, strstr(rounds.cause, "broadcast 0 was not announced"), NULL), "%s", rounds.cause);
    cr_assert(eq(int, lode_rounds_add(&rounds, &later, 0), LODE_ERR_UNSUPPORTED));
    uint64_t first;
    cr_assert(eq(int, lode_rounds_give(&rounds, 1, &first), LODE_ERR_UNSUPPORTED));
    cr_assert(not(lode_rounds_start(&rounds, &later, 0)));
}

/* The gap's time counts from when something stood behind it, not from the last round. */
Test(rounds, a_gap_that_closes)
{
    lode_rounds_t rounds;
    lode_round_t got, none = round_of(0, 0), later = round_of(1, 1);
    lode_rounds_begin(&rounds, DEADLINE);
    cr_assert(eq(int, lode_rounds_add(&rounds, &later, 100), LODE_OK));
    cr_assert(eq(int, lode_rounds_add(&rounds, &none, 100 + DEADLINE), LODE_OK));
    cr_assert(not(lode_rounds_late(&rounds, 101 + DEADLINE)), "a round that is here is this rank's to start");
    cr_assert(lode_rounds_start(&rounds, &got, 5000));
    cr_assert(not(lode_rounds_late(&rounds, 5000 + DEADLINE)));
    lode_rounds_finish(&rounds, 5000 + DEADLINE);
    cr_assert(lode_rounds_start(&rounds, &got, 9000));
    cr_assert(eq(u64, got.number, 1));
    cr_assert(lode_rounds_late(&rounds, 9001 + DEADLINE));
    cr_assert(ne(ptr, strstr(rounds.cause, "broadcast 1 did not end"), NULL), "%s", rounds.cause);
}

Test(rounds, the_first_cause_stays)
{
    lode_rounds_t rounds;
    lode_rounds_begin(&rounds, DEADLINE);
    cr_assert(lode_rounds_end(&rounds, "rank %d is lost", 2));
    cr_assert(not(lode_rounds_end(&rounds, "another")));
    cr_assert(eq(str, rounds.cause, "rank 2 is lost"));
}

/* Ranks that draw numbers of one leader and announce to all, in any order; whatever comes, all run the same. */
Test(rounds, many_writers_any_delivery)
{
    enum { RANKS = 4, ROUNDS = 500, MAIL = 64 };
    static lode_rounds_t rounds[RANKS];
    struct {
        lode_round_t round;
        uint32_t to;
    } mail[MAIL];
    uint32_t mails = 0;
    uint64_t done[RANKS] = {0}, given = 0;
    unsigned seed = (unsigned)lode_now_ns();
    fprintf(stderr, "seed %u\n", seed);
    for (uint32_t r = 0; r < RANKS; r++)
        lode_rounds_begin(&rounds[r], DEADLINE);
    while (done[0] < ROUNDS || done[1] < ROUNDS || done[2] < ROUNDS || done[3] < ROUNDS) {
        uint64_t number;
        if (given < ROUNDS && mails + RANKS <= MAIL && lode_rounds_give(&rounds[0], 1, &number) == LODE_OK) {
            cr_assert(eq(u64, number, given));
            given++;
            lode_round_t round = round_of(number, (uint32_t)rand_r(&seed) % RANKS);
            for (uint32_t r = 0; r < RANKS; r++) {
                mail[mails].round = round;
                mail[mails++].to = r;
            }
        }
        if (mails) {
            uint32_t m = (uint32_t)rand_r(&seed) % mails;
            lode_status_t status = lode_rounds_add(&rounds[mail[m].to], &mail[m].round, 1);
            if (status != LODE_ERR_FULL) { /* then this rank lags far behind the leader, and is told again later */
                cr_assert(eq(int, status, LODE_OK), "%s", lode_error_message());
                mail[m] = mail[--mails];
            }
        }
        uint32_t r = (uint32_t)rand_r(&seed) % RANKS;
        lode_round_t got;
        if (rounds[r].running && rand_r(&seed) % 2) {
            lode_rounds_finish(&rounds[r], 1);
            done[r]++;
        } else if (lode_rounds_start(&rounds[r], &got, 1)) {
            cr_assert(eq(u64, got.number, done[r]));
            cr_assert(eq(u64, got.block, got.number * 7 + 1));
        }
    }
}

/* ------------------------------------------------------------------ the choice */

static lode_broadcast_card_t cards[4];

static void four_cards(lode_replication_t wish)
{
    for (uint32_t r = 0; r < 4; r++) {
        cards[r] = (lode_broadcast_card_t){.wish = wish, .version = 22809};
        snprintf(cards[r].uuid, sizeof cards[r].uuid, "GPU-%u", r);
    }
}

static lode_status_t choose(uint32_t ranks, bool *nccl, char *reason)
{
    strcpy(reason, "unset");
    lode_status_t status = lode_broadcast_choose(cards, ranks, nccl, reason);
    fprintf(stderr, "%s: %s\n", lode_status_string(status), status == LODE_OK ? reason : lode_error_message());
    return status;
}

static bool says(const char *text, const char *word)
{
    return strstr(text, word) != NULL;
}

Test(broadcast, a_gpu_each)
{
    char reason[192];
    bool nccl;
    four_cards(LODE_REPLICATE_AUTO);
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(nccl && says(reason, "4 ranks"));
    cr_assert(eq(int, choose(1, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "one rank"));
    four_cards(LODE_REPLICATE_NCCL);
    cr_assert(eq(int, choose(1, &nccl, reason), LODE_OK));
    cr_assert(nccl);
}

Test(broadcast, two_ranks_on_a_gpu)
{
    char reason[192];
    bool nccl;
    four_cards(LODE_REPLICATE_AUTO);
    strcpy(cards[3].uuid, cards[1].uuid);
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "ranks 1 and 3 share the GPU GPU-1"));
    cards[0].wish = LODE_REPLICATE_NCCL;
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_ERR_INVALID));
    cr_assert(says(lode_error_message(), "ranks 1 and 3") && says(lode_error_message(), "--replication host"));
    cr_assert(not(nccl));
}

Test(broadcast, a_rank_without)
{
    char reason[192];
    bool nccl;
    four_cards(LODE_REPLICATE_AUTO);
    cards[2].version = 0;
    strcpy(cards[2].why_not, "NCCL cannot be loaded");
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "rank 2: NCCL cannot be loaded"));
    for (uint32_t r = 0; r < 4; r++)
        cards[r].wish = LODE_REPLICATE_NCCL;
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_ERR_UNSUPPORTED));
    four_cards(LODE_REPLICATE_AUTO);
    cards[1].uuid[0] = 0;
    strcpy(cards[1].why_not, "it has no GPU");
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "rank 1: it has no GPU"));
    four_cards(LODE_REPLICATE_AUTO);
    cards[3].version = 22304;
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "22304") && says(reason, "22809"));
}

Test(broadcast, wishes)
{
    char reason[192];
    bool nccl;
    four_cards(LODE_REPLICATE_AUTO);
    cards[2].wish = LODE_REPLICATE_HOST;
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_OK));
    cr_assert(not(nccl));
    cr_assert(says(reason, "rank 2 asked"));
    cards[3].wish = LODE_REPLICATE_NCCL;
    cr_assert(eq(int, choose(4, &nccl, reason), LODE_ERR_INVALID));
    cr_assert(eq(int, lode_replication_of("nccl"), LODE_REPLICATE_NCCL));
    cr_assert(eq(int, lode_replication_of("host"), LODE_REPLICATE_HOST));
    cr_assert(eq(int, lode_replication_of("auto"), LODE_REPLICATE_AUTO));
}
