/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that talk to a service, over a cluster of one rank in this process. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/job.h"
#include "launch/client.h"

enum { LAYERS = 2, TOKENS = 549, QUERIES = 3, HEADS = 4, KV_HEADS = 2, DIM = 64 };

static char folder[] = "/tmp/lodemark-launch-XXXXXX", capture[64], results[64], said[64];
static lode_cluster_h cluster;
static lode_config_h config;
static int signal_at_open;

/* ---------------------------------------------------------------- a capture */

static void write_floats(FILE *file, size_t n, unsigned *seed, float scale)
{
    for (size_t i = 0; i < n; i++) {
        float x = ((float)rand_r(seed) / (float)RAND_MAX * 2 - 1) * scale;
        cr_assert(fwrite(&x, sizeof x, 1, file) == 1);
    }
}

static size_t entry(char *header, size_t used, const char *name, size_t rows, size_t heads, size_t *at)
{
    size_t bytes = rows * heads * DIM * sizeof(float);
    used +=
        (size_t)sprintf(header + used, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%zu,%zu,%d],\"data_offsets\":[%zu,%zu]}",
                        name, rows, heads, DIM, *at, *at + bytes);
    *at += bytes;
    return used;
}

/* short_by: bytes that the file has less than its header says */
static void write_capture(const char *path, size_t tokens, unsigned seed, long short_by)
{
    char header[4096], name[32];
    size_t at = 0,
           used = (size_t)sprintf(header, "{\"__metadata__\":{\"lodemark.capture\":\"1\",\"rope_theta\":\"10000.0\"}");
    for (int layer = 0; layer < LAYERS; layer++) {
        for (const char *which = "kvq"; *which; which++) {
            sprintf(name, "layers.%d.%c", layer, *which);
            used = entry(header, used, name, *which == 'q' ? QUERIES : tokens, *which == 'q' ? HEADS : KV_HEADS, &at);
        }
    }
    used += (size_t)sprintf(header + used,
                            ",\"q_positions\":{\"dtype\":\"I64\",\"shape\":[%d],\"data_offsets\":[%zu,%zu]}}", QUERIES,
                            at, at + QUERIES * 8);
    FILE *file = fopen(path, "w");
    uint64_t length = used;
    cr_assert(file && fwrite(&length, 8, 1, file) == 1 && fwrite(header, used, 1, file) == 1);
    for (int layer = 0; layer < LAYERS; layer++) {
        write_floats(file, tokens * KV_HEADS * DIM * 2, &seed, 1);
        write_floats(file, QUERIES * HEADS * DIM, &seed, 4);
    }
    for (int64_t i = 0; i < QUERIES; i++) {
        int64_t position = i == 0 ? 200 : (int64_t)tokens + i; /* the first sees but a part */
        cr_assert(fwrite(&position, 8, 1, file) == 1);
    }
    long size = ftell(file);
    fclose(file);
    cr_assert(truncate(path, size - short_by) == 0);
}

/* ------------------------------------------------------------------- a door */

static lode_status_t open_here(lode_config_h unused, const char *contact, const char *token_file, lode_cluster_h *out)
{
    (void)unused, (void)contact, (void)token_file;
    if (signal_at_open)
        raise(signal_at_open);
    *out = cluster;
    return LODE_OK;
}

static lode_status_t stay(lode_cluster_h *out)
{
    *out = NULL;
    return LODE_OK;
}

static void begin(void)
{
    setenv("LODEMARK_ARENA", "64MiB", 1);
    setenv("LODEMARK_HOT_CACHE", "1MiB", 1);
    cr_assert(mkdtemp(folder) != NULL);
    snprintf(capture, sizeof capture, "%s/doc.safetensors", folder);
    snprintf(results, sizeof results, "%s/results", folder);
    snprintf(said, sizeof said, "%s/said", folder);
    write_capture(capture, TOKENS, 1, 0);
    cr_assert(lode_config_create(&config) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_cluster_join(config, NULL, &cluster) == LODE_OK, "%s", lode_error_message());
    lode_client_door = (lode_client_door_t){open_here, stay};
}

static void end(void)
{
    cr_assert(lode_cluster_leave(&cluster) == LODE_OK, "%s", lode_error_message());
    lode_config_destroy(&config);
    unlink(capture);
    unlink(results);
    unlink(said);
    rmdir(folder);
}

TestSuite(launch, .timeout = 60, .init = begin, .fini = end);
TestSuite(text, .timeout = 60);

/* A command line of words between blanks; what it says on stdout and stderr lies in `said`. */
static int run(const lode_client_command_t *command, const char *line)
{
    char words[512], *argv[32], *save = NULL;
    int argc = 0, keep_out = dup(STDOUT_FILENO), keep_err = dup(STDERR_FILENO);
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    argv[argc] = NULL;
    fflush(NULL);
    int file = open(said, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    close(file);
    int code = lode_client_main(command, argc, argv);
    fflush(NULL);
    dup2(keep_out, STDOUT_FILENO);
    dup2(keep_err, STDERR_FILENO);
    close(keep_out);
    close(keep_err);
    return code;
}

static int run_on(const lode_client_command_t *command, const char *file, const char *rest)
{
    char line[512];
    snprintf(line, sizeof line, "%s %s", file, rest);
    return run(command, line);
}

static const char *spoken(void)
{
    static char text[8192];
    FILE *file = fopen(said, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[n] = 0;
    return text;
}

static bool speaks(const char *words)
{
    return strstr(spoken(), words) != NULL;
}

static json_t *object_of(const char *path)
{
    json_error_t error;
    json_t *object = json_load_file(path, 0, &error);
    cr_assert(object != NULL, "%s: %s\n%s", path, error.text, spoken());
    return object;
}

static double number(const char *path, const char *key)
{
    json_t *object = object_of(path), *value = json_object_get(object, key);
    bool is = json_is_number(value);
    cr_assert(is, "%s is not a number", key);
    double result = json_number_value(value);
    json_decref(object);
    return result;
}

static void text_of(const char *path, const char *key, char *text, size_t room)
{
    json_t *object = object_of(path);
    const char *value = json_string_value(json_object_get(object, key));
    cr_assert(value != NULL, "%s is no text", key);
    snprintf(text, room, "%s", value);
    json_decref(object);
}

static size_t block_count(void)
{
    cr_assert(run(&lode_command_ls, "--json") == 0, "%s", spoken());
    json_t *object = object_of(said);
    size_t n = json_array_size(json_object_get(object, "blocks"));
    json_decref(object);
    return n;
}

static int attend(const char *options)
{
    char line[256];
    snprintf(line, sizeof line, "--block doc --json %s %s", results, options);
    return run_on(&lode_command_attend, capture, line);
}

/* --------------------------------------------------------------------- put */

Test(launch, put_makes_a_sealed_block)
{
    cr_assert(block_count() == 0);
    cr_assert(run(&lode_command_ls, "") == 0);
    cr_assert(strcmp(spoken(), "no blocks\n") == 0);
    cr_assert(run_on(&lode_command_put, capture, "--seal --json -") == 0, "%s", spoken());
    cr_assert(number(said, "tokens") == TOKENS);
    cr_assert(number(said, "bytes") == 2.0 * LAYERS * TOKENS * KV_HEADS * DIM * 4);
    cr_assert(run(&lode_command_ls, "") == 0);
    cr_assert(speaks("doc ") && speaks(" 549 ") && speaks("sealed"), "%s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "--name another --format bf16 --policy landmark4:c2:nocentre") == 0);
    cr_assert(run(&lode_command_ls, "") == 0);
    cr_assert(speaks("landmark4:c2:nocentre"), "%s", spoken());
    cr_assert(strstr(spoken(), "another") < strstr(spoken(), "doc"), "not sorted: %s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "") == 1, "a name in use was taken");
    cr_assert(strncmp(spoken(), "lodemark: ", 10) == 0, "%s", spoken());
    cr_assert(block_count() == 2);
}

Test(launch, put_refuses_before_it_creates)
{
    char bad[80];
    snprintf(bad, sizeof bad, "%s/bad", folder);
    write_capture(bad, TOKENS, 1, 100);
    cr_assert(run_on(&lode_command_put, bad, "") == 1);
    cr_assert(speaks("truncated"), "%s", spoken());
    unlink(bad);
    cr_assert(run_on(&lode_command_put, bad, "") == 1);
    cr_assert(speaks("No such file"), "%s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "--name a\033b") == 1);
    cr_assert(speaks("control") && !strchr(spoken(), '\033'), "%s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "--policy lndmark2:c4") == 1);
    cr_assert(speaks("did you mean \"landmark2\""), "%s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "--policy dense") == 1);
    cr_assert(run_on(&lode_command_put, capture, "--seal=no") == 1);
    cr_assert(run_on(&lode_command_put, capture, "--json /nonexistent/x") == 1);
    lode_geometry_t geometry;
    cr_assert(lode_cluster_geometry(cluster, &geometry) == LODE_ERR_NOT_FOUND, "a refused put left its geometry");
    cr_assert(block_count() == 0);
}

Test(launch, put_interrupted_leaves_nothing)
{
    static const int signals[] = {SIGINT, SIGTERM};
    for (size_t i = 0; i < 2; i++) {
        signal_at_open = signals[i];
        cr_assert(run_on(&lode_command_put, capture, "") == 128 + signals[i], "%s", spoken());
        signal_at_open = 0;
        cr_assert(block_count() == 0);
    }
    cr_assert(run_on(&lode_command_put, capture, "") == 0, "%s", spoken());
}

Test(launch, rm_removes_what_is_there)
{
    cr_assert(run_on(&lode_command_put, capture, "--name one") == 0, "%s", spoken());
    cr_assert(run_on(&lode_command_put, capture, "--name two") == 0, "%s", spoken());
    cr_assert(run(&lode_command_rm, "one onf two") == 1);
    cr_assert(speaks("\"onf\"") && speaks("one removed"), "%s", spoken());
    cr_assert(speaks("two removed"), "the others were not removed: %s", spoken());
    cr_assert(block_count() == 0);
    cr_assert(run(&lode_command_rm, "") == 2);
}

/* ------------------------------------------------------------------- attend */

Test(launch, attend_to_everything_is_dense)
{
    char digest[32], again[32];
    cr_assert(run_on(&lode_command_put, capture, "--format bf16") == 0, "%s", spoken());
    cr_assert(attend("--budget 100%") == 0, "%s", spoken());
    cr_assert(number(results, "steps") == LAYERS * QUERIES);
    cr_assert(number(results, "failed_steps") == 0);
    cr_assert(number(results, "checked_steps") == LAYERS * QUERIES);
    cr_assert(number(results, "rel_error") < 1e-2 && number(results, "rel_error") > 0);
    cr_assert(number(results, "found_mass") == 1 && number(results, "oracle_mass") == 1);
    text_of(results, "output_digest", digest, sizeof digest);
    cr_assert(attend("--budget 100% --loop 3") == 0, "%s", spoken());
    cr_assert(number(results, "steps") == 3 * LAYERS * QUERIES);
    cr_assert(number(results, "wrong_steps") == 0);
    text_of(results, "output_digest", again, sizeof again);
    cr_assert(strcmp(digest, again) == 0);
    static const int some[] = {0, 1, 4, 6, 100};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        char options[64];
        sprintf(options, "--budget 100%% --check-steps %d", some[i]);
        cr_assert(attend(options) == 0, "%s", spoken());
        json_t *object = object_of(results);
        cr_assert(json_integer_value(json_object_get(object, "checked_steps")) == (some[i] < 6 ? some[i] : 6));
        bool compared = json_is_real(json_object_get(object, "rel_error"));
        cr_assert(compared == (some[i] > 0));
        json_decref(object);
    }
    cr_assert(attend("--policy dense --steps 2") == 0, "%s", spoken());
    cr_assert(number(results, "steps") == 2);
    cr_assert(number(results, "rel_error") < 1e-2);
}

Test(launch, attend_to_a_part_finds_most_of_what_can_be_found)
{
    char whole[32], part[32];
    cr_assert(run_on(&lode_command_put, capture, "--format bf16 --policy landmark8") == 0, "%s", spoken());
    cr_assert(attend("--budget 100%") == 0, "%s", spoken());
    text_of(results, "output_digest", whole, sizeof whole);
    cr_assert(attend("--budget 25% --policy landmark8 --sinks 1 --window 8") == 0, "%s", spoken());
    double found = number(results, "found_mass"), oracle = number(results, "oracle_mass");
    cr_assert(found > 0.25 && found < 1, "found %g", found);
    cr_assert(oracle > found - 1e-9 && oracle < 1 && found > 0.9 * oracle, "oracle %g, found %g", oracle, found);
    text_of(results, "output_digest", part, sizeof part);
    cr_assert(strcmp(whole, part) != 0, "a quarter of the tokens gives the same bits as all");
    cr_assert(number(results, "rel_error") > 0.01);
}

Test(launch, attend_refuses_what_does_not_fit)
{
    char other[80];
    cr_assert(attend("") == 1);
    cr_assert(run_on(&lode_command_put, capture, "") == 0, "%s", spoken());
    cr_assert(attend("--policy landmark4") == 1);
    cr_assert(speaks("landmarks \"landmark2\""), "%s", spoken());
    cr_assert(run_on(&lode_command_attend, capture, "--block dog") == 1);
    cr_assert(speaks("did you mean \"doc\""), "%s", spoken());
    cr_assert(run_on(&lode_command_attend, capture, "") == 1);
    cr_assert(attend("--loop ever") == 1);
    snprintf(other, sizeof other, "%s/other", folder);
    write_capture(other, TOKENS - 100, 1, 0);
    cr_assert(run_on(&lode_command_attend, other, "--block doc") == 1);
    cr_assert(speaks("449"), "%s", spoken());
    unlink(other);
}

/* ---------------------------------------------------------- stat, health, ping */

Test(launch, stat_health_and_ping_speak)
{
    cr_assert(run_on(&lode_command_put, capture, "") == 0, "%s", spoken());
    cr_assert(attend("") == 0, "%s", spoken());
    cr_assert(run(&lode_command_stat, "--json") == 0, "%s", spoken());
    json_t *object = object_of(said), *rank = json_array_get(json_object_get(object, "rank"), 0);
    cr_assert(json_integer_value(json_object_get(rank, "pages")) == (TOKENS + 63) / 64 * LAYERS);
    cr_assert(json_integer_value(json_object_get(rank, "steps")) == LAYERS * QUERIES);
    cr_assert(json_integer_value(json_object_get(rank, "step_p50_ns")) > 0);
    cr_assert(json_integer_value(json_object_get(rank, "arena_used_bytes")) > 0);
    bool alive = json_is_true(json_object_get(rank, "alive"));
    cr_assert(alive);
    json_decref(object);
    cr_assert(run(&lode_command_stat, "") == 0);
    cr_assert(speaks("total") && speaks("1 of 1 ranks alive"), "%s", spoken());
    cr_assert(run(&lode_command_health, "") == 0, "%s", spoken());
    cr_assert(strncmp(spoken(), "healthy", 7) == 0, "%s", spoken());
    cr_assert(run(&lode_command_health, "--json") == 0);
    cr_assert(run(&lode_command_ping, "-n 3 --json") == 0);
    cr_assert(number(said, "pings") == 3);
}

/* ------------------------------------------------------------- command lines */

Test(launch, wrong_words_are_named)
{
    cr_assert(run(&lode_command_stat, "--jsno") == 2);
    cr_assert(speaks("did you mean \"json\""), "%s", spoken());
    cr_assert(run(&lode_command_put, "") == 2);
    cr_assert(speaks("put wants CAPTURE"), "%s", spoken());
    cr_assert(run(&lode_command_put, "a b") == 2);
    cr_assert(run(&lode_command_ls, "a") == 2);
    cr_assert(run(&lode_command_stat, "--watch 0") == 2);
    cr_assert(run(&lode_command_put, "x --replicas 9") == 2);
    cr_assert(run(&lode_command_attend, "--help --nonsense") == 0);
    cr_assert(speaks("--on-lost fail|skip") && speaks("--cluster"), "%s", spoken());
}

static lode_status_t closed(lode_config_h unused, const char *contact, const char *token_file, lode_cluster_h *out)
{
    (void)unused, (void)contact, (void)token_file, (void)out;
    return lode_fail(LODE_ERR_PEER_LOST, "nobody is there");
}

Test(launch, no_answer_has_exit_codes)
{
    lode_client_door.open = closed;
    cr_assert(run(&lode_command_health, "") == 2);
    cr_assert(strcmp(spoken(), "lodemark: nobody is there\n") == 0, "%s", spoken());
    cr_assert(run(&lode_command_stat, "") == 1);
    cr_assert(run(&lode_command_rm, "x") == 1);
}

Test(text, numbers_have_units)
{
    char text[LODE_TEXT_MAX];
    cr_assert(strcmp(lode_text_bytes(0, text), "0 B") == 0);
    cr_assert(strcmp(lode_text_bytes(1536, text), "1.50 KiB") == 0);
    cr_assert(strcmp(lode_text_bytes(150.0 * 1024 * 1024, text), "150 MiB") == 0);
    cr_assert(strcmp(lode_text_time(0, text), "-") == 0);
    cr_assert(strcmp(lode_text_time(12400, text), "12.4 us") == 0);
    cr_assert(strcmp(lode_text_time(3.2e9, text), "3.20 s") == 0);
}

Test(text, only_printable_utf8_is_shown)
{
    static const struct {
        const char *from, *shown;
    } rows[] = {{"doc", "doc"},
                {"\xc3\xbcn \xe5\x90\x8d \xf0\x9f\x99\x82", "\xc3\xbcn \xe5\x90\x8d \xf0\x9f\x99\x82"},
                {"a\033[2Jb\x7f", "a?[2Jb?"},
                {"\xc2\x9b", "??"},      /* a control character of two bytes */
                {"\xc0\xaf", "??"},      /* overlong */
                {"\xed\xa0\x80", "???"}, /* half of a pair */
                {"\xff\xfe", "??"},
                {"a\xe5\x90", "a??"}}; /* cut off */
    char text[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        cr_assert(strcmp(lode_text_plain(rows[i].from, text, sizeof text), rows[i].shown) == 0, "row %zu: %s", i, text);
    cr_assert(strcmp(lode_text_plain("abc\xc3\xbc", text, 5), "abc") == 0, "a character was cut");
}

Test(text, landmarks_are_read_back)
{
    static const char *const kinds[] = {"landmark2",      "landmark4:c8",       "landmark2:higgs:nocentre",
                                        "landmark16:c16", "landmark8:nocentre", "landmark16:centre",
                                        "landmark1"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        lode_landmark_spec_t spec, again;
        char text[LODE_TEXT_MAX];
        cr_assert(lode_landmark_parse(kinds[i], &spec) == LODE_OK, "%s", lode_error_message());
        cr_assert(lode_landmark_parse(lode_text_landmark(&spec, text), &again) == LODE_OK, "%s", text);
        cr_assert(memcmp(&spec, &again, sizeof spec) == 0, "%s is not %s", text, kinds[i]);
    }
}

static volatile uintptr_t frame;

static void note_frame(int number)
{
    volatile char here = (char)number;
    frame = (uintptr_t)&here;
}

/* oneDNN 2 multiplies with the stack register in its working memory: a frame below that would be written over others.
 */
Test(client, signals_are_handled_on_a_stack_of_their_own)
{
    stack_t stack;
    struct sigaction before;
    lode_client_handle(SIGUSR1, note_frame, 0, &before);
    cr_assert(sigaltstack(NULL, &stack) == 0 && stack.ss_size >= 64 << 10);
    raise(SIGUSR1);
    cr_assert(frame >= (uintptr_t)stack.ss_sp && frame < (uintptr_t)stack.ss_sp + stack.ss_size);
}
