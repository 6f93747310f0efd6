/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file base.h
 * @brief What every room but kernels/ leans on: errors with a sentence, log lines, options, clock.
 */
#ifndef LODE_BASE_H
#define LODE_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "lodemark.h"

/* ------------------------------------------------------------------- errors */

/** Record the sentence of lode_error_message() for this thread and return @p status. The first that decides an error
 * calls it. */
lode_status_t lode_fail(lode_status_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** Put a prefix ("block \"doc\": ") before the thread's sentence, and return @p status. */
lode_status_t lode_fail_within(lode_status_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Return from the function with the status of @p call unless it is LODE_OK. */
#define LODE_TRY(call)                      \
    do {                                    \
        lode_status_t try_status_ = (call); \
        if (try_status_ != LODE_OK)         \
            return try_status_;             \
    } while (0)

/* ------------------------------------------------------------------ logging */

typedef enum lode_log_level {
    LODE_LOG_ERROR,
    LODE_LOG_WARN,
    LODE_LOG_INFO,
    LODE_LOG_DEBUG,
    LODE_LOG_TRACE,
    LODE_LOG_OFF = -1
} lode_log_level_t;

extern atomic_int lode_log_threshold; /**< a lode_log_level_t; other threads may write lines while it is set */
/** "off", "error", "warn", "info", "debug", "trace". */
lode_status_t lode_log_set(const char *level);
/** Rank shown in each line; -1 before join. */
void lode_log_rank(int rank);
void lode_log_write(lode_log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define lode_log(level, ...)                                                                 \
    do {                                                                                     \
        if ((int)(level) <= atomic_load_explicit(&lode_log_threshold, memory_order_relaxed)) \
            lode_log_write((level), __VA_ARGS__);                                            \
    } while (0)
#define lode_error(...) lode_log(LODE_LOG_ERROR, __VA_ARGS__)
#define lode_warn(...) lode_log(LODE_LOG_WARN, __VA_ARGS__)
#define lode_info(...) lode_log(LODE_LOG_INFO, __VA_ARGS__)
#define lode_debug(...) lode_log(LODE_LOG_DEBUG, __VA_ARGS__)

/* ----------------------------------------------------------------- pointers */

/** Look for CUDA's driver in this process: now and then, not in a step. */
void lode_find_cuda(void);
/** LODE_ERR_INVALID if x is in device memory, as far as a driver that was found says so. x may be NULL. */
lode_status_t lode_check_host(const char *what, const void *x);
/** The same for all tensors of a stream. */
lode_status_t lode_check_host_stream(const lode_stream_t *stream);

/* ------------------------------------------------------------------ options */

typedef enum lode_option_type {
    LODE_OPTION_TEXT,
    LODE_OPTION_CHOICE, /**< one of `choices`, separated by '|' */
    LODE_OPTION_COUNT,  /**< whole number, min … max */
    LODE_OPTION_BYTES,  /**< 4096, 64KiB, 1.5GiB …; K, KB and KiB all mean 1024 */
    LODE_OPTION_SHARE,  /**< 3.125% or 0.03125, in (0, 1] */
    LODE_OPTION_FLAG    /**< no value on the command line */
} lode_option_type_t;

/** A row of an option table. Environment, command line, --help and `lodemark info --config` all come from it. */
typedef struct lode_option {
    const char *name;  /**< "landing" → --landing, LODEMARK_LANDING; '-' becomes '_' in the variable */
    const char *value; /**< default as text, NULL: none */
    lode_option_type_t type;
    const char *choices; /**< CHOICE */
    uint64_t min, max;   /**< COUNT, BYTES; max 0: no limit */
    const char *doc;
} lode_option_t;

/** Values of a table's options, parallel to it. */
typedef struct lode_options {
    const lode_option_t *table; /**< ends with a NULL name */
    char **values;              /**< text, checked against the row; NULL: not given and no default */
} lode_options_t;

lode_status_t lode_options_create(const lode_option_t *table, lode_options_t *options);
void lode_options_destroy(lode_options_t *options);
lode_status_t lode_options_set(lode_options_t *options, const char *name, const char *value);
const char *lode_options_get(const lode_options_t *options, const char *name);
/** Typed reads; the value was checked when it was set, so they cannot fail on options of that type. */
uint64_t lode_options_count(const lode_options_t *options, const char *name);
/** The same for an option without a default: @p otherwise, unless it was set. */
uint64_t lode_options_count_or(const lode_options_t *options, const char *name, uint64_t otherwise);
double lode_options_share(const lode_options_t *options, const char *name);
bool lode_options_flag(const lode_options_t *options, const char *name);
/** --name value, --name=value and flags; stops at "--" or the first word without "--". @p rest is the index after the
 * last taken. */
lode_status_t lode_options_parse(lode_options_t *options, int argc, char **argv, int *rest);
/** Room for the name of any option's variable. */
#define LODE_VARIABLE_MAX 96
/** "hot-cache" to "LODEMARK_HOT_CACHE". */
void lode_option_variable(const char *name, char variable[LODE_VARIABLE_MAX]);
/** Overlay LODEMARK_<NAME> variables; an empty one counts as not set. */
lode_status_t lode_options_environment(lode_options_t *options);
/** One line an option with its default, for --help. */
void lode_options_help(const lode_option_t *table, FILE *out);
/** The nearest name of the table, or NULL if none is near. */
const char *lode_options_nearest(const lode_option_t *table, const char *name);

lode_status_t lode_parse_bytes(const char *text, uint64_t *bytes);
lode_status_t lode_parse_share(const char *text, double *share);
lode_status_t lode_parse_count(const char *text, uint64_t *count);

/** The library's own options (the rows behind lode_config_h). */
extern const lode_option_t lode_library_options[];

/* -------------------------------------------------------------------- clock */

/** Monotonic nanoseconds. */
static inline uint64_t lode_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/** A well-mixed 64-bit hash of two words; the one used for placement, digests and seeds. */
static inline uint64_t lode_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a ^ (b * 0x9e3779b97f4a7c15u);
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}

/** Hash of a text, for names. */
static inline uint64_t lode_hash_text(const char *text)
{
    uint64_t h = 0x243f6a8885a308d3u;
    for (; *text; text++)
        h = lode_mix(h, (unsigned char)*text);
    return h;
}

#endif
