/* SPDX-License-Identifier: Apache-2.0 */
/* What `lodemark ask` says: answers' sources, and what they cost. */
#include <inttypes.h>
#include <string.h>

#include "launch/ask.h"
#include "launch/client.h"

/* A document with less than this share is no source worth a line; and no more than so many are. */
#define SOURCE_SHARE 0.1
enum { SOURCES_SHOWN = 3 };

/* --------------------------------------------------------------------- numbers */

/* Steps of the answer: the first token comes from the question's. */
static double steps_of(const lode_answer_t *answer)
{
    return answer->answer_tokens > 1 ? answer->answer_tokens - 1 : 1;
}

/* Bytes a token, of all records that the documents have: what a dense answer reads. */
static double dense_bytes(const lode_ask_t *ask, const lode_answer_t *answer)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(ask->reading.reader))->geometry;
    return (double)answer->visible_tokens * g->layers * g->kv_heads * (double)lode_reading_record_bytes(&ask->reading);
}

static double read_bytes(const lode_ask_t *ask, const lode_answer_t *answer)
{
    return (double)answer->records_wanted * (double)lode_reading_record_bytes(&ask->reading) / steps_of(answer);
}

/* Of the records that are not in this rank's own pages, those that its cache had. */
static double hit_rate(const lode_answer_t *answer)
{
    uint64_t away = answer->records_wanted - answer->records_local;
    return away ? (double)answer->records_hit / (double)away : 0;
}

static double token_ns(const lode_answer_t *answer)
{
    return answer->answer_tokens > 1 ? (double)answer->answer_ns / steps_of(answer) : 0;
}

/* --------------------------------------------------------------------- answers */

static void print_sources(const lode_ask_t *ask, const lode_answer_t *answer)
{
    const char *before = "  from ";
    for (uint32_t i = 0; i < answer->source_count && i < SOURCES_SHOWN; i++) {
        const lode_source_t *source = &answer->sources[i];
        char plain[512];
        if (source->share < SOURCE_SHARE && i)
            break;
        printf("%s%s (%.0f %%)", before,
               lode_text_plain(ask->reading.corpus.documents[source->document].name, plain, sizeof plain),
               source->share * 100);
        before = ", ";
    }
    if (answer->source_count)
        printf("\n");
}

static void print_dense(const lode_ask_t *ask, const lode_answer_t *answer, const lode_answer_t *dense)
{
    char token[LODE_TEXT_MAX], read[LODE_TEXT_MAX];
    double ratio = token_ns(answer) > 0 ? token_ns(dense) / token_ns(answer) : 0;
    printf("  densely: %s a token, %.1f times as long, reading %s; ", lode_text_time(token_ns(dense), token), ratio,
           lode_text_bytes(read_bytes(ask, dense), read));
    if (strcmp(answer->text, dense->text) == 0) {
        printf("the same answer\n");
        return;
    }
    printf("another answer: ");
    lode_text_print(stdout, dense->text, dense->bytes);
    printf("\n");
}

void lode_ask_report_answer(const lode_ask_t *ask, const lode_answer_t *answer, const lode_answer_t *dense)
{
    char question[LODE_TEXT_MAX], token[LODE_TEXT_MAX], fetched[LODE_TEXT_MAX], read[LODE_TEXT_MAX],
        whole[LODE_TEXT_MAX];
    printf("%s\n", lode_client_caught() ? " (interrupted)" : answer->stopped ? "" : " (cut off by --max-tokens)");
    print_sources(ask, answer);
    printf("  %u + %u tokens: question %s, then %s a token\n", answer->question_tokens, answer->answer_tokens,
           lode_text_time((double)answer->question_ns, question), lode_text_time(token_ns(answer), token));
    if (answer->document_count < ask->reading.corpus.count && ask->asking.focus)
        printf("  answered from the %u documents that matter most to the question\n", answer->document_count);
    printf("  a token read %s", lode_text_bytes(read_bytes(ask, answer), read));
    if (!ask->reading.dense && !ask->asking.focus)
        printf(" of %s that dense attention would read (computed)", lode_text_bytes(dense_bytes(ask, answer), whole));
    if (ask->reading.client || ask->reading.job.ranks > 1)
        printf("; %s came from other ranks, %.0f %% of theirs was cached",
               lode_text_bytes((double)answer->bytes_fetched / steps_of(answer), fetched), hit_rate(answer) * 100);
    printf("\n");
    if (dense)
        print_dense(ask, answer, dense);
    printf("\n");
}

static json_t *sources_json(const lode_ask_t *ask, const lode_answer_t *answer)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < answer->source_count; i++) {
        char plain[4096];
        const char *name = ask->reading.corpus.documents[answer->sources[i].document].name;
        json_array_append_new(list, json_pack("{s:s s:f}", "document", lode_text_plain(name, plain, sizeof plain),
                                              "share", answer->sources[i].share));
    }
    return list;
}

static json_t *dense_json(const lode_ask_t *ask, const lode_answer_t *dense)
{
    return json_pack("{s:s s:f s:f s:f}", "answer", dense->text, "question_ms", (double)dense->question_ns * 1e-6,
                     "ms_per_token", token_ns(dense) * 1e-6, "bytes_read_per_token", read_bytes(ask, dense));
}

json_t *lode_ask_answer_json(const lode_ask_t *ask, const char *question, const lode_answer_t *answer,
                             const lode_answer_t *dense)
{
    json_t *object = json_pack(
        "{s:s s:s s:b s:i s:i s:i s:I s:f s:f s:f s:f s:f s:f s:f s:o}", "question", question, "answer", answer->text,
        "stopped", (int)answer->stopped, "question_tokens", (int)answer->question_tokens, "answer_tokens",
        (int)answer->answer_tokens, "documents", (int)answer->document_count, "visible_tokens",
        (json_int_t)answer->visible_tokens, "question_ms", (double)answer->question_ns * 1e-6, "ms_per_token",
        token_ns(answer) * 1e-6, "sources_ms", (double)answer->sources_ns * 1e-6, "bytes_fetched_per_token",
        (double)answer->bytes_fetched / steps_of(answer), "bytes_read_per_token", read_bytes(ask, answer),
        "dense_bytes_per_token", dense_bytes(ask, answer), "hit_rate", hit_rate(answer), "sources",
        sources_json(ask, answer));
    if (object && dense)
        json_object_set_new(object, "dense", dense_json(ask, dense));
    return object;
}

lode_status_t lode_ask_write_json(lode_ask_t *ask)
{
    if (!ask->reading.json)
        return LODE_OK;
    if (!ask->answers)
        ask->answers = json_array();
    json_t *object = lode_reading_json(&ask->reading);
    if (object)
        json_object_set(object, "questions", ask->answers);
    return lode_client_json(ask->reading.json, object);
}
