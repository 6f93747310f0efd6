/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file streams.h
 * @brief `lodemark bench streams`: what it is worth that a model hears, thinks and speaks at once (docs/streams.md).
 *
 * A sample of Text2JSON is asked in two halves. A talk about it is noted down step by step, and everything that is
 * said about it is worked out from the notes.
 */
#ifndef LODE_BENCH_STREAMS_H
#define LODE_BENCH_STREAMS_H

#include "bench/options.h"
#include "bench/progress.h"
#include "bench/readings.h"
#include "bench/text2json.h"
#include "reader/talk.h"

enum { LODE_ARRIVALS_MAX = 16, LODE_TALK_MODES = 3 };

/* ----------------------------------------------------------------- requests */

/** When the second half of a request comes. */
typedef enum lode_arrival_kind {
    LODE_ARRIVAL_NEVER, /**< later than the first: the whole request is heard at the start, as one text */
    LODE_ARRIVAL_HALF,  /**< not at all: the first half is all that is ever heard */
    LODE_ARRIVAL_AFTER  /**< after so many steps; 0: at the start, but as a text of its own */
} lode_arrival_kind_t;

typedef struct lode_arrival {
    char name[16];
    lode_arrival_kind_t kind;
    uint32_t steps;
} lode_arrival_t;

/** "never,half,0,16", none twice. */
lode_status_t lode_arrivals_parse(const char *text, lode_arrival_t arrivals[LODE_ARRIVALS_MAX], uint32_t *count);
/** "at-once,think-first,no-thought", none twice. */
lode_status_t lode_talk_modes_parse(const char *text, lode_talk_mode_t modes[LODE_TALK_MODES], uint32_t *count);
const char *lode_talk_mode_name(lode_talk_mode_t mode);

/**
 * Where a request's second half begins: behind its first sentence, with the space before it, so that both halves
 * together are the request. A sentence ends with . ! or ? behind a word of four letters or more, and before a space.
 * @return LODE_ERR_FORMAT: one sentence
 */
lode_status_t lode_request_halves(const char *request, size_t bytes, size_t *second);

/* ----------------------------------------------------------------- measures */

/** How words become speech. */
typedef struct lode_speech {
    double rate;        /**< tokens spoken in a second */
    double synthesis_s; /**< from a chunk's last token until it can be played */
    uint32_t chunk;     /**< tokens that are spoken together; the last ones may be fewer */
} lode_speech_t;

/**
 * Total delay (arXiv 2512.10931): for how long somebody who listens hears nothing, before the first word and between
 * words. Chunk i, ready at g_i + s, is played from b_i = max(e_{i−1}, g_i + s) to e_i = b_i + n_i / rate, and is
 * b_i − e_{i−1} late; e_0 = 0.
 * @param[in] said_s  (count) when each token was said, ascending
 * @return seconds; NAN for no tokens
 */
double lode_speech_delay(const lode_speech_t *speech, const double *said_s, uint32_t count);

/** Mean of those that are numbers, and its standard error; NAN where there are too few. */
typedef struct lode_mean {
    double mean, error;
    uint64_t count;
} lode_mean_t;
lode_mean_t lode_mean(const double *values, uint64_t n);
/** Geometric mean of a[i] / b[i] over pairs of positive numbers; the error is that of its logarithm, times it. */
lode_mean_t lode_mean_ratio(const double *a, const double *b, uint64_t n);
/** Mean of a[i] − b[i] over pairs of numbers. */
lode_mean_t lode_mean_difference(const double *a, const double *b, uint64_t n);

/** What a talk comes to. */
typedef enum lode_streams_measure {
    LODE_STREAMS_SCORE,       /**< of the words, 0 to 100 */
    LODE_STREAMS_FIRST_STEPS, /**< until the first word, that one's step included */
    LODE_STREAMS_FIRST_MS,
    LODE_STREAMS_DELAY, /**< seconds */
    LODE_STREAMS_STEPS, /**< until the end; so all that follow are of the whole talk */
    LODE_STREAMS_MS,
    LODE_STREAMS_THOUGHTS, /**< tokens */
    LODE_STREAMS_WORDS,    /**< tokens */
    LODE_STREAMS_STEP_MS,  /**< of a step that takes in no input, as measured */
    LODE_STREAMS_CHOSEN,   /**< bytes of records that such a step attends to, wherever they lie, each once */
    LODE_STREAMS_FETCHED,  /**< of these, what came from other ranks */
    LODE_STREAMS_PROBES,
    LODE_STREAMS_YES, /**< probes that said yes */
    LODE_STREAMS_MEASURES
} lode_streams_measure_t;

typedef struct lode_measure {
    const char *key;   /**< in JSON */
    const char *label; /**< of a column */
    int digits;        /**< behind the point */
} lode_measure_t;
extern const lode_measure_t lode_streams_measures[LODE_STREAMS_MEASURES];

/** A talk, step by step. Zeroed is empty. */
typedef struct lode_track {
    lode_talk_step_t *steps; /**< (count) */
    uint32_t count, room;
} lode_track_t;
lode_status_t lode_track_add(lode_track_t *track, const lode_talk_step_t *step);
/**
 * All measures but the score.
 * @param[in] step_ms       what every step takes; 0: as measured, and a step in which nothing was done but listening as
 *                          long as the median of steps without input
 * @param[in] record_bytes  of a token's keys and values of one head
 */
lode_status_t lode_track_measure(const lode_track_t *track, double step_ms, const lode_speech_t *speech,
                                 double record_bytes, double values[LODE_STREAMS_MEASURES]);
void lode_track_free(lode_track_t *track);

/* -------------------------------------------------------------------- bench */

/** One way to talk, over all samples. */
typedef struct lode_streams_row {
    lode_talk_mode_t mode;
    const lode_arrival_t *arrival;
    const lode_reading_t *reading;
    double budget;                         /**< share */
    double *values[LODE_STREAMS_MEASURES]; /**< (samples) each; NAN: there is none */
    uint64_t silent;                       /**< talks without a word */
    uint64_t cut;                          /**< talks that said as much as they may */
    uint64_t left_out;                     /**< not scored: their gold names an item twice */
    uint64_t matched, gold;                /**< items */
} lode_streams_row_t;

typedef struct lode_streams_bench {
    lode_options_t options;
    lode_config_h config;
    lode_job_t job;
    const char *model;
    const char *samples_path; /**< NULL: made */
    lode_task_line_t *lines;
    uint64_t samples;
    lode_stores_t stores;
    lode_prompts_t prompts;
    lode_reading_t readings[LODE_READINGS_MAX];
    uint32_t reading_count;
    double budgets[LODE_BUDGETS_MAX];
    uint32_t budget_count;
    lode_arrival_t arrivals[LODE_ARRIVALS_MAX];
    uint32_t arrival_count;
    lode_talk_mode_t modes[LODE_TALK_MODES];
    uint32_t mode_count;
    lode_streams_row_t *rows; /**< (row_count) policies, of each arrivals, of each modes */
    uint32_t row_count;
    lode_format_t format;
    lode_speech_t speech;
    double step_ms;
    uint32_t most_thoughts, most_words, most_documents, probe_every, sinks, window;
    bool hear_at_once;
    uint64_t documents; /**< of all samples */
    FILE *said;
} lode_streams_bench_t;

/** All talks about a sample, whose documents are listed. */
lode_status_t lode_streams_talks(lode_streams_bench_t *bench, uint64_t sample, const lode_problem_t *problem,
                                 lode_progress_t *progress);

/** Rows at once and thinking first that are alike in all else, or NULL. */
const lode_streams_row_t *lode_streams_partner(const lode_streams_bench_t *bench, const lode_streams_row_t *row);
void lode_streams_print(const lode_streams_bench_t *bench);
json_t *lode_streams_json(const lode_streams_bench_t *bench);
/** The report as a page of one file. */
lode_status_t lode_streams_page(const char *path, const lode_streams_bench_t *bench, const json_t *report);

#endif
