/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file options.h
 * @brief A benchmark's own options together with the library's, from one command line.
 */
#ifndef LODE_BENCH_OPTIONS_H
#define LODE_BENCH_OPTIONS_H

#include "base/base.h"

bool lode_bench_wants_help(int argc, char **argv);
/** Read a command line of options alone. */
lode_status_t lode_bench_own_options(const char *command, const lode_option_t *own, int argc, char **argv,
                                     lode_options_t *options);
/** Read a command line by the joined tables; library options have no default here: what has a value was asked for. */
lode_status_t lode_bench_options(const char *command, const lode_option_t *own, int argc, char **argv,
                                 lode_options_t *options);
void lode_bench_options_free(lode_options_t *options);
/** Defaults, then LODEMARK_ variables, then what was asked for. */
lode_status_t lode_bench_config(const lode_options_t *options, lode_config_h *config);
/** Whether a library option was set, on the command line or by its variable. */
bool lode_bench_given(const lode_options_t *options, const char *name, const char *variable);
/**
 * "dense" or a landmark's name; a slip in its first word is answered with the nearest name.
 * @param[out] landmark  "landmark2" if dense
 */
lode_status_t lode_bench_policy(const char *text, bool *dense, lode_landmark_spec_t *landmark);

enum { LODE_BUDGETS_MAX = 16 };
/** The next of words separated by commas; one that is too long for its room is cut. @return what follows, or NULL */
const char *lode_bench_next_word(const char *at, char *word, size_t room);
/** Shares separated by commas, ascending, none twice: "0.5%,1%,0.05". */
lode_status_t lode_budgets_parse(const char *text, double budgets[LODE_BUDGETS_MAX], uint32_t *count);

#endif
