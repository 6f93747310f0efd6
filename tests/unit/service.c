/* SPDX-License-Identifier: Apache-2.0 */
/* What needs no peer: contact files, tokens, addresses, frames, the layout of a step, memory files. */
#include <criterion/criterion.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "service/contact.h"
#include "service/mailbox.h"
#include "service/session.h"

static char path[64];

static void in_file(const char *text)
{
    snprintf(path, sizeof path, "/tmp/lodemark-unit-XXXXXX");
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void remove_file(void)
{
    unlink(path);
}

TestSuite(service, .timeout = 20, .fini = remove_file);

/* ------------------------------------------------------------- contact file */

Test(service, contacts_come_back)
{
    service_contact_t ranks[] = {{0, 4711, "n1", "10.77.0.1"}, {1, 65535, "n2", "10.77.0.2"}}, *read;
    uint32_t count;
    in_file("");
    cr_assert_eq(service_contacts_write(path, ranks, 2), LODE_OK);
    cr_assert_eq(service_contacts_read(path, &read, &count), LODE_OK);
    cr_assert(count == 2 && memcmp(read, ranks, sizeof ranks) == 0);
    free(read);
}

Test(service, contact_files_that_lie)
{
#define RANK(rest) "{\"lodemark\":1,\"ranks\":[{\"rank\":0,\"host\":\"a\"," rest "}]}"
    static const char *const lies[] = {
        "",
        "[]",
        "{}",
        "{\"lodemark\":1}",
        "{\"lodemark\":1,\"ranks\":[]}",
        "{\"lodemark\":1,\"ranks\":{}}",
        "{\"lodemark\":2,\"ranks\":[{\"rank\":0,\"host\":\"a\",\"address\":\"127.0.0.1\",\"port\":1}]}",
        RANK("\"address\":\"127.0.0.1\",\"port\":0"),
        RANK("\"address\":\"127.0.0.1\",\"port\":65536"),
        RANK("\"address\":\"127.0.0.1\",\"port\":\"1\""),
        RANK("\"address\":\"localhost\",\"port\":1"),
        RANK("\"port\":1"),
        "{\"lodemark\":1,\"ranks\":[{\"rank\":-1,\"host\":\"a\",\"address\":\"127.0.0.1\",\"port\":1}]}",
        "{\"lodemark\":1,\"ranks\":[{\"rank\":0,\"host\":\"a\\u001b[1m\",\"address\":\"127.0.0.1\",\"port\":1}]}",
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        service_contact_t *read = NULL;
        uint32_t count = 7;
        in_file(lies[i]);
        cr_expect_eq(service_contacts_read(path, &read, &count), LODE_ERR_FORMAT, "%s", lies[i]);
        cr_expect(!read && count == 7);
        unlink(path);
    }
    service_contact_t *read;
    uint32_t count;
    cr_expect_eq(service_contacts_read("/nonexistent/contact", &read, &count), LODE_ERR_IO);
    cr_expect(strstr(lode_error_message(), "/nonexistent/contact"));
}

/* -------------------------------------------------------------------- token */

Test(service, tokens)
{
    service_token_t made, read, other;
    struct stat facts;
    unsetenv("LODEMARK_TOKEN");
    unsetenv("LODEMARK_TOKEN_FILE");
    cr_assert_eq(service_token_get(NULL, false, &read), LODE_ERR_REFUSED);
    in_file("");
    unlink(path);
    cr_assert_eq(service_token_get(path, false, &read), LODE_ERR_IO);
    cr_assert_eq(service_token_get(path, true, &made), LODE_OK);
    cr_assert(made.length == 64 && stat(path, &facts) == 0 && (facts.st_mode & 0777) == 0600);
    cr_assert_eq(service_token_get(path, true, &read), LODE_OK);
    cr_assert(service_token_equal(&made, read.bytes, read.length));
    setenv("LODEMARK_TOKEN_FILE", path, 1);
    cr_assert_eq(service_token_get(NULL, false, &read), LODE_OK);
    cr_assert(service_token_equal(&made, read.bytes, read.length));
    unsetenv("LODEMARK_TOKEN_FILE");
    setenv("LODEMARK_TOKEN", "0123456789abcdef", 1);
    cr_assert_eq(service_token_get("", false, &other), LODE_OK);
    cr_assert(!service_token_equal(&made, other.bytes, other.length));
    setenv("LODEMARK_TOKEN", "too short", 1);
    cr_assert_eq(service_token_get(NULL, false, &other), LODE_ERR_FORMAT);
}

Test(service, tokens_are_compared_whole)
{
    service_token_t token = {.bytes = "0123456789abcdef", .length = 16};
    uint8_t twice[2 * SESSION_TOKEN_MAX] = {0};
    cr_expect(service_token_equal(&token, "0123456789abcdef", 16));
    cr_expect(!service_token_equal(&token, "0123456789abcdef", 15));
    cr_expect(!service_token_equal(&token, "0123456789abcde", 16));
    cr_expect(!service_token_equal(&token, "1123456789abcdef", 16));
    cr_expect(!service_token_equal(&token, "", 0));
    memcpy(twice, token.bytes, SESSION_TOKEN_MAX);
    memcpy(twice + SESSION_TOKEN_MAX, token.bytes, SESSION_TOKEN_MAX);
    cr_expect(!service_token_equal(&token, twice, sizeof twice));
}

/* ------------------------------------------------------------------ address */

Test(service, addresses)
{
    char bind[64], advertise[64];
    uint16_t port;
    cr_assert_eq(service_address_parse("127.0.0.1", bind, advertise, &port), LODE_OK);
    cr_expect(port == 0 && strcmp(bind, "127.0.0.1") == 0 && strcmp(advertise, bind) == 0);
    cr_assert_eq(service_address_parse("127.0.0.1:7700", bind, advertise, &port), LODE_OK);
    cr_expect_eq(port, 7700);
    cr_assert_eq(service_address_parse("127.0.0.0/8:1", bind, advertise, &port), LODE_OK);
    cr_expect(port == 1 && strcmp(bind, "127.0.0.1") == 0);
    cr_assert_eq(service_address_parse("0.0.0.0", bind, advertise, &port), LODE_OK);
    cr_expect(strcmp(bind, "0.0.0.0") == 0 && strcmp(advertise, "0.0.0.0") != 0);
    static const char *const wrong[] = {"",
                                        "localhost",
                                        "127.0.0.1:",
                                        "127.0.0.1:65536",
                                        "127.0.0.1:x",
                                        "1.2.3",
                                        "1.2.3.4/33",
                                        "1.2.3.4/",
                                        "::1",
                                        "203.0.113.0/24",
                                        "127.0.0.1 ",
                                        "255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_expect_eq(service_address_parse(wrong[i], bind, advertise, &port), LODE_ERR_INVALID, "%s", wrong[i]);
}

/* ----------------------------------------------------------------- messages */

Test(service, frames)
{
    session_frame_t fine = {SESSION_MAGIC, SESSION_CALL, 100, 0, 0}, frame = fine;
    cr_expect_eq(session_frame_check(&frame, false), LODE_OK);
    frame.payload_bytes = 1;
    cr_expect_eq(session_frame_check(&frame, false), LODE_ERR_FORMAT);
    cr_expect_eq(session_frame_check(&frame, true), LODE_OK);
    frame.payload_bytes = UINT64_C(4) << 30;
    cr_expect_eq(session_frame_check(&frame, true), LODE_ERR_FORMAT);
    frame.payload_bytes = UINT64_MAX;
    cr_expect_eq(session_frame_check(&frame, true), LODE_ERR_FORMAT);
    frame = fine;
    frame.header_bytes = SESSION_HELLO_MAX + 1;
    cr_expect_eq(session_frame_check(&frame, false), LODE_ERR_FORMAT);
    cr_expect_eq(session_frame_check(&frame, true), LODE_OK);
    frame.header_bytes = 0;
    cr_expect_eq(session_frame_check(&frame, true), LODE_ERR_FORMAT);
    frame = fine;
    frame.magic++;
    cr_expect_eq(session_frame_check(&frame, true), LODE_ERR_FORMAT);
    frame = fine;
    frame.kind = SESSION_PONG + 1;
    cr_expect_eq(session_frame_check(&frame, true), LODE_ERR_FORMAT);
}

Test(service, tensors_lie_apart)
{
    Lodemark__StepStream one = LODEMARK__STEP_STREAM__INIT, two = LODEMARK__STEP_STREAM__INIT, *list[] = {&one, &two};
    Lodemark__StepAsk ask = LODEMARK__STEP_ASK__INIT;
    const session_shape_t shape = {8, 2, 64};
    session_tensors_t at[2];
    size_t request, reply;
    one.tokens = 3;
    one.dtype = LODE_BF16;
    one.wants_lost = 1;
    two.tokens = 1;
    two.dtype = LODE_FP32;
    two.writes = two.wants_lse = 1;
    ask.streams = list;
    ask.n_streams = 2;
    cr_assert_eq(session_step_layout(&ask, &shape, at, &request, &reply), LODE_OK);
    cr_expect(at[0].q == 0 && at[1].q == 3072 && at[1].k == 5120 && at[1].v == 5632 && request == 6144);
    cr_expect(at[0].out == 0 && at[0].lost == 6144 && at[1].out == 6208 && at[1].lse == 8256 && reply == 8320);
    cr_expect(at[0].k == SIZE_MAX && at[0].lse == SIZE_MAX && at[1].lost == SIZE_MAX);
    one.tokens = UINT32_MAX;
    cr_expect_eq(session_step_layout(&ask, &shape, at, &request, &reply), LODE_ERR_INVALID);
}

Test(service, statistics_come_back)
{
    lode_step_stats_t step, step_back;
    lode_rank_stats_t rank, rank_back;
    uint64_t stages[LODE_STAGE_COUNT];
    Lodemark__StepStats message;
    Lodemark__RankStats numbers;
    Lodemark__RankReport report;
    memset(&step, 0, sizeof step);
    memset(&rank, 0, sizeof rank);
    for (size_t i = 0; i < sizeof step / 4; i++) /* small numbers everywhere: no field may be forgotten */
        ((uint8_t *)&step)[4 * i] = (uint8_t)(i + 1);
    session_pack_stats(&step, stages, &message);
    cr_assert_eq(session_unpack_stats(&message, &step_back), LODE_OK);
    cr_expect(memcmp(&step, &step_back, sizeof step) == 0);
    rank.rank = 3;
    rank.alive = rank.fenced = rank.filling = 1;
    strcpy(rank.host, "n1");
    for (uint64_t *at = &rank.uptime_ns; (void *)at < (void *)(&rank + 1); at++)
        *at = UINT64_C(0x3ff0000000000000) + (uint64_t)(at - &rank.uptime_ns); /* also a number as a double */
    rank.incarnation = 4;
    rank.epoch = 5;
    session_pack_rank(&rank, &numbers, &report);
    cr_assert_eq(session_unpack_rank(&report, &rank_back), LODE_OK);
    size_t gap =
        offsetof(lode_rank_stats_t, device) + sizeof rank.device; /* no field, but the loop above wrote there */
    memset((uint8_t *)&rank + gap, 0, offsetof(lode_rank_stats_t, device_landmark_bytes) - gap);
    memset((uint8_t *)&rank_back + gap, 0, offsetof(lode_rank_stats_t, device_landmark_bytes) - gap);
    cr_expect(memcmp(&rank, &rank_back, sizeof rank) == 0);
}

Test(service, names_with_control_characters)
{
    cr_expect(session_text_is_fine("") && session_text_is_fine("Grüße, 世界"));
    static const char *const bad[] = {"a\nb", "\x1b[31m", "a\x7f", "\xc2\x9b", "\t"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!session_text_is_fine(bad[i]), "%zu", i);
}

/* ---------------------------------------------------------------- mailboxes */

Test(service, memory_files)
{
    void *mine, *theirs;
    int fd;
    Lodemark__MemoryFile file = LODEMARK__MEMORY_FILE__INIT;
    cr_assert_eq(mailbox_make(sizeof(mailbox_t), &fd, &mine), LODE_OK);
    cr_assert_eq(mailbox_describe(fd, &file), LODE_OK);
    cr_expect(ftruncate(fd, 0) != 0, "a client could shorten it");
    cr_assert_eq(mailbox_map(&file, sizeof(mailbox_t), &theirs), LODE_OK);
    ((mailbox_t *)mine)->request.header_bytes = 42;
    cr_expect_eq(((mailbox_t *)theirs)->request.header_bytes, 42);
    munmap(theirs, sizeof(mailbox_t));
    cr_expect_eq(mailbox_map(&file, sizeof(mailbox_t) + 1, &theirs), LODE_ERR_UNSUPPORTED);
    file.inode++;
    cr_expect_eq(mailbox_map(&file, sizeof(mailbox_t), &theirs), LODE_ERR_UNSUPPORTED);
    file.fd = 0;
    cr_expect_eq(mailbox_map(&file, sizeof(mailbox_t), &theirs), LODE_ERR_UNSUPPORTED);
    munmap(mine, sizeof(mailbox_t));
    close(fd);
}
