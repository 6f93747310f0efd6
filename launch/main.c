/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: names to functions. */
#include <string.h>

#include "bench/bench.h"
#include "bench/job.h"
#include "launch/ask.h"
#include "launch/capture.h"
#include "launch/client.h"
#include "launch/info.h"
#include "launch/talk.h"

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv); /* words after the name; NULL: has commands of its own */
    const struct command *below;
    const char *doc;
    const lode_client_command_t *client; /* talks to a service */
} command_t;

static const command_t bench_commands[] = {
    {"step", lode_bench_step, NULL, "attention steps over a context that all ranks hold: time, bytes, accuracy"},
    {"fetch", lode_bench_fetch, NULL, "fetching alone, beside its floor and its rivals"},
    {"kernels", lode_bench_kernels, NULL, "this machine's arithmetic, kernel by kernel, beside its floors"},
    {"gpu", lode_bench_gpu, NULL, "a GPU's operations, kernel by kernel, beside its floors"},
    {"landmarks", lode_bench_landmarks, NULL, "kinds of landmarks by the softmax mass that they find"},
    {"index", lode_bench_index, NULL, "choosing by the index of two levels beside a scan of all landmarks"},
    {"frontier", lode_bench_frontier, NULL, "bytes moved against what is kept of attention, by policy and budget"},
    {"text2json", lode_bench_text2json, NULL, "a model's score on long-text samples, by policy and budget"},
    {"streams", lode_bench_streams, NULL,
     "a model that hears, thinks and speaks at once: how soon, how well, what moves"},
    {NULL},
};

/* Each long-text task has these two. */
#define TASK_COMMANDS(task)                                                           \
    static const command_t task##_commands[] = {                                      \
        {"make", lode_##task##_make_main, NULL, "samples from a seed, to a file"},    \
        {"score", lode_##task##_score_main, NULL, "outputs of a model against them"}, \
        {NULL},                                                                       \
    }
TASK_COMMANDS(text2json);
TASK_COMMANDS(multi_needle);
TASK_COMMANDS(html_to_tsv);

static const command_t commands[] = {
    {"ask", lode_ask_main, NULL, "questions about documents, answered by a language model"},
    {"talk", lode_talk_main, NULL, "with a model that listens, thinks and speaks at once"},
    {"put", NULL, NULL, "put a capture into a running service", &lode_command_put},
    {"ls", NULL, NULL, "its blocks", &lode_command_ls},
    {"rm", NULL, NULL, "drop blocks", &lode_command_rm},
    {"attend", NULL, NULL, "ask a capture's queries of a block: error, mass found, time", &lode_command_attend},
    {"stat", NULL, NULL, "what every rank holds and does", &lode_command_stat},
    {"ping", NULL, NULL, "round trips", &lode_command_ping},
    {"health", NULL, NULL, "one line and an exit code", &lode_command_health},
    {"info", lode_command_info, NULL, "what this build and this machine can do"},
    {"bench", NULL, bench_commands, "measure, as a job of its own"},
    {"capture", lode_capture_main, NULL, "keys, values and queries of a model that reads documents, to a file"},
    {"calibrate", lode_calibrate, NULL, "the transform in front of landmarks, from captures of a model"},
    {"generate", lode_generate, NULL, "write a capture of generated keys, values and queries, to try things with"},
    {"text2json", NULL, text2json_commands, "a task that looks up many facts: make samples, score outputs"},
    {"multi-needle", NULL, multi_needle_commands, "the same with planted sentences"},
    {"html-to-tsv", NULL, html_to_tsv_commands, "the same with the items of a web page"},
    {NULL},
};

static void print_help(const char *path, const command_t *table, FILE *out)
{
    fprintf(out, "%s COMMAND [OPTIONS]\n\n", path);
    if (table == commands)
        fprintf(out,
                "Attention over KV caches that lie in the host memory of a cluster.\n\n"
                "put, ls, rm, attend, stat, ping and health talk to a service that lodemarkd runs; bench is a job of\n"
                "its own, which mpirun or srun starts, one process a rank; ask and talk are either.\n\n");
    int widest = 8;
    for (const command_t *row = table; row->name; row++)
        widest = (int)strlen(row->name) > widest ? (int)strlen(row->name) : widest;
    for (; table->name; table++)
        fprintf(out, "  %-*s  %s\n", widest, table->name, table->doc);
    fprintf(out, "\nEach has its own --help. Also: lodemark --version\n");
}

/* The option tables' search for the nearest name serves for commands as well. */
static const char *nearest_command(const command_t *table, const char *word)
{
    lode_option_t names[32] = {{NULL}};
    for (size_t i = 0; table[i].name && i + 1 < sizeof names / sizeof *names; i++)
        names[i].name = table[i].name;
    const char *nearest = lode_options_nearest(names, word);
    for (; nearest && table->name; table++)
        if (strcmp(table->name, nearest) == 0)
            return table->name;
    return NULL;
}

static int refuse_word(const char *path, const command_t *table, const char *word)
{
    const char *nearest = nearest_command(table, word);
    return lode_job_refuse(LODE_EXIT_USAGE, "%s has no command \"%s\"%s%s%s (%s --help lists them)", path, word,
                           nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "", path);
}

static int dispatch(const char *path, const command_t *table, int argc, char **argv)
{
    if (argc == 0 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0 || strcmp(argv[0], "help") == 0) {
        if (lode_job_rank_hint() == 0)
            print_help(path, table, argc ? stdout : stderr);
        return argc ? LODE_EXIT_OK : LODE_EXIT_USAGE;
    }
    for (const command_t *command = table; command->name; command++) {
        if (strcmp(argv[0], command->name) != 0)
            continue;
        if (command->client)
            return lode_client_main(command->client, argc - 1, argv + 1);
        char below[64];
        snprintf(below, sizeof below, "%s %s", path, command->name);
        return command->run ? command->run(argc - 1, argv + 1) : dispatch(below, command->below, argc - 1, argv + 1);
    }
    return refuse_word(path, table, argv[0]);
}

int main(int argc, char **argv)
{
    lode_client_door.open = lode_cluster_connect;
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        if (lode_job_rank_hint() == 0)
            printf("lodemark %s\n", lode_version());
        return LODE_EXIT_OK;
    }
    return dispatch("lodemark", commands, argc - 1, argv + 1);
}
