/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Agreement on members, by simulation: processes that crash, stop and go on, networks that lose, delay and part.
 * Whatever happens, an epoch's number means one set; and when the world is whole again, so is the membership.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/epoch.h"
#include "tests/rounds.h"

enum { SLOTS = 8, PROCESSES = 32, MESSAGES = 4096, NUMBERS = 512 };
#define MS UINT64_C(1000000)
#define STEP (5 * MS)

static uint64_t seed;

static uint32_t draw(uint32_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

typedef struct process {
    epoch_view_t view;
    uint64_t who;
    uint32_t slot, group;
    bool runs, stopped;
    uint64_t begun_ns;
    uint64_t dead_at[PROCESSES]; /**< when it learns that another's process ended; 0: never, or it did */
} process_t;

typedef struct message {
    uint64_t at; /**< 0: free */
    uint32_t from, to;
    epoch_beat_t beat;
    uint64_t set[SLOTS], accepted_set[SLOTS], value[SLOTS];
    uint8_t verdicts[SLOTS];
} message_t;

static process_t processes[PROCESSES];
static uint32_t count;
static message_t messages[MESSAGES];
static uint64_t now;
static uint32_t loss; /**< of 100 messages */
static bool check_leases;
static uint64_t sets[NUMBERS][SLOTS]; /**< what a number means; [0] tells whether it was seen */
static bool seen[NUMBERS];
static uint32_t highest;
static epoch_params_t params;

static void fill_sets(message_t *m, const epoch_beat_t *beat)
{
    m->beat = *beat;
    memcpy(m->set, beat->set, beat->slots * 8);
    memcpy(m->verdicts, beat->verdicts, beat->slots);
    m->beat.set = m->set;
    m->beat.verdicts = m->verdicts;
    if (beat->accepted_set)
        m->beat.accepted_set = memcpy(m->accepted_set, beat->accepted_set, beat->slots * 8);
    if (beat->value)
        m->beat.value = memcpy(m->value, beat->value, beat->slots * 8);
}

static process_t *find(uint64_t slot)
{
    for (uint32_t p = 0; p < count; p++) {
        if (processes[p].who == (slot & ~EPOCH_MEMBER))
            return &processes[p];
    }
    return NULL;
}

static void post(process_t *from, uint32_t slot)
{
    epoch_beat_t beat;
    process_t *to = find(from->view.set[slot]);
    epoch_fill(&from->view, slot, now, &beat);
    if (!to || !to->runs || draw(100) < loss)
        return;
    for (uint32_t copy = 0; copy <= (draw(50) == 0); copy++) { /* some come twice */
        for (uint32_t i = 0; i < MESSAGES; i++) {
            if (messages[i].at)
                continue;
            messages[i] = (message_t){.at = now + (1 + draw(draw(20) ? 30 : 400)) * MS,
                                      .from = (uint32_t)(from - processes),
                                      .to = (uint32_t)(to - processes)};
            fill_sets(&messages[i], &beat);
            break;
        }
    }
}

static bool one_network(const process_t *a, const process_t *b)
{
    return a->group == b->group;
}

static void deliver(void)
{
    for (uint32_t i = 0; i < MESSAGES; i++) {
        message_t *m = &messages[i];
        if (m->at == 0 || m->at > now || processes[m->to].stopped)
            continue;
        /* in any order, and what meets a cut link is lost */
        if (processes[m->to].runs && one_network(&processes[m->from], &processes[m->to]))
            epoch_receive(&processes[m->to].view, &m->beat, now);
        m->at = 0;
    }
    for (uint32_t p = 0; p < count; p++) {
        process_t *self = &processes[p];
        for (uint32_t other = 0; other < count && self->runs && !self->stopped; other++) {
            process_t *dead = &processes[other];
            if (self->dead_at[other] == 0 || self->dead_at[other] > now || !one_network(self, dead))
                continue;
            self->dead_at[other] = 0;
            if ((self->view.set[dead->slot] & ~EPOCH_MEMBER) == dead->who)
                epoch_failed(&self->view, dead->slot, true, now);
        }
    }
}

/** What makes a new number legal. */
static void check_new(uint32_t number, const uint64_t *set)
{
    if (number > highest)
        highest = number;
    for (uint32_t p = 0; p < count && check_leases; p++) {
        const process_t *left = &processes[p];
        if (!left->runs || left->view.expelled || left->view.number >= number ||
            set[left->slot] == (left->who | EPOCH_MEMBER) ||
            now < left->begun_ns + params.lease_ns) /* a newcomer begins with a lease that nobody gave it */
            continue;
        cr_assert(epoch_fenced(&left->view, now), "slot %u was removed by epoch %u before its lease had ended",
                  left->slot, number);
    }
}

static void check(void)
{
    for (uint32_t p = 0; p < count; p++) {
        const process_t *process = &processes[p];
        uint32_t number = process->view.number;
        if (!process->runs || process->view.expelled)
            continue;
        cr_assert(lt(u32, number, NUMBERS));
        if (!seen[number]) {
            seen[number] = true;
            memcpy(sets[number], process->view.set, sizeof *sets);
            check_new(number, process->view.set);
        }
        cr_assert(memcmp(sets[number], process->view.set, sizeof *sets) == 0, "epoch %u means two sets", number);
    }
}

static void join_begun(void)
{
    for (uint32_t p = 0; p < count; p++) { /* one that was taken in starts from what the others know */
        process_t *joiner = &processes[p];
        if (joiner->runs || joiner->view.number || joiner->slot == SLOTS)
            continue;
        for (uint32_t o = 0; o < count; o++) {
            process_t *host = &processes[o];
            if (!host->runs || host->stopped || host->view.set[joiner->slot] != (joiner->who | EPOCH_MEMBER))
                continue;
            joiner->runs = true;
            joiner->begun_ns = now;
            joiner->group = host->group;
            epoch_begin(&joiner->view, joiner->slot, host->view.number, host->view.set, host->view.slots, now);
            break;
        }
    }
}

static void step(void)
{
    now += STEP;
    deliver();
    for (uint32_t p = 0; p < count; p++) {
        process_t *process = &processes[p];
        if (!process->runs || process->stopped)
            continue;
        epoch_tick(&process->view, now);
        for (uint32_t r = 0; r < process->view.slots; r++) {
            if (process->view.peers[r].due && r != process->slot)
                post(process, r);
        }
    }
    check();
    join_begun();
}

static void run(uint32_t ms)
{
    for (uint64_t end = now + ms * MS; now < end;)
        step();
}

static process_t *add(uint32_t slot, uint64_t who)
{
    process_t *process = &processes[count++];
    *process = (process_t){.who = who, .slot = slot};
    cr_assert(epoch_create(&process->view, &params, SLOTS) == LODE_OK);
    return process;
}

static void begin(uint32_t ranks, uint64_t with_seed, uint64_t beat_ms)
{
    uint64_t set[SLOTS] = {0};
    params = (epoch_params_t){.beat_ns = beat_ms * MS,
                              .suspect_ns = 1000 * MS,
                              .lease_ns = 1000 * MS,
                              .retry_ns = 50 * MS,
                              .grace_ns = 300 * MS};
    while (count > 0)
        epoch_destroy(&processes[--count].view);
    memset(messages, 0, sizeof messages);
    memset(seen, 0, sizeof seen);
    seed = with_seed * 7919 + 1;
    now = 1000 * MS;
    loss = 0;
    highest = 1;
    check_leases = false;
    for (uint32_t r = 0; r < ranks; r++)
        set[r] = epoch_who(1, 100 + r) | EPOCH_MEMBER;
    for (uint32_t r = 0; r < ranks; r++) {
        process_t *process = add(r, set[r] & ~EPOCH_MEMBER);
        process->runs = true;
        epoch_begin(&process->view, r, 1, set, ranks, now);
    }
}

static void crash(process_t *process)
{
    process->runs = false;
    for (uint32_t p = 0; p < count; p++)
        processes[p].dead_at[process - processes] = now + (1 + draw(60)) * MS;
}

/** Living processes that are members by their own account. */
static uint32_t living(void)
{
    uint32_t number = 0;
    for (uint32_t p = 0; p < count; p++)
        number += processes[p].runs && !processes[p].view.expelled;
    return number;
}

static void expect(uint32_t number, uint32_t members, uint32_t fenced)
{
    uint32_t in = 0, out = 0;
    for (uint32_t p = 0; p < count; p++) {
        const process_t *process = &processes[p];
        if (!process->runs || process->view.expelled)
            continue;
        bool is_fenced = epoch_fenced(&process->view, now);
        out += is_fenced;
        in += !is_fenced;
        if (!is_fenced && number)
            cr_assert(process->view.number == number, "slot %u has epoch %u, not %u", process->slot,
                      process->view.number, number);
    }
    cr_assert(in == members && out == fenced, "%u members and %u fenced, not %u and %u", in, out, members, fenced);
}

TestSuite(epoch, .timeout = 120);

Test(epoch, stays_as_it_is)
{
    for (uint32_t ranks = 1; ranks <= 5; ranks++) {
        begin(ranks, ranks, ranks % 2 ? 100 : 0);
        run(5000);
        expect(1, ranks, 0);
    }
}

/* Any one dies, the decider too: soon the others have one number and one set. */
Test(epoch, one_dies)
{
    for (uint32_t beat = 0; beat <= 100; beat += 100) {
        for (uint32_t ranks = 2; ranks <= 5; ranks++) {
            for (uint32_t victim = 0; victim < ranks; victim++) {
                begin(ranks, ranks * 10 + victim, beat);
                run(2000);
                crash(&processes[victim]);
                run(600);
                expect(2, ranks - 1, 0);
                for (uint32_t p = 0; p < ranks; p++)
                    cr_assert(p == victim || !epoch_member(&processes[p].view, victim));
            }
        }
    }
}

/* All but one die at once: it knows for certain, and goes on. */
Test(epoch, all_but_one_die)
{
    for (uint32_t beat = 0; beat <= 100; beat += 100) {
        for (uint32_t left = 0; left < 4; left++) {
            begin(4, left, beat);
            run(2000);
            for (uint32_t p = 0; p < 4; p++) {
                if (p != left)
                    crash(&processes[p]);
            }
            run(600);
            expect(0, 1, 0);
            cr_assert(ge(u32, processes[left].view.number, 2));
        }
    }
}

/* A stopped rank is removed within the time of suspicion and a little; when it goes on it knows that it is out. */
Test(epoch, one_stops)
{
    for (uint32_t victim = 0; victim < 3; victim++) {
        begin(3, victim, 100);
        check_leases = true;
        run(2000);
        processes[victim].stopped = true;
        run(1500);
        expect(2, 2, 1); /* by its clock it is fenced, though it does not run */
        processes[victim].stopped = false;
        run(500);
        cr_assert(processes[victim].view.expelled);
        expect(2, 2, 0);
    }
}

/* A short stop changes nothing. */
Test(epoch, a_short_stop)
{
    for (uint32_t victim = 0; victim < 3; victim++) {
        begin(3, victim, 100);
        run(2000);
        processes[victim].stopped = true;
        run(500);
        processes[victim].stopped = false;
        run(2000);
        expect(1, 3, 0);
    }
}

/* The larger part goes on, the smaller is fenced; of two halves, the one with the lowest rank goes on. */
Test(epoch, a_cut)
{
    for (uint32_t ranks = 2; ranks <= 5; ranks++) {
        for (uint32_t mask = 1; mask + 1 < 1u << ranks; mask++) {
            begin(ranks, mask, 100);
            check_leases = true;
            run(2000);
            uint32_t part = (uint32_t)__builtin_popcount(mask);
            for (uint32_t p = 0; p < ranks; p++)
                processes[p].group = mask >> p & 1;
            run(2500);
            bool ones = 2 * part > ranks || (2 * part == ranks && (mask & 1));
            expect(0, ones ? part : ranks - part, ones ? ranks - part : part);
            for (uint32_t p = 0; p < ranks; p++)
                processes[p].group = 0;
            run(1000);
            expect(0, ones ? part : ranks - part, 0); /* the others have learnt that they are out */
        }
    }
}

/* A link between two that both reach the decider: one of the two goes. */
Test(epoch, two_that_lost_each_other)
{
    begin(4, 1, 100);
    run(2000);
    epoch_failed(&processes[2].view, 3, false, now);
    epoch_failed(&processes[3].view, 2, false, now);
    run(3000);
    expect(2, 3, 0);
    cr_assert(processes[3].view.expelled && !processes[2].view.expelled);
}

static process_t *decider(void)
{
    for (uint32_t p = 0; p < count; p++) {
        process_t *process = &processes[p];
        if (process->runs && !process->stopped && !process->view.expelled && !epoch_fenced(&process->view, now) &&
            epoch_decider(&process->view) == process->slot)
            return process;
    }
    return NULL;
}

/** Offer a slot to a new process: a dead one if there is, else a new one. */
static process_t *offer(void)
{
    process_t *host = decider();
    if (!host || count == PROCESSES || host->view.join_who)
        return NULL;
    uint32_t slot = 0;
    while (slot < host->view.slots && epoch_member(&host->view, slot))
        slot++;
    if (slot == SLOTS)
        return NULL;
    uint64_t who = epoch_who(epoch_incarnation(host->view.set[slot]) + 1, 1000 + count);
    epoch_join(&host->view, slot, who);
    return add(slot, who);
}

Test(epoch, a_slot_is_taken_again)
{
    for (uint32_t beat = 0; beat <= 100; beat += 100) {
        begin(3, 1, beat);
        run(2000);
        crash(&processes[0]);
        run(600);
        process_t *joiner = offer();
        cr_assert(joiner && joiner->slot == 0);
        run(600);
        cr_assert(joiner->runs);
        expect(3, 3, 0);
        cr_assert(eq(u32, epoch_incarnation(processes[1].view.set[0]), 2));
        joiner = offer();
        cr_assert(joiner && joiner->slot == 3);
        run(600);
        expect(4, 4, 0);
        crash(&processes[1]);
        crash(&processes[2]);
        run(600);
        expect(0, 2, 0);
    }
}

/* A process that comes as its predecessor ends takes that one's slot, not a new one, though nobody knows of the end. */
Test(epoch, a_successor_takes_the_slot_of_the_one_that_just_ended)
{
    const bool kin[SLOTS] = {[2] = true};
    for (uint32_t beat = 0; beat <= 100; beat += 100)
        for (uint64_t s = 1; s <= 20; s++) {
            begin(3, s, beat);
            run(2000 + draw(300));
            bool stops = beat && s % 2; /* its end is told by silence alone */
            if (stops)
                processes[2].runs = false;
            else
                crash(&processes[2]);
            uint64_t since = now;
            uint32_t slot = EPOCH_LATER, waits = 0;
            for (; slot == EPOCH_LATER && waits < 4000; waits += STEP / MS) {
                step();
                slot = epoch_slot(&decider()->view, kin, since, now);
            }
            cr_assert(eq(u32, slot, 2), "seed %llu, beats %u", (unsigned long long)s, beat);
            cr_assert(epoch_member(&decider()->view, 2) == false);
            cr_assert(waits < (stops ? 2500 : 1000));
        }
}

/* With its kin alive it is one more, and soon. */
Test(epoch, one_more_process_of_a_host_gets_a_new_slot)
{
    const bool kin[SLOTS] = {true, true, true};
    for (uint32_t beat = 0; beat <= 100; beat += 100) {
        begin(3, 7, beat);
        run(2000);
        uint64_t since = now;
        uint32_t slot = EPOCH_LATER, waits = 0;
        for (; slot == EPOCH_LATER && waits < 4000; waits += STEP / MS) {
            step();
            slot = epoch_slot(&decider()->view, kin, since, now);
        }
        cr_assert(eq(u32, slot, 3));
        cr_assert(waits < 800);
    }
}

/* What an old process of a slot says is nothing, even if it comes after a new one took the slot. */
Test(epoch, a_stale_process_is_not_heard)
{
    begin(3, 1, 100);
    run(2000);
    processes[2].stopped = true;
    run(1500);
    process_t *joiner = offer();
    run(500);
    cr_assert(joiner && joiner->slot == 2 && joiner->runs);
    uint64_t heard = processes[0].view.peers[2].heard_ns, stamp = joiner->view.peers[0].stamp;
    epoch_beat_t beat;
    epoch_fill(&processes[2].view, 0, now, &beat);
    beat.stamp = now + 1000000 * MS;
    epoch_receive(&processes[0].view, &beat, now + MS);
    cr_assert(processes[0].view.peers[2].heard_ns == heard && processes[0].view.peers[2].stamp < beat.stamp);
    cr_assert(stamp > 0);
    processes[2].stopped = false;
    run(3000);
    expect(3, 3, 0);
    cr_assert(processes[2].view.expelled);
}

/* ---------------------------------------------------------------- messages */

static uint64_t sets_in[3][SLOTS];
static uint8_t verdicts_in[SLOTS];
static const epoch_arrays_t arrays = {sets_in[0], sets_in[1], sets_in[2], verdicts_in};

Test(epoch, a_message_arrives_as_it_was_sent)
{
    begin(3, 1, 100);
    run(2000);
    crash(&processes[0]);
    for (uint32_t i = 0; i < 200; i++) { /* in all phases of a decision */
        epoch_beat_t beat, back;
        epoch_wire_t wire;
        uint8_t data[SLOTS * 25 + 1];
        uint32_t cards = 0;
        step();
        epoch_fill(&processes[1].view, 2, now, &beat);
        size_t bytes = epoch_wire_bytes(&beat);
        cr_assert(le(sz, bytes, sizeof data - 1));
        epoch_pack(&beat, 7, &wire, data + 1); /* at any alignment */
        cr_assert(eq(sz, epoch_unpack(&wire, sizeof wire, data + 1, bytes, SLOTS, &arrays, &back, &cards), bytes));
        cr_assert(cards == 7 && back.from == 1 && back.slots == 3 && back.number == beat.number &&
                  back.phase == beat.phase && back.ballot == beat.ballot && back.stamp == beat.stamp &&
                  back.echo == beat.echo && back.lease_left_ns == beat.lease_left_ns && back.who == beat.who &&
                  back.promised == beat.promised && back.accepted == beat.accepted && back.flags == beat.flags);
        cr_assert(memcmp(back.set, beat.set, 24) == 0 && memcmp(back.verdicts, beat.verdicts, 3) == 0);
        cr_assert(eq(int, !back.value, !beat.value));
        cr_assert(beat.value == NULL || memcmp(back.value, beat.value, 24) == 0);
        cr_assert(beat.accepted_set == NULL || memcmp(back.accepted_set, beat.accepted_set, 24) == 0);
    }
    expect(2, 2, 0);
}

Test(epoch, what_is_no_message)
{
    epoch_beat_t beat, back;
    epoch_wire_t wire, bad;
    uint8_t data[SLOTS * 25];
    uint32_t cards;
    begin(3, 1, 100);
    run(100);
    epoch_fill(&processes[1].view, 2, now, &beat);
    size_t bytes = epoch_wire_bytes(&beat);
    epoch_pack(&beat, 0, &wire, data);
    for (size_t cut = 0; cut < bytes; cut++)
        cr_assert(eq(sz, epoch_unpack(&wire, sizeof wire, data, cut, SLOTS, &arrays, &back, &cards), 0));
    cr_assert(eq(sz, epoch_unpack(&wire, sizeof wire - 1, data, bytes, SLOTS, &arrays, &back, &cards), 0));
    cr_assert(eq(sz, epoch_unpack(&wire, sizeof wire, data, bytes, 2, &arrays, &back, &cards), 0));
#define REFUSED(change) \
    bad = wire;         \
    change;             \
    cr_assert(eq(sz, epoch_unpack(&bad, sizeof bad, data, bytes, SLOTS, &arrays, &back, &cards), 0), #change)
    REFUSED(bad.version++);
    REFUSED(bad.from = 3);
    REFUSED(bad.slots = UINT32_MAX);
    REFUSED(bad.number = 0);
    REFUSED(bad.phase = 3);
    REFUSED(bad.phase = EPOCH_ACCEPT); /* without a value */
    REFUSED(bad.parts = 4);
    REFUSED(bad.accepted = 1);
    REFUSED(bad.who |= EPOCH_MEMBER);
}

/** Something happens to somebody. */
static void disturb(bool links)
{
    process_t *any = &processes[draw(count)];
    switch (draw(12)) {
    case 0:
        if (living() > 2 && any->runs)
            crash(any);
        break;
    case 1:
    case 2:
        any->stopped = true;
        break;
    case 3:
    case 4:
    case 5:
        any->stopped = false;
        break;
    case 6:
        for (uint32_t p = 0; p < count; p++)
            processes[p].group = draw(2);
        break;
    case 7:
        for (uint32_t p = 0; p < count; p++)
            processes[p].group = 0;
        break;
    case 8:
        loss = draw(40);
        break;
    case 9:
        offer();
        break;
    case 10:
        if (links && any->runs) { /* between two that live it takes silence first, see epoch_failed() */
            uint32_t slot = draw(SLOTS);
            if (!any->view.peers[slot].watched || now > any->view.peers[slot].heard_ns + params.suspect_ns)
                epoch_failed(&any->view, slot, false, now);
        }
        break;
    default:
        break;
    }
}

static void heal(void)
{
    loss = 0;
    for (uint32_t p = 0; p < count; p++) {
        processes[p].group = 0;
        processes[p].stopped = false;
    }
}

/** When all is well again: one number for all that are members, who are all that live, or everybody is fenced. */
static void check_healed(uint64_t which)
{
    uint32_t in = 0, out = 0;
    for (uint32_t p = 0; p < count; p++) {
        const process_t *process = &processes[p];
        if (!process->runs || process->view.expelled)
            continue;
        if (epoch_fenced(&process->view, now)) {
            out++;
            continue;
        }
        in++;
        cr_assert(process->view.number == highest, "seed %lu: slot %u has epoch %u of %u", which, process->slot,
                  process->view.number, highest);
        for (uint32_t r = 0; r < process->view.slots; r++) {
            const process_t *member = epoch_member(&process->view, r) ? find(process->view.set[r]) : NULL;
            cr_assert(member == NULL || member->runs, "seed %lu: a dead process in slot %u is a member", which, r);
        }
    }
    cr_assert(in > 0 || out > 0 || living() == 0);
}

static void soak(uint64_t which, uint64_t beat_ms, bool links)
{
    begin(2 + which % 4, which, beat_ms);
    check_leases = beat_ms && !links;
    run(1000);
    for (uint32_t event = 0; event < 60; event++) {
        disturb(links);
        run(10 + draw(draw(4) ? 200 : 2500));
    }
    heal();
    run(6000);
    check_healed(which);
}

Test(epoch, never_two_sets_for_one_number)
{
    for (uint64_t which = 0; which < ROUNDS(150); which++)
        soak(which, 100, false);
}

Test(epoch, nor_when_links_fail)
{
    for (uint64_t which = 1000; which < 1000 + ROUNDS(100); which++)
        soak(which, 100, true);
}
