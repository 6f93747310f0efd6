/* SPDX-License-Identifier: Apache-2.0 */
/* Documents in: loaded by all ranks, read in by each its share, and what that came to. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/progress.h"
#include "kernels/kernels.h"
#include "launch/client.h"
#include "launch/reading.h"

/* Documents that are read in between two looks at whether to go on. */
enum { INGEST_DOCUMENTS = 64 };

/* ------------------------------------------------------------------------ load */

static void warn_first(const char *sentence)
{
    char plain[1024];
    if (lode_job_rank_hint() == 0)
        fprintf(stderr, "lodemark: left out: %s\n", lode_text_plain(sentence, plain, sizeof plain));
}

lode_status_t lode_reading_load(lode_reading_t *reading)
{
    lode_corpus_t *corpus = &reading->corpus;
    corpus->warn = warn_first;
    for (int i = 0; i < reading->paths.count; i++)
        LODE_TRY(lode_corpus_add(corpus, reading->paths.at[i], reading->split));
    reading->ranks_of = calloc(corpus->count + 1, sizeof *reading->ranks_of);
    if (!reading->ranks_of)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u documents", corpus->count);
    LODE_TRY(lode_corpus_share(corpus->documents, corpus->count, reading->job.ranks, reading->ranks_of));
    return lode_reader_open(&reading->params, &reading->reader);
}

/* ---------------------------------------------------------------------- ingest */

typedef struct bar {
    lode_progress_t progress;
    uint64_t tokens;            /* done */
    uint64_t bytes, done_bytes; /* whose total is known before */
    char what[40];
} bar_t;

static void show(void *self, uint64_t tokens)
{
    bar_t *bar = self;
    double seconds = (double)(lode_now_ns() - bar->progress.begin_ns) * 1e-9;
    snprintf(bar->what, sizeof bar->what, "reading %.0f tok/s",
             (double)(bar->tokens + tokens) / (seconds > 0 ? seconds : 1));
    lode_progress_at(&bar->progress, bar->done_bytes);
}

static lode_status_t read_batch(lode_reading_t *reading, const lode_document_t *documents, uint32_t count, bar_t *bar)
{
    lode_ingest_t results[INGEST_DOCUMENTS];
    lode_reading_ingest_t *in = &reading->ingest;
    LODE_TRY(lode_reader_ingest(reading->reader, documents, count, show, bar, results));
    for (uint32_t i = 0; i < count; i++) {
        in->tokens += results[i].tokens;
        in->pieces += results[i].pieces;
        in->present += results[i].present;
        in->split_documents += results[i].pieces > 1;
        if (results[i].present < results[i].pieces)
            in->fresh_tokens += results[i].tokens * (results[i].pieces - results[i].present) / results[i].pieces;
        bar->tokens += results[i].tokens;
        bar->done_bytes += documents[i].bytes;
    }
    show(bar, 0);
    return LODE_OK;
}

static lode_status_t read_share(lode_reading_t *reading)
{
    const lode_corpus_t *corpus = &reading->corpus;
    lode_document_t batch[INGEST_DOCUMENTS];
    bar_t bar = {0};
    uint32_t count = 0;
    lode_status_t status = LODE_OK;
    for (uint32_t i = 0; i < corpus->count; i++)
        bar.bytes += reading->ranks_of[i] == reading->job.rank ? corpus->documents[i].bytes : 0;
    lode_progress_begin(&bar.progress, bar.what, bar.bytes);
    for (uint32_t i = 0; i < corpus->count && status == LODE_OK && !lode_client_caught(); i++) {
        if (reading->ranks_of[i] == reading->job.rank)
            batch[count++] = corpus->documents[i];
        if (count == INGEST_DOCUMENTS || (count && i + 1 == corpus->count)) {
            status = read_batch(reading, batch, count, &bar);
            count = 0;
        }
    }
    lode_progress_end(&bar.progress);
    return status;
}

lode_status_t lode_reading_ingest(lode_reading_t *reading)
{
    uint64_t begin = lode_now_ns();
    lode_reading_ingest_t *in = &reading->ingest;
    lode_status_t status = read_share(reading);
    uint64_t sums[] = {in->tokens, in->fresh_tokens, in->pieces, in->present, in->split_documents};
    LODE_TRY(lode_reading_meet(reading, status, sums, 5));
    *in = (lode_reading_ingest_t){sums[0], sums[1], sums[2], sums[3], sums[4]};
    in->seconds = (double)(lode_now_ns() - begin) * 1e-9;
    if (reading->job.rank || lode_client_caught() || !reading->corpus.count)
        return LODE_OK;
    return lode_reader_list(reading->reader, reading->corpus.documents, reading->corpus.count);
}

/* ---------------------------------------------------------------------- report */

size_t lode_reading_record_bytes(const lode_reading_t *reading)
{
    return lode_record_bytes(reading->params.format,
                             lode_model_info(lode_reader_model(reading->reader))->geometry.head_dim);
}

static void report_documents(const lode_reading_t *reading, FILE *out)
{
    const lode_reading_ingest_t *in = &reading->ingest;
    fprintf(out, "%u documents, %" PRIu64 " tokens, in %" PRIu64 " blocks", reading->corpus.count, in->tokens,
            in->pieces);
    if (reading->corpus.skipped)
        fprintf(out, "; %u files without text left out", reading->corpus.skipped);
    if (in->split_documents)
        fprintf(out, "; %" PRIu64 " longer than %u tokens and cut", in->split_documents,
                lode_reader_manner(reading->reader)->range);
    fprintf(out, "\n");
    if (in->present == in->pieces)
        fprintf(out, "all of them were there already\n");
    else
        fprintf(out, "%" PRIu64 " tokens read in, in %.2f s: %.0f tokens/s%s\n", in->fresh_tokens, in->seconds,
                (double)in->fresh_tokens / in->seconds, in->present ? "; the others were there already" : "");
}

void lode_reading_report_ingest(const lode_reading_t *reading, FILE *out)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(reading->reader));
    fprintf(out, "%s, %.1f million parameters, %s\n", info->family, (double)info->parameters * 1e-6, info->products);
    if (reading->corpus.count)
        report_documents(reading, out);
}

static json_t *ingest_json(const lode_reading_t *reading)
{
    const lode_reading_ingest_t *in = &reading->ingest;
    return json_pack("{s:i s:I s:I s:I s:I s:I s:i s:f s:f}", "documents", (int)reading->corpus.count, "tokens",
                     (json_int_t)in->tokens, "blocks", (json_int_t)in->pieces, "present", (json_int_t)in->present,
                     "new_tokens", (json_int_t)in->fresh_tokens, "cut_documents", (json_int_t)in->split_documents,
                     "left_out", (int)reading->corpus.skipped, "seconds", in->seconds, "tokens_per_second",
                     (double)in->fresh_tokens / in->seconds);
}

static json_t *model_json(const lode_reading_t *reading)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(reading->reader));
    return json_pack("{s:s s:I s:s s:s}", "family", info->family, "parameters", (json_int_t)info->parameters,
                     "products", info->products, "positions",
                     lode_reader_manner(reading->reader)->shared_positions ? "shared" : "cumulative");
}

json_t *lode_reading_json(const lode_reading_t *reading)
{
    char landmark[LODE_TEXT_MAX];
    return json_pack("{s:o s:s s:i s:s s:f s:s s:s s:o}", "model", model_json(reading), "cluster",
                     reading->client ? "service" : "job", "ranks", (int)reading->job.ranks, "policy",
                     reading->dense ? "dense" : "landmark", "budget", reading->dense ? 1 : reading->policy.budget_share,
                     "landmarks", lode_text_landmark(&reading->params.landmark, landmark), "format",
                     lode_format_name(reading->params.format), "ingest", ingest_json(reading));
}
