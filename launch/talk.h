/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file launch/talk.h
 * @brief `lodemark talk`: its parts. Options, documents and a cluster (reading.h), a console, talks, what they took.
 */
#ifndef LODE_LAUNCH_TALK_H
#define LODE_LAUNCH_TALK_H

#include "launch/console.h"
#include "launch/reading.h"
#include "reader/talk.h"

/** The command. @return its exit code */
int lode_talk_main(int argc, char **argv);

/** What a talk took. */
typedef struct lode_talk_account {
    uint64_t begin_ns;   /**< when it heard its request */
    uint32_t steps;      /**< passes of the model */
    uint32_t first_step; /**< that brought the first word; 0: none has */
    uint64_t first_ns;   /**< from the begin to its end */
    uint64_t tokens[LODE_TALK_STREAMS], said[LODE_TALK_STREAMS];
    uint64_t records_wanted, records_fetched, bytes_fetched, attend_ns, step_ns;
    lode_talk_state_t state;
    char heard_end;                  /**< last character that it heard; 0: none yet */
    json_t *heard, *states, *probes; /**< lists, each row with the steps before it */
} lode_talk_account_t;

typedef struct lode_talker {
    lode_reading_t reading;
    lode_talking_t talking;
    const char *request, *prompts_path, *thoughts_path; /**< NULL: none given */
    lode_prompts_t prompts;
    bool prompted; /**< whether those are there */
    FILE *thoughts;
    lode_console_t *console;
    lode_talk_h talk;
    bool more;  /**< the running talk was promised more input */
    bool idle;  /**< it listens, and nothing came yet */
    bool apart; /**< an empty line: what comes next is for another talk */
    bool leaving;
    char *pending; /**< came too late for the running talk: the next one begins with it */
    lode_talk_account_t account;
    json_t *talks;
    uint32_t talked, failed;
} lode_talker_t;

lode_status_t lode_talk_options(int argc, char **argv, lode_talker_t *talker);
void lode_talk_help(FILE *out);

/**
 * A line as input of a talk: one that ends with "\\" or "…" promises more.
 * @param[in,out] line  loses that mark @return whether it does
 */
bool lode_talk_promises(char *line);

/* -------------------------------------------------------------------- report */

void lode_talk_account_begin(lode_talk_account_t *account);
void lode_talk_account_heard(lode_talk_account_t *account, const char *text, bool more);
void lode_talk_account_step(lode_talk_account_t *account, const lode_talk_step_t *step);
/** A line for people. @param[in] end how it ended if not by itself: " (interrupted)"; or "" */
void lode_talk_report(const lode_talk_account_t *account, const char *end, char *text, size_t room);
/** @param[in] error  NULL: none. @return new; NULL without memory */
json_t *lode_talk_json(lode_talker_t *talker, const char *end, const char *error);
void lode_talk_account_free(lode_talk_account_t *account);

#endif
