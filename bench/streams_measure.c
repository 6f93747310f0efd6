/* SPDX-License-Identifier: Apache-2.0 */
/* What a talk comes to: from its steps alone, so that it can be worked out by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/streams.h"

const lode_measure_t lode_streams_measures[LODE_STREAMS_MEASURES] = {
    [LODE_STREAMS_SCORE] = {"score", "score", 1},
    [LODE_STREAMS_FIRST_STEPS] = {"first_word_steps", "first word, steps", 1},
    [LODE_STREAMS_FIRST_MS] = {"first_word_ms", "first word, ms", 1},
    [LODE_STREAMS_DELAY] = {"delay_s", "total delay, s", 3},
    [LODE_STREAMS_STEPS] = {"steps", "steps", 1},
    [LODE_STREAMS_MS] = {"ms", "ms", 1},
    [LODE_STREAMS_THOUGHTS] = {"thoughts", "thoughts", 1},
    [LODE_STREAMS_WORDS] = {"words", "words", 1},
    [LODE_STREAMS_STEP_MS] = {"ms_per_step", "ms a step", 2},
    [LODE_STREAMS_CHOSEN] = {"bytes_per_step", "bytes a step", 0},
    [LODE_STREAMS_FETCHED] = {"fetched_bytes_per_step", "of these fetched", 0},
    [LODE_STREAMS_PROBES] = {"probes", "probes", 1},
    [LODE_STREAMS_YES] = {"yes", "yes", 1},
};

/* -------------------------------------------------------------------- means */

static lode_mean_t of_sums(double sum, double squares, uint64_t count)
{
    double n = (double)count;
    lode_mean_t mean = {NAN, NAN, count};
    if (count)
        mean.mean = sum / n;
    if (count > 1)
        mean.error = sqrt(fmax(squares - sum * sum / n, 0) / (n - 1) / n);
    return mean;
}

/* Of f(a[i], b[i]) where that is a number. */
static lode_mean_t mean_of(double (*f)(double, double), const double *a, const double *b, uint64_t n)
{
    double sum = 0, squares = 0;
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i++) {
        double x = f(a[i], b[i]);
        if (!isfinite(x))
            continue;
        sum += x;
        squares += x * x;
        count++;
    }
    return of_sums(sum, squares, count);
}

static double first_of(double a, double b)
{
    (void)b;
    return a;
}
static double difference(double a, double b)
{
    return a - b;
}
static double log_ratio(double a, double b)
{
    return a > 0 && b > 0 ? log(a / b) : NAN;
}

lode_mean_t lode_mean(const double *values, uint64_t n)
{
    return mean_of(first_of, values, values, n);
}

lode_mean_t lode_mean_difference(const double *a, const double *b, uint64_t n)
{
    return mean_of(difference, a, b, n);
}

lode_mean_t lode_mean_ratio(const double *a, const double *b, uint64_t n)
{
    lode_mean_t mean = mean_of(log_ratio, a, b, n);
    mean.mean = exp(mean.mean);
    mean.error *= mean.mean;
    return mean;
}

/* ------------------------------------------------------------------- speech */

double lode_speech_delay(const lode_speech_t *speech, const double *said_s, uint32_t count)
{
    double delay = 0, end = 0;
    for (uint32_t first = 0; first < count; first += speech->chunk) {
        uint32_t tokens = count - first < speech->chunk ? count - first : speech->chunk;
        double begin = fmax(end, said_s[first + tokens - 1] + speech->synthesis_s);
        delay += begin - end;
        end = begin + tokens / speech->rate;
    }
    return count ? delay : NAN;
}

/* -------------------------------------------------------------------- track */

lode_status_t lode_track_add(lode_track_t *track, const lode_talk_step_t *step)
{
    if (track->count == track->room) {
        uint32_t room = track->room ? 2 * track->room : 256;
        lode_talk_step_t *grown = realloc(track->steps, room * sizeof *grown);
        if (!grown)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u steps of a talk", room);
        track->steps = grown;
        track->room = room;
    }
    track->steps[track->count++] = *step;
    return LODE_OK;
}

void lode_track_free(lode_track_t *track)
{
    free(track->steps);
    *track = (lode_track_t){0};
}

static bool works(const lode_talk_step_t *step)
{
    uint32_t tokens = 0;
    for (int i = 0; i < LODE_TALK_STREAMS; i++)
        tokens += step->tokens[i];
    return tokens > 0;
}

/* Of the steps between input, one is like another; input makes some longer by what it says. */
static bool is_plain(const lode_talk_step_t *step)
{
    return works(step) && !step->tokens[LODE_TALK_INPUT];
}

static double median_ms(const lode_track_t *track, double *room)
{
    size_t n = 0;
    for (uint32_t i = 0; i < track->count; i++)
        if (is_plain(&track->steps[i]))
            room[n++] = (double)track->steps[i].step_ns / 1e6;
    return lode_median(room, n);
}

/* When each step ended, and each word was said: (count) and (words), in ms. */
static uint32_t set_times(const lode_track_t *track, double step_ms, double *ends, double *said)
{
    double median = median_ms(track, ends), now = 0;
    uint32_t words = 0;
    for (uint32_t i = 0; i < track->count; i++) {
        const lode_talk_step_t *step = &track->steps[i];
        now += step_ms > 0 ? step_ms : works(step) ? (double)step->step_ns / 1e6 : median;
        ends[i] = now;
        for (uint32_t w = 0; w < step->said[LODE_TALK_WRITER]; w++)
            said[words++] = now / 1e3;
    }
    return words;
}

static void measure_words(const lode_track_t *track, const lode_speech_t *speech, const double *ends,
                          const double *said, uint32_t words, double *values)
{
    uint32_t first = 0;
    while (first < track->count && !track->steps[first].said[LODE_TALK_WRITER])
        first++;
    values[LODE_STREAMS_FIRST_STEPS] = words ? first + 1 : NAN;
    values[LODE_STREAMS_FIRST_MS] = words ? ends[first] : NAN;
    values[LODE_STREAMS_DELAY] = lode_speech_delay(speech, said, words);
    values[LODE_STREAMS_WORDS] = words;
    values[LODE_STREAMS_STEPS] = track->count;
    values[LODE_STREAMS_MS] = track->count ? ends[track->count - 1] : 0;
}

static void measure_steps(const lode_track_t *track, double record_bytes, double *values)
{
    uint64_t plain = 0, ns = 0, wanted = 0, fetched = 0, thoughts = 0, probes = 0, yes = 0;
    for (uint32_t i = 0; i < track->count; i++) {
        const lode_talk_step_t *step = &track->steps[i];
        thoughts += step->said[LODE_TALK_THINKER];
        probes += step->probed;
        yes += step->probed && step->yes > step->no;
        if (!is_plain(step))
            continue;
        plain++;
        ns += step->step_ns;
        wanted += step->records_wanted;
        fetched += step->bytes_fetched;
    }
    double steps = plain ? (double)plain : NAN;
    values[LODE_STREAMS_THOUGHTS] = (double)thoughts;
    values[LODE_STREAMS_PROBES] = (double)probes;
    values[LODE_STREAMS_YES] = (double)yes;
    values[LODE_STREAMS_STEP_MS] = (double)ns / 1e6 / steps;
    values[LODE_STREAMS_CHOSEN] = (double)wanted * record_bytes / steps;
    values[LODE_STREAMS_FETCHED] = (double)fetched / steps;
}

lode_status_t lode_track_measure(const lode_track_t *track, double step_ms, const lode_speech_t *speech,
                                 double record_bytes, double values[LODE_STREAMS_MEASURES])
{
    uint64_t words = 0;
    for (uint32_t i = 0; i < track->count; i++)
        words += track->steps[i].said[LODE_TALK_WRITER];
    double *ends = malloc((track->count + words + 1) * sizeof *ends);
    if (!ends)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the times of %u steps", track->count);
    double *said = ends + track->count;
    set_times(track, step_ms, ends, said);
    measure_words(track, speech, ends, said, (uint32_t)words, values);
    measure_steps(track, record_bytes, values);
    free(ends);
    return LODE_OK;
}
