/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "bench/job.h"
#include "launch/client.h"

static lode_status_t no_door(lode_config_h config, const char *contact, const char *token_file, lode_cluster_h *cluster)
{
    (void)config, (void)contact, (void)token_file, (void)cluster;
    return lode_fail(LODE_ERR_INTERNAL, "this program said no way to reach a cluster");
}

lode_client_door_t lode_client_door = {no_door, lode_cluster_leave};

/* ------------------------------------------------------------------ options */

static const lode_option_t client_options[] = {
    {"cluster", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "contact file that lodemarkd wrote [LODEMARK_CLUSTER]"},
    {"token-file", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file with the service's token [LODEMARK_TOKEN_FILE; the token itself: LODEMARK_TOKEN]"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};
/* Of the library's options, those that a client heeds. */
static const char *const heeded[] = {"log", "reconnect", "hung", "spin", "mailbox", NULL};

static bool is_heeded(const char *name)
{
    for (const char *const *at = heeded; *at; at++)
        if (strcmp(*at, name) == 0)
            return true;
    return false;
}

static size_t rows_of(const lode_option_t *table)
{
    size_t rows = 0;
    while (table[rows].name)
        rows++;
    return rows;
}

/* The command's rows, those of all clients, and the library's. Defaults are for --help alone: when options are read,
 * the library's have none, so that variables count. */
static lode_option_t *join_tables(const lode_option_t *own, bool defaults)
{
    size_t used = rows_of(own), common = rows_of(client_options), library = rows_of(lode_library_options);
    lode_option_t *table = calloc(used + common + library + 1, sizeof *table);
    if (!table)
        return NULL;
    memcpy(table, own, used * sizeof *table);
    memcpy(table + used, client_options, common * sizeof *table);
    used += common;
    for (size_t i = 0; i < library; i++) {
        if (!is_heeded(lode_library_options[i].name))
            continue;
        table[used] = lode_library_options[i];
        if (!defaults)
            table[used].value = NULL;
        used++;
    }
    return table;
}

static void print_help(const lode_client_command_t *command, FILE *out)
{
    lode_option_t *table = join_tables(command->options, true);
    fprintf(out, "lodemark %s %s%s[OPTIONS]\n\n%s\n\n", command->name, command->words, *command->words ? " " : "",
            command->doc);
    if (table) {
        size_t own = rows_of(command->options);
        lode_option_t *common = table + own;
        if (own) {
            fprintf(out, "Options\n");
            lode_options_help(command->options, out);
            fprintf(out, "\n");
        }
        fprintf(out, "Options of all commands that talk to a service\n");
        lode_options_help(common, out);
    }
    free(table);
}

static bool is_number(const char *word)
{
    uint64_t number;
    return lode_parse_count(word, &number) == LODE_OK;
}

/* argv with -n written out, and an option that may stand alone given its value. @return NULL without memory */
static char **spell_out(const lode_client_command_t *command, int argc, char **argv, char *bare, size_t room,
                        char *spelt, size_t spelt_room)
{
    char **words = calloc((size_t)argc + 1, sizeof *words);
    snprintf(bare, room, "--%s", command->bare_option ? command->bare_option : "");
    snprintf(spelt, spelt_room, "--%s", command->short_option ? command->short_option : "");
    for (int i = 0; words && i < argc; i++) {
        words[i] = argv[i];
        if (command->short_option && strcmp(argv[i], "-n") == 0)
            words[i] = spelt;
        if (command->bare_option && strcmp(argv[i], bare) == 0 && (i + 1 == argc || !is_number(argv[i + 1]))) {
            snprintf(bare, room, "--%s=%s", command->bare_option, command->bare_value);
            words[i] = bare;
        }
    }
    return words;
}

/* Words may stand before, between and behind the options. */
static lode_status_t read_words(const lode_client_command_t *command, lode_client_t *client, int argc, char **argv)
{
    for (int at = 0; at < argc;) {
        int rest = 0;
        LODE_TRY(lode_options_parse(&client->options, argc - at, argv + at, &rest));
        bool literal = rest > 0 && strcmp(argv[at + rest - 1], "--") == 0;
        at += rest;
        do {
            if (at < argc)
                client->words[client->word_count++] = argv[at++];
        } while (literal && at < argc);
    }
    if (lode_options_flag(&client->options, "help"))
        return LODE_OK;
    if (client->word_count < command->least)
        return lode_fail(LODE_ERR_INVALID, "%s wants %s; see lodemark %s --help", command->name, command->words,
                         command->name);
    if (command->most >= 0 && client->word_count > command->most)
        return lode_fail(LODE_ERR_INVALID, "\"%s\": %s takes %s%s; see lodemark %s --help",
                         client->words[command->most], command->name, command->most ? "no more than " : "options only",
                         command->most ? command->words : "", command->name);
    return LODE_OK;
}

static lode_status_t read_config(lode_client_t *client)
{
    LODE_TRY(lode_config_create(&client->config));
    for (const char *const *name = heeded; *name; name++) {
        const char *value = lode_options_get(&client->options, *name);
        if (value)
            LODE_TRY(lode_config_set(client->config, *name, value));
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- main */

lode_status_t lode_client_open(lode_client_t *client)
{
    return lode_client_door.open(client->config, lode_options_get(&client->options, "cluster"),
                                 lode_options_get(&client->options, "token-file"), &client->cluster);
}

static void complain(void)
{
    char plain[1024];
    fflush(stdout);
    fprintf(stderr, "lodemark: %s\n", lode_text_plain(lode_error_message(), plain, sizeof plain));
}

static int run_command(const lode_client_command_t *command, lode_client_t *client)
{
    int failed = command->exit_failed ? command->exit_failed : LODE_EXIT_FAILED;
    lode_status_t status = read_config(client);
    if (status == LODE_OK)
        status = command->run(client);
    if (status != LODE_OK)
        complain();
    if (client->cluster)
        lode_client_door.leave(&client->cluster);
    lode_config_destroy(&client->config);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "lodemark: standard output cannot be written: %s\n", strerror(errno));
        return failed;
    }
    return status == LODE_OK ? client->exit : failed;
}

static int main_with_words(const lode_client_command_t *command, lode_client_t *client, int argc, char **argv)
{
    lode_status_t status = read_words(command, client, argc, argv);
    if (status != LODE_OK) {
        complain();
        return LODE_EXIT_USAGE;
    }
    if (lode_options_flag(&client->options, "help")) {
        print_help(command, stdout);
        return LODE_EXIT_OK;
    }
    return run_command(command, client);
}

int lode_client_main(const lode_client_command_t *command, int argc, char **argv)
{
    char bare[LODE_VARIABLE_MAX], spelt[LODE_VARIABLE_MAX];
    lode_client_t client = {0};
    int code = LODE_EXIT_FAILED;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) { /* whatever else is wrong */
            print_help(command, stdout);
            return LODE_EXIT_OK;
        }
    }
    lode_option_t *table = join_tables(command->options, false);
    char **words = spell_out(command, argc, argv, bare, sizeof bare, spelt, sizeof spelt);
    client.words = calloc((size_t)argc + 1, sizeof *client.words);
    if (!table || !words || !client.words)
        fprintf(stderr, "lodemark: no memory for the command line\n");
    else if (lode_options_create(table, &client.options) != LODE_OK)
        complain();
    else
        code = main_with_words(command, &client, argc, words);
    if (client.options.values)
        lode_options_destroy(&client.options);
    free(client.words);
    free(words);
    free(table);
    return code;
}

/* ------------------------------------------------------------------- blocks */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const lode_block_entry_t *)a)->name, ((const lode_block_entry_t *)b)->name);
}

lode_status_t lode_client_blocks(lode_client_t *client, lode_block_entry_t **entries, uint32_t *count)
{
    uint32_t room = 64, found = 0;
    lode_block_entry_t *made = NULL;
    for (;;) { /* others may add some between two calls, but not for ever */
        lode_block_entry_t *more = realloc(made, room * sizeof *made);
        if (!more) {
            free(made);
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u blocks", room);
        }
        made = more;
        lode_status_t status = lode_cluster_blocks(client->cluster, made, room, &found);
        if (status != LODE_OK) {
            free(made);
            return status;
        }
        if (found <= room)
            break;
        room = found + 64;
    }
    qsort(made, found, sizeof *made, by_name);
    *entries = made;
    *count = found;
    return LODE_OK;
}

/* The option tables' search for the nearest name, over blocks. */
static lode_status_t not_found(const lode_block_entry_t *entries, uint32_t count, const char *name)
{
    char plain[2 * LODE_NAME_MAX];
    const char *nearest = NULL;
    lode_option_t *names = calloc(count + 1, sizeof *names);
    for (uint32_t i = 0; names && i < count; i++)
        names[i].name = entries[i].name;
    if (names)
        nearest = lode_options_nearest(names, name);
    free(names);
    return lode_fail(LODE_ERR_NOT_FOUND, "no block is called \"%s\"%s%s%s (lodemark ls lists them)",
                     lode_text_plain(name, plain, sizeof plain), nearest ? "; did you mean \"" : "",
                     nearest ? nearest : "", nearest ? "\"?" : "");
}

lode_status_t lode_client_find(lode_client_t *client, const char *name, lode_block_entry_t *entry)
{
    lode_block_entry_t *entries;
    uint32_t count, i = 0;
    LODE_TRY(lode_client_blocks(client, &entries, &count));
    while (i < count && strcmp(entries[i].name, name) != 0)
        i++;
    lode_status_t status = i < count ? LODE_OK : not_found(entries, count, name);
    if (status == LODE_OK)
        *entry = entries[i];
    free(entries);
    return status;
}

/* ------------------------------------------------------------------- output */

lode_status_t lode_client_json(const char *path, json_t *object)
{
    if (!object)
        return lode_fail(LODE_ERR_INTERNAL, "the results could not be put into JSON");
    lode_status_t status = LODE_OK;
    if (strcmp(path, "-") != 0)
        status = lode_job_write_json(path, object);
    else if (json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) || putchar('\n') == EOF)
        status = lode_fail(LODE_ERR_IO, "standard output cannot be written: %s", strerror(errno));
    json_decref(object);
    return status;
}

/* ------------------------------------------------------------------ signals */

static volatile sig_atomic_t caught;
static void (*tidy_up)(void);

static void take_note(int number)
{
    if (caught == number) {
        if (tidy_up)
            tidy_up();
        signal(number, SIG_DFL);
        raise(number); /* comes when this returns */
    }
    caught = number;
}

static void *make_stack(size_t *bytes)
{
    *bytes = (64 << 10) + getauxval(AT_MINSIGSTKSZ); /* what the kernel puts there, all vector registers among it */
    return malloc(*bytes);
}

void lode_client_handle(int number, void (*handler)(int), int flags, struct sigaction *before)
{
    static stack_t stack;
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    if (!stack.ss_sp && (stack.ss_sp = make_stack(&stack.ss_size)) != NULL)
        sigaltstack(&stack, NULL);
    if (stack.ss_sp)
        action.sa_flags |= SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, before);
}

void lode_client_catch(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction before;
    caught = 0;
    for (int i = 0; i < 3; i++) {
        lode_client_handle(numbers[i], take_note, SA_RESTART, &before);
        if (numbers[i] == SIGHUP && before.sa_handler == SIG_IGN)
            signal(SIGHUP, SIG_IGN); /* nohup */
    }
}

void lode_client_tidy(void (*tidy)(void))
{
    tidy_up = tidy;
}

int lode_client_caught(void)
{
    return caught;
}
