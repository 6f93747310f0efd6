/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fetch.h"

#ifdef LODE_HAVE_HIREDIS
#include <hiredis.h>

enum { TAG_PORT = 3, NAME_BYTES = 24, SERVER_MS = 3000 };

static void name_page(uint32_t page, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "page-%" PRIu32, page);
}

/* The owner's side: a server that keeps nothing on disk and listens on the loopback device alone. */
static uint16_t start_server(pid_t *server)
{
    char port[8];
    uint16_t number = lode_fetch_free_port();
    snprintf(port, sizeof port, "%u", number);
    char *const argv[] = {"redis-server", "--port",      port, "--bind",    "127.0.0.1", "--save", "",  "--appendonly",
                          "no",           "--daemonize", "no", "--logfile", "/dev/null", "--dir",  "/", NULL};
    *server = number ? lode_fetch_spawn(argv, -1) : -1;
    return *server > 0 && lode_fetch_listens(number, *server) ? number : 0;
}

static bool store_page(const lode_fetch_bench_t *b, redisContext *connection, uint32_t page, uint64_t *words)
{
    size_t bytes = lode_fetch_page_bytes(b);
    char name[NAME_BYTES];
    name_page(page, name);
    for (size_t i = 0; i < bytes / 8; i++)
        words[i] = lode_fetch_word((uint64_t)page * bytes + i * 8);
    const char *words_of[] = {"SET", name, (const char *)words};
    size_t lengths[] = {3, strlen(name), bytes};
    redisReply *reply = redisCommandArgv(connection, 3, words_of, lengths);
    bool stored = reply && reply->type == REDIS_REPLY_STATUS;
    freeReplyObject(reply);
    return stored;
}

static redisContext *connect_and_store(const lode_fetch_bench_t *b, uint16_t port)
{
    uint64_t *words = malloc(lode_fetch_page_bytes(b));
    redisContext *connection = redisConnectWithTimeout("127.0.0.1", port, (struct timeval){.tv_sec = 2});
    bool well = words && connection && !connection->err;
    for (uint32_t page = 0; well && page < b->pages; page++)
        well = store_page(b, connection, page, words);
    free(words);
    if (well)
        return connection;
    if (connection)
        redisFree(connection);
    return NULL;
}

void lode_fetch_redis_create(const lode_fetch_bench_t *b, lode_fetch_redis_t *redis, lode_slices_t *slices)
{
    uint16_t port = 0;
    int well = 0;
    *redis = (lode_fetch_redis_t){.server = -1};
    if (!b->one_host) {
        snprintf(slices->skipped, sizeof slices->skipped, "ranks 0 and 1 are not on one host");
        return;
    }
    if (b->job.rank == 1) {
        port = start_server(&redis->server);
        MPI_Send(&port, 1, MPI_UINT16_T, 0, TAG_PORT, MPI_COMM_WORLD);
    } else if (b->job.rank == 0) {
        MPI_Recv(&port, 1, MPI_UINT16_T, 1, TAG_PORT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        redis->connection = port ? connect_and_store(b, port) : NULL;
        well = redis->connection != NULL;
    }
    MPI_Bcast(&well, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (!well)
        snprintf(slices->skipped, sizeof slices->skipped, "redis-server did not start; is it installed?");
}

void lode_fetch_redis_destroy(lode_fetch_redis_t *redis)
{
    if (redis->connection)
        redisFree(redis->connection);
    if (redis->server > 0)
        lode_fetch_reap(redis->server, 0);
    *redis = (lode_fetch_redis_t){.server = -1};
}

static uint64_t count_wrong(const lode_fetch_bench_t *b, const redisReply *reply, uint32_t first)
{
    uint64_t wrong = 0;
    size_t bytes = lode_fetch_page_bytes(b);
    for (size_t p = 0; p < reply->elements; p++) {
        uint64_t offset = (first + p) % b->pages * bytes, word;
        if (reply->element[p]->len != bytes)
            return bytes;
        for (size_t at = 0; at < bytes; at += 8) {
            memcpy(&word, reply->element[p]->str + at, 8);
            wrong += word != lode_fetch_word(offset + at);
        }
    }
    return wrong;
}

static lode_status_t append_mget(const lode_fetch_bench_t *b, redisContext *connection, uint32_t first)
{
    const char **words = calloc(b->batch_pages + 1, sizeof *words);
    char(*names)[NAME_BYTES] = calloc(b->batch_pages, sizeof *names);
    int result = REDIS_ERR;
    if (words && names) {
        words[0] = "MGET";
        for (uint32_t p = 0; p < b->batch_pages; p++) {
            name_page((first + p) % b->pages, names[p]);
            words[p + 1] = names[p];
        }
        result = redisAppendCommandArgv(connection, (int)b->batch_pages + 1, words, NULL);
    }
    free(words);
    free(names);
    return result == REDIS_OK ? LODE_OK : lode_fail(LODE_ERR_IO, "Redis: MGET could not be sent");
}

/* Two commands are under way, as two fetches are: the same chance for both. */
lode_status_t lode_fetch_redis_slice(const lode_fetch_bench_t *b, lode_fetch_redis_t *redis, lode_slices_t *slices)
{
    redisContext *connection = redis->connection;
    uint32_t asked[2];
    uint64_t bytes = 0, wrong = 0, start = lode_now_ns(), end = start + b->slice_ms * UINT64_C(1000000), now = start;
    asked[0] = (uint32_t)(lode_mix(3, redis->turn++) % b->pages);
    LODE_TRY(append_mget(b, connection, asked[0]));
    for (int which = 0;; which ^= 1) {
        bool last = now >= end;
        if (!last) {
            asked[which ^ 1] = (uint32_t)(lode_mix(3, redis->turn++) % b->pages);
            LODE_TRY(append_mget(b, connection, asked[which ^ 1]));
        }
        void *reply = NULL;
        if (redisGetReply(connection, &reply) != REDIS_OK || ((redisReply *)reply)->type != REDIS_REPLY_ARRAY)
            return lode_fail(LODE_ERR_IO, "Redis: MGET failed: %s", connection->errstr);
        now = lode_now_ns();
        bytes += b->batch_pages * (uint64_t)lode_fetch_page_bytes(b);
        if (last)
            wrong = count_wrong(b, reply, asked[which]);
        freeReplyObject(reply);
        if (last)
            break;
    }
    slices->rate[slices->count++] = (double)bytes * 1e3 / (double)(now - start);
    slices->wrong += wrong;
    return LODE_OK;
}

#else

void lode_fetch_redis_create(const lode_fetch_bench_t *bench, lode_fetch_redis_t *redis, lode_slices_t *slices)
{
    (void)bench;
    *redis = (lode_fetch_redis_t){.server = -1};
    snprintf(slices->skipped, sizeof slices->skipped, "this build has no hiredis (libhiredis-dev)");
}

void lode_fetch_redis_destroy(lode_fetch_redis_t *redis)
{
    (void)redis;
}

lode_status_t lode_fetch_redis_slice(const lode_fetch_bench_t *bench, lode_fetch_redis_t *redis, lode_slices_t *slices)
{
    (void)bench, (void)redis, (void)slices;
    return lode_fail(LODE_ERR_UNSUPPORTED, "this build has no hiredis");
}

#endif
