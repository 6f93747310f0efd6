/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fabric among living ranks, 1 to 4 of them: calls, both fetch paths, failover, messages that are none.
 * Every check that can differ between ranks is agreed on first, so that a failure ends all ranks.
 */
#include <sys/resource.h>
#include <unistd.h>

#include "tests/multi/cases.h"
#include "tests/multi/fabric_pages.h"

static pages_t pages;
static lode_fabric_params_t params;

static void set_up(void)
{
    pages = (pages_t){0};
    params = pages_params(&pages);
}

static void tear_down(void)
{
    if (pages.fabric)
        lode_fabric_destroy(&pages.fabric);
}

static void open_all(void)
{
    EVERYWHERE(pages_open(&pages, &params) == LODE_OK);
}

static void wait_all(void)
{
    MPI_Barrier(MPI_COMM_WORLD);
}

/* ------------------------------------------------------------------ members */

static void members(void)
{
    open_all();
    const lode_member_t *members = lode_fabric_members(pages.fabric);
    const char *reason = NULL, *path = lode_fabric_path(pages.fabric, &reason);
    bool right = lode_fabric_alive_count(pages.fabric) == pages.ranks && lode_fabric_epoch(pages.fabric) == 1 &&
                 lode_fabric_leader(pages.fabric) == 0 && path && reason && reason[0];
    for (uint32_t r = 0; r < pages.ranks; r++) {
        right = right && lode_fabric_alive(pages.fabric, r) && lode_fabric_keeper(pages.fabric, r) == 0 &&
                members[r].arena_bytes == PAGES_ARENA && members[r].node == members[0].node &&
                members[r].node_index == 0 && members[r].local_rank == r && members[r].host[0];
    }
    right = right && !lode_fabric_alive(pages.fabric, pages.ranks);
    const char *transport = getenv("LODEMARK_TEST_TRANSPORT");
    if (pages.ranks > 1 && transport) /* what each transport is known to be able to */
        right = right && strcmp(path, strcmp(transport, "tcp") == 0 ? "batched" : "one-sided") == 0;
    EVERYWHERE(right);
}

static void failure_domains(void)
{
    params.rank_is_node = true;
    open_all();
    bool right = true;
    const lode_member_t *members = lode_fabric_members(pages.fabric);
    for (uint32_t r = 0; r < pages.ranks; r++) {
        right = right && members[r].node_index == r;
        for (uint32_t other = 0; other < r; other++)
            right = right && members[other].node != members[r].node;
    }
    EVERYWHERE(right);
}

/* The last rank's preparation fails: nobody gets a fabric, everybody learns why. */
static void one_rank_fails(void)
{
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    lode_status_t local = rank == ranks - 1 ? lode_fail(LODE_ERR_GEOMETRY, "head_dim 96") : LODE_OK;
    lode_fabric_h fabric = NULL;
    lode_status_t status = lode_fabric_create(&params, local, &fabric);
    bool first = status == LODE_ERR_GEOMETRY && fabric == NULL && strstr(lode_error_message(), "head_dim 96");
    if (rank == 0)
        params.landing_bytes = 1000;
    status = lode_fabric_create(&params, LODE_OK, &fabric);
    bool second = status == LODE_ERR_INVALID && strstr(lode_error_message(), "landing");
    params = pages_params(&pages);
    params.arena_bytes = (size_t)1 << 50;
    status = lode_fabric_create(&params, LODE_OK, &fabric);
    bool third = status == LODE_ERR_NO_MEMORY && strstr(lode_error_message(), "GiB are available");
    EVERYWHERE(first);
    EVERYWHERE(second);
    EVERYWHERE(third);
}

static void agree_and_worst(void)
{
    open_all();
    int data[4] = {1, 2, 3, 4};
    bool same = false, right;
    uint32_t which = 77;
    right = lode_fabric_agree(pages.fabric, data, sizeof data, &same, &which) == LODE_OK && same;
    EVERYWHERE(right);
    if (pages.rank > 0)
        data[3] = 5;
    right = lode_fabric_agree(pages.fabric, data, sizeof data, &same, &which) == LODE_OK &&
            (pages.ranks == 1 ? same : !same && which == 1);
    EVERYWHERE(right);
    right = lode_fabric_worst(pages.fabric, LODE_OK) == LODE_OK;
    EVERYWHERE(right);
    lode_status_t mine = pages.rank + 1 == pages.ranks ? lode_fail(LODE_ERR_IO, "disk %u is full", 9) : LODE_OK;
    right = lode_fabric_worst(pages.fabric, mine) == LODE_ERR_IO && strstr(lode_error_message(), "disk 9 is full");
    EVERYWHERE(right);
}

static void shared_memory(void)
{
    open_all();
    void *base = NULL;
    int fd = -1;
    size_t bytes = (size_t)1 << 36; /* sparse: more than there is */
    bool right = lode_fabric_shared(pages.fabric, bytes, &base, &fd) == LODE_OK;
    EVERYWHERE(right);
    volatile uint64_t *words = base;
    size_t stride = bytes / 8 / pages.ranks;
    right = words[pages.rank * stride] == 0;
    words[pages.rank * stride] = pages.rank + 1000;
    wait_all();
    for (uint32_t r = 0; r < pages.ranks; r++)
        right = right && words[r * stride] == r + 1000;
    EVERYWHERE(right);
}

/* -------------------------------------------------------------------- calls */

typedef struct sums {
    uint32_t done, wrong;
} sums_t;

static uint64_t sum_of(uint64_t tokens, uint32_t from, const uint8_t *payload, size_t bytes)
{
    uint64_t sum = tokens + from;
    for (size_t i = 0; i < bytes; i++)
        sum = sum * 31 + payload[i];
    return sum;
}

static void on_sum(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    sums_t *sums = context;
    (void)from;
    sums->done++;
    if (status != LODE_OK || !reply)
        sums->wrong++;
}

static Lodemark__Call publish_call(Lodemark__Publish *publish, uint32_t layer, uint64_t tokens)
{
    Lodemark__Call call = LODEMARK__CALL__INIT;
    lodemark__publish__init(publish);
    publish->layer = layer;
    publish->tokens = tokens;
    call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    call.publish = publish;
    return call;
}

static void calls_of_all_sizes(void)
{
    static const size_t sizes[] = {0, 1, 63, 264, 2047, 8191, 8192, 65536, 300001, 5 << 20};
    open_all();
    bool right = true;
    uint8_t *payload = malloc(5 << 20);
    for (size_t i = 0; i < 5 << 20; i++)
        payload[i] = (uint8_t)lode_mix(pages.rank, i);
    for (uint32_t to = 0; to < pages.ranks; to++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            Lodemark__Publish publish;
            Lodemark__Call call = publish_call(&publish, 1, s);
            uint64_t sum = 0;
            uint32_t size = 0;
            right = right && lode_fabric_call_wait(pages.fabric, to, &call, payload, sizes[s], &sum, &size) == LODE_OK;
            right = right && size == sizes[s] && sum == sum_of(s, pages.rank, payload, sizes[s]);
        }
    }
    free(payload);
    EVERYWHERE(right);
}

/* Everybody calls everybody, far more than may be under way at once. */
static void thousands_of_calls(void)
{
    open_all();
    sums_t sums = {0};
    uint8_t payload[500] = {1, 2, 3};
    bool right = true;
    for (uint32_t i = 0; i < 4000; i++) {
        Lodemark__Publish publish;
        Lodemark__Call call = publish_call(&publish, 1, i);
        right = right && lode_fabric_call(pages.fabric, i % pages.ranks, &call, payload, i % sizeof payload, on_sum,
                                          &sums) == LODE_OK;
    }
    lode_fabric_calls_wait(pages.fabric);
    EVERYWHERE(right && sums.done == 4000 && sums.wrong == 0);
}

/* An error's status and sentence come back; wrong calls are refused here. */
static void calls_that_fail(void)
{
    open_all();
    bool right = true;
    for (uint32_t to = 0; to < pages.ranks; to++) {
        Lodemark__Publish publish;
        Lodemark__Call call = publish_call(&publish, 99, 0);
        lode_status_t status = lode_fabric_call_wait(pages.fabric, to, &call, "page 12", 7, NULL, NULL);
        right = right && status == LODE_ERR_FULL && strstr(lode_error_message(), "no room for page 12");
        Lodemark__BlockSeal seal = LODEMARK__BLOCK_SEAL__INIT;
        call = (Lodemark__Call)LODEMARK__CALL__INIT;
        call.body_case = LODEMARK__CALL__BODY_BLOCK_SEAL;
        call.block_seal = &seal;
        right = right && lode_fabric_call_wait(pages.fabric, to, &call, NULL, 0, NULL, NULL) == LODE_ERR_UNSUPPORTED;
        if (to == pages.rank)
            continue;
        call = (Lodemark__Call)LODEMARK__CALL__INIT; /* asks nothing */
        right = right && lode_fabric_call_wait(pages.fabric, to, &call, NULL, 0, NULL, NULL) == LODE_ERR_FORMAT;
    }
    Lodemark__Publish publish;
    Lodemark__Call call = publish_call(&publish, 1, 0);
    right = right && lode_fabric_call_wait(pages.fabric, pages.ranks, &call, NULL, 0, NULL, NULL) == LODE_ERR_INVALID;
    EVERYWHERE(right);
}

/* ------------------------------------------------------------------ fetches */

static bool fetch_once(uint32_t count, uint64_t seed, uint64_t *requests)
{
    lode_fetch_item_t *items = calloc(count ? count : 1, sizeof *items);
    count = pages_items(items, count, params.landing_bytes, seed);
    lode_fetch_t fetch = pages_fetch(&pages, items, count);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += (uint64_t)__builtin_popcountll(items[i].mask) * PAGES_RECORD;
    bool right = lode_fabric_fetch(pages.fabric, &fetch) == LODE_OK &&
                 lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_OK && fetch.bytes == bytes && !fetch.lost;
    right = right && pages_landed(&pages, &fetch);
    *requests = fetch.requests;
    lode_fabric_fetch_release(pages.fabric, &fetch);
    free(items);
    return right;
}

static void fetch_sizes(lode_path_t path, uint32_t most)
{
    static const uint32_t counts[] = {0, 1, 2, 17, 300, 3000, 20000};
    params.path = path;
    open_all();
    bool right = true;
    uint64_t requests = 0;
    for (size_t c = 0; c < sizeof counts / sizeof *counts && counts[c] <= most; c++)
        right = right && fetch_once(counts[c], lode_mix(c, pages.rank), &requests);
    if (path == LODE_PATH_BATCHED && pages.ranks > 1)
        right = right && requests < 1000; /* of 20,000 items: they were put together */
    EVERYWHERE(right);
    EVERYWHERE(pages.failed == 0);
}

static void fetch_batched(void)
{
    fetch_sizes(LODE_PATH_BATCHED, 20000);
}

/* Over TCP a read is emulated and slow, but right. */
static void fetch_one_sided(void)
{
    fetch_sizes(LODE_PATH_ONE_SIDED, 300);
}

static void fetch_auto(void)
{
    fetch_sizes(LODE_PATH_AUTO, 20000);
}

/* Two fetches under way at once, and calls between them, again and again over the same buffers. */
static void fetches_and_calls(void)
{
    enum { ITEMS = 200 };
    static lode_fetch_item_t items[2][ITEMS];
    open_all();
    bool right = true;
    sums_t sums = {0};
    for (uint32_t round = 0; round < 30; round++) {
        lode_fetch_t fetch[2];
        for (uint32_t f = 0; f < 2; f++) {
            uint32_t count = pages_items(items[f], ITEMS, params.landing_bytes, lode_mix(round, f));
            fetch[f] = pages_fetch(&pages, items[f], count);
            right = right && lode_fabric_fetch(pages.fabric, &fetch[f]) == LODE_OK;
            Lodemark__Publish publish;
            Lodemark__Call call = publish_call(&publish, 1, round);
            right = right &&
                    lode_fabric_call(pages.fabric, round % pages.ranks, &call, items, 1000, on_sum, &sums) == LODE_OK;
        }
        lode_fetch_t third = pages_fetch(&pages, items[0], 1);
        right = right && lode_fabric_fetch(pages.fabric, &third) == LODE_ERR_INVALID;
        for (uint32_t f = 2; f-- > 0;)
            right = right && lode_fabric_fetch_wait(pages.fabric, &fetch[f]) == LODE_OK;
        for (uint32_t f = 0; f < 2; f++) {
            right = right && pages_landed(&pages, &fetch[f]);
            lode_fabric_fetch_release(pages.fabric, &fetch[f]);
        }
    }
    lode_fabric_calls_wait(pages.fabric);
    EVERYWHERE(right && sums.done == 60 && sums.wrong == 0);
}

/* A fetch that is begun ahead: nobody is late before it is waited for, and it may be given up at any time. */
static void fetch_ahead(void)
{
    enum { ITEMS = 300 };
    static lode_fetch_item_t items[ITEMS];
    params.path = LODE_PATH_BATCHED;
    open_all();
    lode_fabric_params_t *settings = &pages.fabric->params;
    uint32_t deadline = settings->fetch_deadline_ms, hedge = settings->hedge_ms;
    fabric_counters_t *counters = &pages.fabric->counters;
    uint32_t late;
    uint64_t requests;
    bool right = lode_fabric_landings_free(pages.fabric, &late) == LODE_LANDINGS && late == 0;
    for (uint32_t round = 0; round < 4; round++) {
        lode_fetch_t fetch = pages_fetch(&pages, items, pages_items(items, ITEMS, params.landing_bytes, round));
        fetch.ahead = true;
        settings->fetch_deadline_ms = settings->hedge_ms = 1;
        right = right && lode_fabric_fetch(pages.fabric, &fetch) == LODE_OK;
        uint64_t deadlines = counters->deadlines, hedged = counters->hedged;
        usleep(3000);
        fabric_fetches_sweep(pages.fabric, lode_now_ns(), false);
        right = right && counters->deadlines == deadlines && counters->hedged == hedged;
        settings->fetch_deadline_ms = deadline;
        settings->hedge_ms = hedge;
        if (round % 2 == 0)
            right = right && lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_OK && pages_landed(&pages, &fetch);
        lode_fabric_fetch_release(pages.fabric, &fetch);
        right = right && fetch_once(50, round, &requests) &&
                lode_fabric_landings_free(pages.fabric, &late) == LODE_LANDINGS && late == 0;
    }
    EVERYWHERE(right);
}

/* A named owner that holds nothing, and hints that are wrong: the next owner, or the same by message. */
static void fetch_from_the_next(void)
{
    open_all();
    bool right = true;
    uint64_t requests;
    pages.absent_rank = pages.ranks > 1 ? 0 : UINT32_MAX;
    params.path = LODE_PATH_BATCHED;
    right = right && fetch_once(500, 1, &requests);
    wait_all();
    pages.absent_rank = UINT32_MAX;
    EVERYWHERE(right);
    for (uint32_t wrong = 1; wrong <= 2; wrong++) {
        pages.wrong_hint = wrong;
        right = right && fetch_once(500, 2, &requests);
    }
    EVERYWHERE(right);
}

static bool refusing_verify(void *context, const lode_fetch_item_t *item, const uint8_t *records)
{
    pages_t *p = context;
    return pages_verify(context, item, records) && (p->refusals == 0 || p->refusals-- == 0);
}

static bool two_sources(void *context, const lode_fetch_item_t *item, uint32_t attempt, lode_fetch_source_t *source)
{
    return attempt < 3 && (pages_source(context, item, attempt % pages.owners, source), true);
}

/* Records that fail their check twice come from the third attempt; without one the page is lost. */
static void fetch_fails_its_check(void)
{
    open_all();
    lode_fetch_item_t item;
    bool right = pages_items(&item, 1, params.landing_bytes, 5) == 1;
    lode_fetch_t fetch = pages_fetch(&pages, &item, 1);
    fetch.source = two_sources;
    fetch.verify = refusing_verify;
    pages.refusals = 2;
    right = right && lode_fabric_fetch(pages.fabric, &fetch) == LODE_OK &&
            lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_OK && pages.checked == 3;
    right = right && pages_landed(&pages, &fetch);
    lode_fabric_fetch_release(pages.fabric, &fetch);
    EVERYWHERE(right);
    pages.refusals = 1000;
    right = lode_fabric_fetch(pages.fabric, &fetch) == LODE_OK &&
            lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_ERR_PAGE_LOST && fetch.lost == &item &&
            strstr(lode_error_message(), "fail their check");
    EVERYWHERE(right);
}

/* A page that nobody has is lost at once and by name; the next fetch goes on as if nothing had been. */
static void fetch_of_nothing(void)
{
    open_all();
    lode_fetch_item_t items[3];
    bool right = pages_items(items, 3, params.landing_bytes, 5) == 3;
    uint64_t begin = lode_now_ns();
    items[1].page = 1000;
    for (int i = 0; i < 10 && right; i++) { /* more often than there are landing buffers */
        lode_fetch_t fetch = pages_fetch(&pages, items, 3);
        items[1].user = 3; /* no hint: a page of that number would lie outside */
        right = lode_fabric_fetch(pages.fabric, &fetch) == LODE_OK &&
                lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_ERR_PAGE_LOST && fetch.lost == &items[1] &&
                fetch.landing == NULL && strstr(lode_error_message(), "page 1000") &&
                strstr(lode_error_message(), "layer 5");
    }
    right = right && lode_now_ns() - begin < 5000000000u;
    uint64_t requests;
    right = right && fetch_once(100, 3, &requests);
    EVERYWHERE(right);
}

static void fetch_refused_here(void)
{
    open_all();
    lode_fetch_item_t item;
    bool right = pages_items(&item, 1, params.landing_bytes, 5) == 1;
    lode_fetch_t fetch = pages_fetch(&pages, &item, 1);
    item.landing = (uint32_t)params.landing_bytes - 8;
    right = right && lode_fabric_fetch(pages.fabric, &fetch) == LODE_ERR_INVALID;
    item.landing = 0;
    fetch.record_bytes = 1 << 20;
    right = right && lode_fabric_fetch(pages.fabric, &fetch) == LODE_ERR_INVALID;
    fetch.record_bytes = PAGES_RECORD;
    item.mask = 0;
    right = right && lode_fabric_fetch(pages.fabric, &fetch) == LODE_ERR_INVALID;
    right = right && lode_fabric_fetch_wait(pages.fabric, &fetch) == LODE_ERR_INVALID;
    EVERYWHERE(right);
}

/* ----------------------------------------------------------------- strangers */

static void on_sent(void *request, ucs_status_t status, void *user)
{
    (void)status;
    (void)user;
    ucp_request_free(request);
}

static void send_raw(uint32_t to, unsigned id, const void *header, size_t header_bytes, const void *data, size_t bytes)
{
    ucp_request_param_t param = fabric_send_param(on_sent, NULL, 0);
    ucs_status_ptr_t request =
        ucp_am_send_nbx(pages.fabric->peers[to].asks.ep, id, header, header_bytes, data, bytes, &param);
    while (UCS_PTR_IS_PTR(request) && ucp_request_check_status(request) == UCS_INPROGRESS)
        lode_fabric_progress(pages.fabric);
}

/* Bytes that are no message, from a rank of the job: counted, dropped or refused; nobody dies of them. */
static void garbage(void)
{
    static uint8_t header[MESSAGE_HEADER_MAX], data[100000];
    open_all();
    uint32_t to = (pages.rank + 1) % pages.ranks;
    bool right = true;
    for (uint32_t i = 0; pages.ranks > 1 && i < 400; i++) {
        for (size_t b = 0; b < sizeof header; b++)
            header[b] = (uint8_t)lode_mix(i, b);
        if (i % 3 == 0) { /* a message with its end torn off and a bit turned */
            Lodemark__FetchRequest request = LODEMARK__FETCH_REQUEST__INIT;
            uint64_t blocks[3] = {pages_block_id(0), pages_block_id(1), 7};
            request.id = 1 + i;
            request.from = i % 5 == 0 ? pages.rank : i;
            request.record_bytes = i % 2 ? PAGES_RECORD : i;
            request.n_blocks = 3;
            request.blocks = blocks;
            lodemark__fetch_request__pack(&request, header);
            header[lode_mix(i, 2) % 40] ^= 1u << (i % 8);
        }
        send_raw(to, i % 2 ? FABRIC_AM_FETCH : FABRIC_AM_CALL, header, 1 + lode_mix(i, 3) % 60, data,
                 lode_mix(i, 4) % (i % 10 == 0 ? sizeof data : 2000));
    }
    uint64_t requests;
    right = right && fetch_once(500, 2, &requests); /* goes after all that */
    wait_all();
    uint64_t malformed = atomic_load(&pages.fabric->counters.malformed);
    right = right && (pages.ranks == 1 || malformed > 100);
    EVERYWHERE(right);
    EVERYWHERE(lode_fabric_alive_count(pages.fabric) == pages.ranks);
}

/* -------------------------------------------------------------------- idling */

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* An owner that nobody asks sleeps. */
static void idle(void)
{
    open_all();
    uint64_t requests;
    bool right = fetch_once(100, 2, &requests);
    wait_all();
    usleep(100000);
    double before = cpu_seconds();
    sleep(2);
    double used = cpu_seconds() - before;
    if (used > 0.1)
        fprintf(stderr, "rank %u used %.3f s of CPU in 2 s of doing nothing\n", pages.rank, used);
    EVERYWHERE(right && used <= 0.1);
}

int main(int argc, char **argv)
{
    static const case_t cases[] = {
        CASE(members),
        CASE(failure_domains),
        CASE(one_rank_fails),
        CASE(agree_and_worst),
        CASE(shared_memory),
        CASE(calls_of_all_sizes),
        CASE(thousands_of_calls),
        CASE(calls_that_fail),
        CASE(fetch_batched),
        CASE(fetch_one_sided),
        CASE(fetch_auto),
        CASE(fetches_and_calls),
        CASE(fetch_ahead),
        CASE(fetch_from_the_next),
        CASE(fetch_fails_its_check),
        CASE(fetch_of_nothing),
        CASE(fetch_refused_here),
        CASE(garbage),
        CASE(idle),
    };
    return run_cases(cases, sizeof cases / sizeof *cases, set_up, tear_down, argc, argv);
}
