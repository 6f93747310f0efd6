/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file client.h
 * @brief What the commands that talk to a running service have in common: command line, connection, output.
 *
 * None of them needs mpirun or initialises MPI. A command is a row lode_client_command_t; lode_client_main() reads
 * its words and options, calls it, says what went wrong on stderr and gives the exit code.
 */
#ifndef LODE_LAUNCH_CLIENT_H
#define LODE_LAUNCH_CLIENT_H

#include <jansson.h>
#include <signal.h>

#include "base/base.h"

/** How the commands reach a cluster; main.c says the service, tests a cluster of their own. */
typedef struct lode_client_door {
    lode_status_t (*open)(lode_config_h config, const char *contact, const char *token_file, lode_cluster_h *cluster);
    lode_status_t (*leave)(lode_cluster_h *cluster);
} lode_client_door_t;

extern lode_client_door_t lode_client_door;

/** `health` alone: nobody answered. */
enum { LODE_EXIT_NO_ANSWER = 2, LODE_EXIT_SIGNAL = 128 };

typedef struct lode_client {
    lode_options_t options;
    char **words; /**< (word_count) of the command line that are no options */
    int word_count;
    lode_config_h config;
    lode_cluster_h cluster; /**< NULL until lode_client_open() */
    int exit;               /**< what to exit with if the command returns LODE_OK */
} lode_client_t;

typedef struct lode_client_command {
    const char *name;
    const char *words; /**< "CAPTURE", "NAME…" or "", for --help */
    const char *doc;
    const lode_option_t *options; /**< its own; those of all clients are added */
    int least, most;              /**< words that it takes; most −1: any number */
    const char *short_option;     /**< what -n stands for, or NULL */
    const char *bare_option;      /**< an option whose value may be left out, or NULL … */
    const char *bare_value;       /**< … and its value then */
    lode_status_t (*run)(lode_client_t *client);
    int exit_failed; /**< exit code of a failure, 0: LODE_EXIT_FAILED */
} lode_client_command_t;

int lode_client_main(const lode_client_command_t *command, int argc, char **argv);

/** Connect as --cluster and --token-file say. lode_client_main() leaves. */
lode_status_t lode_client_open(lode_client_t *client);

/** All live blocks, sorted by name. @param[out] entries (count) owned by the caller, free() */
lode_status_t lode_client_blocks(lode_client_t *client, lode_block_entry_t **entries, uint32_t *count);
/** The live block called @p name. @return ::LODE_ERR_NOT_FOUND, with the nearest name if there is a near one. */
lode_status_t lode_client_find(lode_client_t *client, const char *name, lode_block_entry_t *entry);

/** Print one object to a file, or to standard output if @p path is "-"; takes @p object, which may be NULL. */
lode_status_t lode_client_json(const char *path, json_t *object);

/** Last SIGINT, SIGTERM or SIGHUP since lode_client_catch(), 0 if none. Its like again ends the process at once. */
int lode_client_caught(void);
void lode_client_catch(void);
/**
 * Have a signal handled, as sigaction(), on a stack of its own. Every handler of a program that multiplies matrices
 * wants that: oneDNN 2 points the stack register at its working memory meanwhile, and a handler's frame would be
 * written over whatever lies in front of it. Of the main thread; ours block all signals.
 */
void lode_client_handle(int number, void (*handler)(int), int flags, struct sigaction *before);
/** What is still called before that, in the signal's handler; NULL: nothing. */
void lode_client_tidy(void (*tidy)(void));

/** Room for the texts below. */
#define LODE_TEXT_MAX 64
/** "1.50 GiB". */
const char *lode_text_bytes(double bytes, char text[LODE_TEXT_MAX]);
/** "850 ns", "12.4 us", "3.20 ms", "1.5 s"; "-" for 0. */
const char *lode_text_time(double ns, char text[LODE_TEXT_MAX]);
/** "landmark2:c4:nocentre", as lode_landmark_parse() reads it. */
const char *lode_text_landmark(const lode_landmark_spec_t *spec, char text[LODE_TEXT_MAX]);
/** Printable copy of what came from outside: control characters, and what is no UTF-8, become "?". */
const char *lode_text_plain(const char *from, char *text, size_t room);
/** Text of a model or a document to a terminal: control characters but line ends and tabs become "?". */
void lode_text_print(FILE *out, const char *text, size_t bytes);

extern const lode_client_command_t lode_command_put, lode_command_ls, lode_command_rm, lode_command_stat,
    lode_command_attend, lode_command_ping, lode_command_health;

#endif
