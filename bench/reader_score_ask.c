/* SPDX-License-Identifier: Apache-2.0 */
/* One sample: its documents to blocks, its questions under every policy, and what the answers are worth. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_score.h"
#include "kernels/kernels.h"

/** A sample's questions, and what dense attention said to each. */
typedef struct asking {
    lode_score_bench_t *b;
    uint64_t sample;
    const lode_problem_t *problem;
    lode_question_t *questions; /**< (count) */
    uint32_t count;
    lode_answer_t *dense; /**< (count) */
    bool dense_asked;
} asking_t;

/* ------------------------------------------------------------------- asking */

/* What a policy keeps, and ShadowKV's keys, are of the sample's documents, whatever is asked. */
static lode_status_t begin_row(lode_score_bench_t *b, lode_reading_row_t *row)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(b->stores.readers[0]))->geometry;
    const lode_landmark_spec_t *landmark = &row->reading->landmark;
    if (row->reading->kind == LODE_READING_LANDMARK)
        row->landmarks =
            g->kv_heads * (double)lode_landmark_tile_bytes(landmark, g->head_dim) / LODE_TILE / landmark->chunk;
    if (row->reading->kind != LODE_READING_SHADOW)
        return LODE_OK;
    LODE_TRY(lode_plain_shadow(&b->plain, row->reading->rank, b->outliers, row->budget));
    lode_plain_shadow_bytes(&b->plain, &row->landmarks, &row->residents);
    row->rank = b->plain.shadow_params.rank;
    row->outliers = b->plain.shadow_params.outliers;
    return LODE_OK;
}

static lode_status_t ask_one(lode_score_bench_t *b, lode_reading_row_t *row, const lode_question_t *question,
                             lode_answer_t *answer)
{
    enum { BF16 = 2 };
    uint32_t dim = lode_model_info(lode_reader_model(b->stores.readers[0]))->geometry.head_dim;
    lode_asking_t asking = {.policy = lode_reading_policy(row->reading, row->budget, b->sinks, b->window),
                            .sampling = {.top_p = 1},
                            .most_tokens = b->most_tokens};
    if (row->reading->kind == LODE_READING_SHADOW) {
        LODE_TRY(lode_plain_ask(&b->plain, question->text, question->bytes, b->most_tokens, answer));
        row->moved += (double)b->plain.fetched * dim * BF16;
        return LODE_OK;
    }
    LODE_TRY(lode_reader_ask(b->stores.readers[row->reading->store], question->text, question->bytes, &asking, answer));
    row->moved += (double)answer->records_wanted * (double)lode_record_bytes(b->format, dim);
    row->fetched += answer->bytes_fetched;
    return LODE_OK;
}

static lode_status_t write_prediction(const asking_t *a, const lode_reading_row_t *row, const lode_question_t *question,
                                      const lode_answer_t *answer)
{
    if (!row->predictions)
        return LODE_OK;
    json_t *line = json_pack("{s:s%}", "prediction", answer->text, answer->bytes);
    if (line && question->value) {
        json_object_set_new(line, "sample", json_integer((json_int_t)a->sample + 1));
        json_object_set_new(line, "question", json_string(question->text));
        json_object_set_new(line, "answer", json_string(question->value));
    }
    bool wrong = !line || json_dumpf(line, row->predictions, JSON_COMPACT) != 0 ||
                 fputc('\n', row->predictions) == EOF || fflush(row->predictions) != 0;
    json_decref(line);
    return wrong ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", row->path, strerror(errno)) : LODE_OK;
}

/* ------------------------------------------------------------------ scoring */

static void count_answer(lode_reading_row_t *row, const lode_answer_t *answer, const lode_answer_t *dense)
{
    row->asked++;
    row->same += dense && answer->bytes == dense->bytes && memcmp(answer->text, dense->text, answer->bytes) == 0;
    row->answer_tokens += answer->answer_tokens;
    row->steps += answer->answer_tokens - 1;
    row->question_tokens += answer->question_tokens;
    row->stopped += answer->stopped;
    row->visible += answer->visible_tokens;
    row->answer_ns += answer->answer_ns;
    row->question_ns += answer->question_ns;
}

/* A look-up is right letter by letter, but for spaces around it. */
static void score_look_up(lode_reading_row_t *row, const char *value, const lode_answer_t *answer)
{
    static const char spaces[] = " \t\r\n";
    size_t begin = strspn(answer->text, spaces), end = answer->bytes;
    while (end > begin && strchr(spaces, answer->text[end - 1]))
        end--;
    row->gold++;
    row->matched += end - begin == strlen(value) && memcmp(answer->text + begin, value, end - begin) == 0;
}

static lode_status_t score_whole(lode_reading_row_t *row, const json_t *gold, const lode_answer_t *answer,
                                 double *points)
{
    lode_text2json_score_t score;
    LODE_TRY(lode_text2json_score(gold, answer->text, answer->bytes, &score));
    *points = score.left_out ? NAN : score.score;
    row->left_out += score.left_out;
    row->scored += !score.left_out;
    row->unread += score.unread;
    row->gold += score.gold;
    row->matched += score.matched;
    row->additions += score.additions;
    row->missing += score.missing;
    row->wrong += score.wrong;
    return LODE_OK;
}

static lode_status_t score_answer(asking_t *a, lode_reading_row_t *row, uint32_t i, const lode_answer_t *answer)
{
    const lode_question_t *question = &a->questions[i];
    count_answer(row, answer, a->dense_asked ? &a->dense[i] : NULL);
    if (question->value)
        score_look_up(row, question->value, answer);
    else
        LODE_TRY(score_whole(row, a->b->lines[a->sample].gold, answer, &row->scores[a->sample]));
    return write_prediction(a, row, question, answer);
}

/* All questions of the sample under one policy. Dense answers are kept for the others to be held against. */
static lode_status_t ask_row(asking_t *a, lode_reading_row_t *row)
{
    bool dense = row->reading->kind == LODE_READING_DENSE;
    uint64_t matched = row->matched;
    LODE_TRY(begin_row(a->b, row));
    for (uint32_t i = 0; i < a->count; i++) {
        lode_answer_t answer = {0};
        LODE_TRY(ask_one(a->b, row, &a->questions[i], &answer));
        lode_status_t status = score_answer(a, row, i, &answer);
        if (dense)
            a->dense[i] = answer;
        else
            lode_answer_free(&answer);
        LODE_TRY(status);
    }
    row->samples++;
    if (a->b->look_ups) {
        row->scored++;
        row->scores[a->sample] = (double)(row->matched - matched) / a->count;
    }
    a->dense_asked = a->dense_asked || dense;
    return LODE_OK;
}

/* Dense first, whatever the order of rows. */
static lode_status_t ask_rows(asking_t *a, lode_progress_t *progress)
{
    lode_score_bench_t *b = a->b;
    uint64_t done = a->sample * b->row_count;
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < b->row_count; i++) {
            lode_reading_row_t *row = &b->rows[i];
            if (pass == (row->reading->kind == LODE_READING_DENSE))
                continue;
            lode_status_t status = ask_row(a, row);
            if (status != LODE_OK)
                return lode_fail_within(status, "%s line %" PRIu64 ", policy %s: ", b->samples_path, a->sample + 1,
                                        row->reading->name);
            lode_progress_at(progress, ++done);
        }
    return LODE_OK;
}

static lode_status_t make_questions(asking_t *a)
{
    if (a->b->look_ups) {
        LODE_TRY(lode_questions_look_up(a->b->lines[a->sample].gold, &a->questions, &a->count));
    } else {
        a->questions = calloc(1, sizeof *a->questions);
        a->count = a->questions ? 1 : 0;
        if (a->questions)
            *a->questions = (lode_question_t){.text = a->problem->request, .bytes = a->problem->request_bytes};
    }
    a->dense = calloc(a->count + 1, sizeof *a->dense);
    return a->questions && a->dense ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for questions");
}

lode_status_t lode_score_ask(lode_score_bench_t *b, uint64_t sample, const lode_problem_t *problem,
                             lode_progress_t *progress)
{
    asking_t a = {.b = b, .sample = sample, .problem = problem};
    lode_status_t status = make_questions(&a);
    if (status == LODE_OK)
        status = lode_stores_list(&b->stores, problem);
    if (status == LODE_OK && b->wants_plain)
        status = lode_plain_read(&b->plain, problem->documents, problem->count, NULL, NULL);
    if (status == LODE_OK)
        status = ask_rows(&a, progress);
    b->documents += problem->count;
    for (uint32_t i = 0; a.dense && i < a.count; i++)
        lode_answer_free(&a.dense[i]);
    free(a.dense);
    lode_questions_free(a.questions, a.count);
    return status;
}
