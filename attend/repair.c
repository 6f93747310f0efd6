/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeping k owners a page. Every rank looks at all published pages of its node's landmark store, over and over, and
 * acts where the page is its own to see to; nothing is remembered between two looks, so what failed is tried again:
 *
 *   - It is the first living owner: it copies the page to who should have it, while there are fewer than k, and then
 *     to those that placement wants (ranks that joined; ranks that had no room before).
 *   - It is an owner that is one too many, and all that placement wants hold the page: it lets its copy go.
 *   - It is named and does not hold the page, or holds it and is not named: it says so.
 *
 * Owners are told to all keepers once a copy has arrived. Copies stay under a bandwidth cap.
 */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

/* Pages seen to at once, and about how many bytes of copies. */
enum { JOBS = 16, JOB_BYTES = 1 << 20 };
/* Pages looked at between two looks at the clock. */
enum { LOOKS = 64 };
/*
 * Until the next look at all pages: where something is left to do, twice as long after each look that could change
 * nothing, up to so many times; and at the least where nothing is.
 */
#define AGAIN_NS UINT64_C(50000000)
enum { QUIET_MOST = 4 };
#define IDLE_NS UINT64_C(5000000000)
/* Share of the time that an idle rank spends looking: one part in so many. */
#define IDLE_SHARE 20
/* Until a keeper that did not take news is told again. */
#define RETELL_NS UINT64_C(1000000000)
/* How long a rank whose arena was full, or who did not answer, is not asked again. */
#define FULL_NS UINT64_C(30000000000)
/* Looks after a change until a page that its owner does not see to may be due to this node's own lack of news. */
#define NEWS_LOOKS 3

typedef enum job_kind {
    JOB_TELL,    /* say who the owners are */
    JOB_COPY,    /* to target, then say so */
    JOB_DISCARD, /* ask whether the others hold it; if so say that this rank is none of them, and drop it */
    JOB_ASK      /* ask whether target holds it; if so note that here */
} job_kind_t;

typedef struct job {
    job_kind_t kind;
    lode_page_id_t id;
    lode_page_ref_t ref;
    uint32_t target, wanted;
    uint32_t epoch; /* of what it says of owners */
    lode_page_hint_t owners[LODE_REPLICAS_MAX];
    uint32_t count;
    uint32_t asked, agreed; /* of those asked */
    bool tell;
    struct lode_repair *repair;
    Lodemark__PageHint hint_messages[LODE_REPLICAS_MAX];
    Lodemark__PageHint *hint_list[LODE_REPLICAS_MAX];
    Lodemark__PageOwners message;
} job_t;

typedef struct tally {
    uint64_t under, lost, misplaced;
} tally_t;

struct lode_repair {
    lode_cluster_h cluster;
    lode_fill_t *fill;
    /* the running look */
    bool looking;
    bool counting;  /* it only counts: the first after a change of members, so that one sees soon how it stands */
    bool restored;  /* it has copied for want of owners */
    bool may_move;  /* the last look had not */
    bool acted;     /* it has changed something */
    uint32_t quiet; /* looks in a row that have not */
    uint32_t slot, layer, page;
    uint32_t looks; /* since the latest change of members */
    uint64_t began_ns, next_ns;
    tally_t tally;
    job_t jobs[JOBS];
    uint32_t job_count;
    size_t job_bytes;
    bool untold; /* the jobs are done, but a keeper did not take the news */
    /* who has no room */
    uint64_t *full_until_ns; /* (capacity) */
    bool full_said;          /* since the latest change of members */
    /* bandwidth: bytes that may be copied now, of so many a second */
    uint64_t rate, refilled_ns;
    double credit;
    _Atomic uint64_t under, lost, misplaced, copied, refused;
};

/* ---------------------------------------------------------------- life cycle */

lode_status_t lode_repair_create(lode_cluster_h cluster, uint64_t bytes_per_second)
{
    lode_repair_t *repair = calloc(1, sizeof *repair);
    cluster->repair = repair;
    if (repair)
        repair->full_until_ns = calloc(lode_fabric_capacity(cluster->fabric), sizeof *repair->full_until_ns);
    if (!repair || !repair->full_until_ns)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the repair of pages");
    repair->cluster = cluster;
    repair->rate = bytes_per_second;
    repair->refilled_ns = lode_now_ns();
    return lode_fill_create(cluster, &repair->fill);
}

void lode_repair_destroy(lode_cluster_h cluster)
{
    if (!cluster->repair)
        return;
    lode_fill_destroy(&cluster->repair->fill);
    free(cluster->repair->full_until_ns);
    free(cluster->repair);
    cluster->repair = NULL;
}

void lode_repair_stats(lode_cluster_h cluster, lode_repair_stats_t *stats)
{
    const lode_repair_t *repair = cluster->repair;
    *stats = (lode_repair_stats_t){.under_replicated = atomic_load(&repair->under),
                                   .lost = atomic_load(&repair->lost),
                                   .misplaced = atomic_load(&repair->misplaced),
                                   .copied_bytes = atomic_load(&repair->copied),
                                   .refused = atomic_load(&repair->refused),
                                   .filling = atomic_load(&cluster->filling)};
}

static void publish(lode_repair_t *repair, const tally_t *tally)
{
    atomic_store(&repair->under, tally->under);
    atomic_store(&repair->lost, tally->lost);
    atomic_store(&repair->misplaced, tally->misplaced);
}

bool lode_repair_may_copy(lode_cluster_h cluster)
{
    lode_repair_t *repair = cluster->repair;
    uint64_t now = lode_now_ns();
    double most = (double)repair->rate / 10;
    repair->credit += (double)(now - repair->refilled_ns) * 1e-9 * (double)repair->rate;
    repair->credit = repair->credit > most ? most : repair->credit;
    repair->refilled_ns = now;
    return repair->credit > 0;
}

void lode_repair_copied(lode_cluster_h cluster, size_t bytes)
{
    cluster->repair->credit -= (double)bytes; /* below nothing for a page larger than what was left */
}

/* ------------------------------------------------------------------- one page */

/* Who has a page and who should. */
typedef struct standing {
    lode_page_hint_t living[LODE_REPLICAS_MAX];
    uint32_t count; /* of living owners */
    uint32_t wanted[LODE_REPLICAS_MAX];
    uint32_t k; /* how many there can be */
} standing_t;

static bool is_owner(const standing_t *page, uint32_t rank)
{
    for (uint32_t i = 0; i < page->count; i++)
        if (page->living[i].rank == rank)
            return true;
    return false;
}

static bool is_wanted(const standing_t *page, uint32_t rank)
{
    for (uint32_t i = 0; i < page->k; i++)
        if (page->wanted[i] == rank)
            return true;
    return false;
}

static bool all_wanted_own(const standing_t *page)
{
    for (uint32_t i = 0; i < page->k; i++)
        if (!is_owner(page, page->wanted[i]))
            return false;
    return true;
}

static void look_up(lode_cluster_h cluster, uint32_t slot, uint32_t replicas, lode_page_id_t id, standing_t *page)
{
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t count;
    page->count = 0;
    lode_store_hints(cluster->store, slot, id.layer, id.page, hints, &count);
    for (uint32_t i = 0; i < count; i++)
        if (lode_fabric_alive(cluster->fabric, hints[i].rank) && !is_owner(page, hints[i].rank))
            page->living[page->count++] = hints[i];
    replicas = replicas < LODE_REPLICAS_MAX ? replicas : LODE_REPLICAS_MAX;
    page->k = lode_placement(cluster->places, cluster->place_count, id, replicas, page->wanted);
}

static void count_in(tally_t *tally, const standing_t *page)
{
    tally->under += page->count < page->k;
    tally->lost += page->count == 0;
    tally->misplaced += page->count >= page->k && !all_wanted_own(page);
}

static bool has_room(lode_repair_t *repair, uint32_t rank)
{
    return repair->full_until_ns[rank] < repair->began_ns;
}

/* The best living rank that lacks the page and has room; skip of them are passed over. */
static bool find_target(lode_repair_t *repair, const standing_t *page, lode_page_id_t id, uint32_t skip,
                        uint32_t *target)
{
    lode_cluster_h cluster = repair->cluster;
    uint32_t order[cluster->place_count];
    uint32_t count = lode_placement(cluster->places, cluster->place_count, id, cluster->place_count, order);
    for (uint32_t i = 0; i < count; i++) {
        if (is_owner(page, order[i]) || !has_room(repair, order[i]) || !lode_fabric_alive(cluster->fabric, order[i]))
            continue;
        *target = order[i];
        if (skip-- == 0)
            return true;
    }
    return false;
}

static bool find_wanted_target(lode_repair_t *repair, const standing_t *page, uint32_t *target)
{
    for (uint32_t i = 0; i < page->k; i++) {
        *target = page->wanted[i];
        if (!is_owner(page, *target) && has_room(repair, *target) &&
            lode_fabric_alive(repair->cluster->fabric, *target))
            return true;
    }
    return false;
}

static job_t *add_job(lode_repair_t *repair, job_kind_t kind, lode_page_id_t id, const standing_t *page)
{
    job_t *job = &repair->jobs[repair->job_count++];
    *job = (job_t){.kind = kind,
                   .id = id,
                   .wanted = page->k,
                   .epoch = lode_fabric_epoch(repair->cluster->fabric),
                   .count = page->count,
                   .repair = repair};
    memcpy(job->owners, page->living, page->count * sizeof *page->living);
    job->tell = kind == JOB_TELL;
    return job;
}

static void leave_out(job_t *job, uint32_t rank)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < job->count; i++)
        if (job->owners[i].rank != rank)
            job->owners[kept++] = job->owners[i];
    job->count = kept;
}

/* The list of owners has four places: one that placement does not want makes room. Its copy is let go later. */
static void make_room(job_t *job, const standing_t *page)
{
    uint32_t self = lode_fabric_rank(job->repair->cluster->fabric);
    for (uint32_t i = job->count; i-- > 0 && job->count == LODE_REPLICAS_MAX;)
        if (!is_wanted(page, job->owners[i].rank) && job->owners[i].rank != self)
            leave_out(job, job->owners[i].rank);
}

static void add_copy(lode_repair_t *repair, lode_page_id_t id, const standing_t *page, const lode_page_ref_t *ref,
                     uint32_t target)
{
    job_t *job = add_job(repair, JOB_COPY, id, page);
    job->ref = *ref;
    job->target = target;
    make_room(job, page);
    repair->job_bytes += ref->size;
    lode_repair_copied(repair->cluster, ref->size); /* now, so that a look plans no more than it may copy */
}

/* What an owner does about its page. @return false if it would copy, and may not now. */
static bool tend_own(lode_repair_t *repair, lode_page_id_t id, const standing_t *page, const lode_page_ref_t *ref)
{
    uint32_t self = lode_fabric_rank(repair->cluster->fabric), target;
    bool under = page->count < page->k;
    if (page->living[0].rank == self) {
        if (under ? find_target(repair, page, id, 0, &target)
                  : repair->may_move && find_wanted_target(repair, page, &target)) {
            if (!lode_repair_may_copy(repair->cluster))
                return false;
            repair->restored |= under;
            add_copy(repair, id, page, ref, target);
            return true;
        }
    }
    if (page->count > page->k && !is_wanted(page, self) && all_wanted_own(page)) {
        job_t *job = add_job(repair, JOB_DISCARD, id, page);
        job->ref = *ref;
        leave_out(job, self);
    }
    return true;
}

/* A page that this rank holds, unknown to the keepers: a copy whose news were lost. */
static void tend_unnamed(lode_repair_t *repair, lode_page_id_t id, const standing_t *page, const lode_page_ref_t *ref)
{
    uint32_t self = lode_fabric_rank(repair->cluster->fabric);
    if (page->count < page->k || (is_wanted(page, self) && page->count < LODE_REPLICAS_MAX)) {
        job_t *job = add_job(repair, JOB_TELL, id, page);
        job->owners[job->count++] = (lode_page_hint_t){self, ref->size, ref->offset};
    } else if (!is_wanted(page, self) && all_wanted_own(page)) {
        add_job(repair, JOB_DISCARD, id, page)->ref = *ref;
    }
}

/* @return false if the page must be looked at again, because there is no bandwidth left. */
static bool tend_page(lode_repair_t *repair, const lode_block_info_t *info, uint32_t slot, lode_page_id_t id)
{
    lode_cluster_h cluster = repair->cluster;
    uint32_t self = lode_fabric_rank(cluster->fabric), target;
    standing_t page;
    lode_page_ref_t ref;
    look_up(cluster, slot, info->replicas, id, &page);
    if (repair->counting) {
        count_in(&repair->tally, &page);
        return true;
    }
    bool named = is_owner(&page, self), held = lode_shard_find(cluster->shard, id, &ref);
    if (named && held) {
        if (!tend_own(repair, id, &page, &ref))
            return false;
    } else if (named) {
        leave_out(add_job(repair, JOB_TELL, id, &page), self);
    } else if (held) {
        tend_unnamed(repair, id, &page, &ref);
    } else if (page.count < page.k && repair->looks > NEWS_LOOKS && lode_fabric_keeper(cluster->fabric, self) == self &&
               find_target(repair, &page, id, repair->looks % page.k, &target)) {
        add_job(repair, JOB_ASK, id, &page)->target = target;
    }
    count_in(&repair->tally, &page);
    return true;
}

/* ----------------------------------------------------------------------- jobs */

static void copy_answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    job_t *job = context;
    lode_repair_t *repair = job->repair;
    if (status == LODE_OK) {
        job->owners[job->count++] = (lode_page_hint_t){from, reply->size, reply->offset};
        job->tell = true;
        atomic_fetch_add(&repair->copied, job->ref.size);
    } else if (status == LODE_ERR_FULL) {
        repair->full_until_ns[from] = lode_now_ns() + FULL_NS;
        atomic_fetch_add(&repair->refused, 1);
        if (!repair->full_said)
            lode_warn("rank %u has no room for copies of pages: %s; others are asked", from, lode_error_message());
        repair->full_said = true;
    } else {
        if (status == LODE_ERR_TIMEOUT) /* it hangs: not to be waited for again and again */
            repair->full_until_ns[from] = lode_now_ns() + FULL_NS;
        lode_debug("copy of page %u to rank %u: %s", job->id.page, from, lode_error_message());
    }
}

static void check_answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    job_t *job = context;
    job->agreed += status == LODE_OK;
    if (status == LODE_OK && job->kind == JOB_ASK) {
        job->owners[job->count++] = (lode_page_hint_t){from, reply->size, reply->offset};
        job->tell = true;
    }
}

static void send_copy(lode_cluster_h cluster, job_t *job)
{
    Lodemark__PagePut put = LODEMARK__PAGE_PUT__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    put.block = job->id.block;
    put.layer = job->id.layer;
    put.page = job->id.page;
    put.crc = job->ref.crc;
    call.body_case = LODEMARK__CALL__BODY_PAGE_PUT;
    call.page_put = &put;
    lode_fabric_call(cluster->fabric, job->target, &call, job->ref.bytes, job->ref.size, copy_answered, job);
}

static void send_check(lode_cluster_h cluster, job_t *job, uint32_t rank)
{
    Lodemark__PageCheck check = LODEMARK__PAGE_CHECK__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    check.block = job->id.block;
    check.layer = job->id.layer;
    check.page = job->id.page;
    check.crc = job->kind == JOB_DISCARD ? job->ref.crc : 0;
    call.body_case = LODEMARK__CALL__BODY_PAGE_CHECK;
    call.page_check = &check;
    job->asked++;
    lode_fabric_call(cluster->fabric, rank, &call, NULL, 0, check_answered, job);
}

static void ask(lode_repair_t *repair)
{
    lode_cluster_h cluster = repair->cluster;
    for (uint32_t i = 0; i < repair->job_count; i++) {
        job_t *job = &repair->jobs[i];
        if (job->kind == JOB_COPY)
            send_copy(cluster, job);
        else if (job->kind == JOB_ASK)
            send_check(cluster, job, job->target);
        for (uint32_t o = 0; job->kind == JOB_DISCARD && o < job->count; o++)
            send_check(cluster, job, job->owners[o].rank);
    }
    lode_fabric_calls_wait(cluster->fabric);
    for (uint32_t i = 0; i < repair->job_count; i++) {
        job_t *job = &repair->jobs[i];
        if (job->kind == JOB_DISCARD)
            job->tell = job->agreed == job->asked && job->agreed >= job->wanted;
        if (job->kind == JOB_COPY && job->tell && job->count == job->wanted && repair->tally.under > 0)
            repair->tally.under--;
    }
}

/* The call's message and what it borrows live in the job. */
static void owners_call(job_t *job, Lodemark__Call *call)
{
    lodemark__page_owners__init(&job->message);
    job->message.block = job->id.block;
    job->message.layer = job->id.layer;
    job->message.page = job->id.page;
    job->message.n_hints = job->count;
    job->message.hints = job->hint_list;
    lode_hint_messages(job->owners, job->count, job->hint_messages, job->hint_list);
    lodemark__call__init(call);
    call->body_case = LODEMARK__CALL__BODY_PAGE_OWNERS;
    call->page_owners = &job->message;
}

/*
 * Owners that were lost since they were looked up are none any more. A copy that was one too many may be needed then:
 * it stays, until the next look. @return whether there is something to tell
 */
static bool still_holds(job_t *job)
{
    bool all = true;
    for (uint32_t i = job->count; i-- > 0;) {
        uint32_t rank = job->owners[i].rank;
        if (lode_fabric_lives_since(job->repair->cluster->fabric, rank, job->epoch))
            continue;
        leave_out(job, rank);
        all = false;
    }
    return all || job->kind != JOB_DISCARD;
}

/* A block that was dropped meanwhile needs no news. */
static bool is_told(lode_status_t status)
{
    return status == LODE_OK || status == LODE_ERR_NOT_FOUND || status == LODE_ERR_INVALID;
}

/* @return false if a keeper did not take the news: they are kept, to be told again. */
static bool tell(lode_repair_t *repair)
{
    lode_cluster_h cluster = repair->cluster;
    lode_telling_t tellings[JOBS] = {0};
    uint32_t count = 0, self = lode_fabric_rank(cluster->fabric);
    bool told = true;
    for (uint32_t i = 0; i < repair->job_count; i++) {
        job_t *job = &repair->jobs[i];
        job->tell = job->tell && still_holds(job);
        if (!job->tell)
            continue;
        repair->acted = true;
        owners_call(job, &tellings[count].call);
        if (job->kind == JOB_ASK)
            told &= is_told(lode_fabric_call_wait(cluster->fabric, self, &tellings[count].call, NULL, 0, NULL, NULL));
        else
            count++;
    }
    told &= count == 0 || is_told(lode_tell_keepers(cluster, tellings, count));
    for (uint32_t i = 0; told && i < repair->job_count; i++)
        if (repair->jobs[i].kind == JOB_DISCARD && repair->jobs[i].tell)
            lode_shard_drop_page(cluster->shard, repair->jobs[i].id);
    return told;
}

static void no_answer(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    (void)context;
    (void)from;
    (void)status;
    (void)reply;
}

/* Copies of a block that was dropped meanwhile, which may have reached their rank after the drop had. */
static void take_back_dropped(lode_repair_t *repair)
{
    lode_cluster_h cluster = repair->cluster;
    for (uint32_t i = 0; i < repair->job_count; i++) {
        const job_t *job = &repair->jobs[i];
        uint32_t slot;
        if (job->kind != JOB_COPY || !job->tell || lode_store_find_id(cluster->store, job->id.block, &slot) == LODE_OK)
            continue;
        Lodemark__PageDrop drop = LODEMARK__PAGE_DROP__INIT;
        Lodemark__Call call = LODEMARK__CALL__INIT;
        drop.block = job->id.block;
        drop.layer = job->id.layer;
        drop.page_begin = job->id.page;
        drop.page_end = job->id.page + 1;
        call.body_case = LODEMARK__CALL__BODY_PAGE_DROP;
        call.page_drop = &drop;
        lode_fabric_call(cluster->fabric, job->target, &call, NULL, 0, no_answer, NULL);
    }
    lode_fabric_calls_wait(cluster->fabric);
}

static void run_jobs(lode_repair_t *repair)
{
    if (repair->job_count == 0)
        return;
    if (!repair->untold)
        ask(repair);
    repair->untold = !tell(repair);
    if (repair->untold) {
        lode_debug("owners of pages could not be told everywhere, and will be again: %s", lode_error_message());
        repair->next_ns = lode_now_ns() + RETELL_NS;
        return;
    }
    take_back_dropped(repair);
    repair->job_count = 0;
    repair->job_bytes = 0;
}

/* -------------------------------------------------------------------- looking */

static uint32_t pages_of(lode_cluster_h cluster, uint32_t slot, uint32_t layer)
{
    return (uint32_t)((lode_store_tokens(cluster->store, slot, layer) + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS);
}

/* On from where the look stands. @return false when it has to be broken off: time, jobs or bandwidth are used up. */
static bool look_at_block(lode_repair_t *repair, const lode_block_info_t *info, uint64_t end_ns)
{
    lode_cluster_h cluster = repair->cluster;
    uint32_t looks = 0;
    for (; repair->layer < cluster->geometry.layers; repair->layer++, repair->page = 0) {
        uint32_t pages = pages_of(cluster, repair->slot, repair->layer);
        for (; repair->page < pages; repair->page++) {
            if (repair->job_count == JOBS || repair->job_bytes >= JOB_BYTES ||
                (++looks % LOOKS == 0 && lode_now_ns() >= end_ns))
                return false;
            if (!tend_page(repair, info, repair->slot, (lode_page_id_t){info->id, repair->layer, repair->page}))
                return false;
        }
    }
    return true;
}

static void begin_look(lode_repair_t *repair)
{
    repair->looking = true;
    repair->restored = repair->acted = false;
    repair->slot = repair->layer = repair->page = 0;
    repair->tally = (tally_t){0};
    repair->began_ns = lode_now_ns();
}

static void end_look(lode_repair_t *repair)
{
    uint64_t now = lode_now_ns(), idle = IDLE_SHARE * (now - repair->began_ns);
    bool left = repair->tally.under > repair->tally.lost || repair->tally.misplaced > 0;
    publish(repair, &repair->tally);
    repair->looking = false;
    if (repair->counting) {
        repair->counting = false;
        repair->next_ns = now;
        return;
    }
    repair->looks++;
    repair->may_move = !repair->restored;
    repair->quiet = repair->acted ? 0 : repair->quiet + 1;
    uint64_t again = AGAIN_NS << (repair->quiet < QUIET_MOST ? repair->quiet : QUIET_MOST);
    uint64_t pause = repair->acted || left ? again : IDLE_NS;
    repair->next_ns = now + (repair->acted || idle < pause ? pause : idle);
}

/* @return whether the look has come to its end. */
static bool look_on(lode_repair_t *repair, uint64_t end_ns)
{
    lode_cluster_h cluster = repair->cluster;
    lode_block_info_t info;
    for (; repair->slot < lode_store_slots(cluster->store); repair->slot++, repair->layer = repair->page = 0) {
        if (!lode_store_live(cluster->store, repair->slot, &info, NULL))
            continue;
        if (!look_at_block(repair, &info, end_ns))
            return false;
    }
    return true;
}

static bool repair_some(lode_repair_t *repair, uint64_t end_ns)
{
    if (repair->untold) {
        if (lode_now_ns() >= repair->next_ns)
            run_jobs(repair);
        return false;
    }
    if (!repair->looking) {
        if (lode_now_ns() < repair->next_ns)
            return false;
        begin_look(repair);
    }
    bool ended = look_on(repair, end_ns);
    run_jobs(repair);
    if (ended && !repair->untold)
        end_look(repair);
    return repair->looking && !repair->untold && lode_repair_may_copy(repair->cluster);
}

/* ------------------------------------------------------------ change of members */

static void forget(lode_cluster_h cluster, uint32_t rank)
{
    Lodemark__RankForget message = LODEMARK__RANK_FORGET__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    uint32_t self = lode_fabric_rank(cluster->fabric);
    message.rank = rank;
    call.body_case = LODEMARK__CALL__BODY_RANK_FORGET;
    call.rank_forget = &message;
    if (lode_fabric_keeper(cluster->fabric, self) == self)
        lode_fabric_call_wait(cluster->fabric, self, &call, NULL, 0, NULL, NULL);
}

static void follow_members(lode_repair_t *repair)
{
    lode_cluster_h cluster = repair->cluster;
    bool any = false;
    for (uint32_t rank = 0; rank < cluster->place_count; rank++) {
        if (!cluster->changed[rank])
            continue;
        any = true;
        cluster->changed[rank] = false;
        repair->full_until_ns[rank] = 0;
        forget(cluster, rank);
    }
    if (!any)
        return;
    repair->looks = repair->quiet = 0;
    repair->next_ns = 0;
    repair->full_said = repair->may_move = repair->looking = false;
    repair->counting = true;
    if (atomic_load(&repair->under) == 0)
        atomic_store(&repair->under, 1); /* until it is counted */
}

lode_status_t lode_local_tend(lode_cluster_h cluster, uint64_t budget_us, int *more)
{
    lode_repair_t *repair = cluster->repair;
    uint64_t end_ns = lode_now_ns() + budget_us * 1000;
    *more = 0;
    lode_fabric_progress(cluster->fabric);
    if (lode_fabric_fenced(cluster->fabric) || lode_fabric_expelled(cluster->fabric))
        return LODE_OK;
    lode_places_refresh(cluster);
    if (lode_shaped(cluster) && !atomic_load(&cluster->filling))
        follow_members(repair);
    if (lode_fill_some(cluster, repair->fill, end_ns))
        *more = 1;
    if (lode_shaped(cluster) && !atomic_load(&cluster->filling) && repair_some(repair, end_ns))
        *more = 1;
    return LODE_OK;
}
