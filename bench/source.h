/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file source.h
 * @brief Where a benchmark's keys, values and queries come from: the generator or a capture.
 */
#ifndef LODE_BENCH_SOURCE_H
#define LODE_BENCH_SOURCE_H

#include "bench/capture.h"
#include "bench/generate.h"

typedef struct lode_source {
    lode_geometry_t geometry;
    uint32_t blocks;
    uint64_t *starts; /**< (blocks + 1) view position of each document's token 0; the last: all tokens */
    bool captured;
    lode_capture_t capture;
    lode_generator_h generator;
} lode_source_t;

/** Documents of about equal length, made by the generator; params' blocks and starts are set here. */
lode_status_t lode_source_generate(const lode_generator_params_t *params, uint64_t tokens, uint32_t blocks,
                                   lode_source_t *source);
/** One document: the capture at @p path, checked to be finite. */
lode_status_t lode_source_capture(const char *path, lode_source_t *source);
void lode_source_close(lode_source_t *source);

/** What an option stands for that was not set, and has no default of its own. */
typedef struct lode_source_defaults {
    uint64_t tokens;
    uint32_t query_heads, kv_heads;
} lode_source_defaults_t;
/** One document by --capture, or by --tokens, --layers, --heads, --kv-heads, --head-dim, --theta, --generator, --sharp
 * and --seed; a table of options may lack --layers. */
lode_status_t lode_source_open(const lode_options_t *options, const lode_source_defaults_t *defaults,
                               lode_source_t *source);
/** That none of the options is set which a capture brings along; a table may lack some. */
lode_status_t lode_source_check_capture(const lode_options_t *options);

static inline uint64_t lode_source_total(const lode_source_t *source)
{
    return source->starts[source->blocks];
}
/** k, v: (n, Hkv, D) of a document, or, when generated, of a block that a stream writes (number blocks and up). */
void lode_source_tokens(const lode_source_t *source, uint32_t block, uint32_t layer, uint64_t first, uint64_t n,
                        float *k, float *v);
/** q: (Hq, D). A capture's queries come round again. */
void lode_source_query(const lode_source_t *source, uint32_t layer, uint64_t number, float *q);
/** View position of a query: a capture knows it, generated ones stand at the end. */
int64_t lode_source_position(const lode_source_t *source, uint64_t number);

#endif
