/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file ask.h
 * @brief `lodemark ask`: its parts, in the order in which they come to pass.
 *
 * Options, documents and a cluster (reading.h), questions, what it cost.
 */
#ifndef LODE_LAUNCH_ASK_H
#define LODE_LAUNCH_ASK_H

#include "launch/reading.h"

/** The command. @return its exit code */
int lode_ask_main(int argc, char **argv);

typedef struct lode_ask {
    lode_reading_t reading;
    lode_asking_t asking;
    bool compare; /**< full attention as well as the policy */
    json_t *answers;
    uint32_t asked, failed;
} lode_ask_t;

lode_status_t lode_ask_options(int argc, char **argv, lode_ask_t *ask);
void lode_ask_help(FILE *out);

/** Ask what the options, a file or standard input say. */
lode_status_t lode_ask_questions(lode_ask_t *ask);

/* -------------------------------------------------------------------- report */

/** Behind the answer's text, which was shown as it came. @p dense: the same question asked densely, or NULL */
void lode_ask_report_answer(const lode_ask_t *ask, const lode_answer_t *answer, const lode_answer_t *dense);
/** @return new; NULL without memory */
json_t *lode_ask_answer_json(const lode_ask_t *ask, const char *question, const lode_answer_t *answer,
                             const lode_answer_t *dense);
/** Everything, as one object; does nothing without --json. */
lode_status_t lode_ask_write_json(lode_ask_t *ask);

#endif
