/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "bench/source.h"

lode_status_t lode_source_generate(const lode_generator_params_t *params, uint64_t tokens, uint32_t blocks,
                                   lode_source_t *source)
{
    if (!blocks || tokens < blocks)
        return lode_fail(LODE_ERR_INVALID, "%llu tokens cannot be cut into %u blocks", (unsigned long long)tokens,
                         blocks);
    lode_source_t made = {.geometry = params->geometry, .blocks = blocks};
    made.starts = malloc((blocks + 1) * sizeof *made.starts);
    if (!made.starts)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u blocks", blocks);
    for (uint32_t b = 0; b <= blocks; b++)
        made.starts[b] = tokens / blocks * b + (b < tokens % blocks ? b : tokens % blocks);
    lode_generator_params_t full = *params;
    full.blocks = blocks;
    full.starts = made.starts;
    lode_status_t status = lode_generator_create(&full, &made.generator);
    if (status != LODE_OK) {
        free(made.starts);
        return status;
    }
    *source = made;
    return LODE_OK;
}

lode_status_t lode_source_capture(const char *path, lode_source_t *source)
{
    lode_source_t made = {.blocks = 1, .captured = true};
    LODE_TRY(lode_capture_open(path, &made.capture));
    lode_status_t status = lode_capture_check_finite(&made.capture);
    if (status != LODE_OK) {
        lode_capture_close(&made.capture);
        return lode_fail_within(status, "capture %s: ", path);
    }
    made.starts = calloc(2, sizeof *made.starts);
    if (!made.starts) {
        lode_capture_close(&made.capture);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a capture");
    }
    made.starts[1] = made.capture.tokens;
    made.geometry = (lode_geometry_t){.layers = made.capture.layers,
                                      .query_heads = made.capture.query_heads,
                                      .kv_heads = made.capture.kv_heads,
                                      .head_dim = made.capture.head_dim,
                                      .rope = {.theta = made.capture.rope_theta}};
    *source = made;
    return LODE_OK;
}

lode_status_t lode_source_check_capture(const lode_options_t *o)
{
    static const char *const brought[] = {"tokens",   "layers", "heads",     "kv-heads",
                                          "head-dim", "theta",  "documents", NULL};
    for (const char *const *name = brought; lode_options_get(o, "capture") && *name; name++)
        if (lode_options_get(o, *name))
            return lode_fail(LODE_ERR_INVALID, "--%s and --capture exclude each other: a capture brings it along",
                             *name);
    return LODE_OK;
}

lode_status_t lode_source_open(const lode_options_t *o, const lode_source_defaults_t *d, lode_source_t *source)
{
    const char *capture = lode_options_get(o, "capture"), *dim = lode_options_get(o, "head-dim");
    LODE_TRY(lode_source_check_capture(o));
    if (capture)
        return lode_source_capture(capture, source);
    lode_generator_params_t params = {
        .seed = lode_options_count(o, "seed"),
        .geometry = {.layers = (uint32_t)lode_options_count_or(o, "layers", 1),
                     .query_heads = (uint32_t)lode_options_count_or(o, "heads", d->query_heads),
                     .kv_heads = (uint32_t)lode_options_count_or(o, "kv-heads", d->kv_heads),
                     .head_dim = dim ? (uint32_t)strtoul(dim, NULL, 10) : 128,
                     .rope = {.theta = (double)lode_options_count_or(o, "theta", 500000)}}};
    LODE_TRY(lode_generator_parse(lode_options_get(o, "generator"), &params));
    params.sharp_share = lode_options_share(o, "sharp");
    return lode_source_generate(&params, lode_options_count_or(o, "tokens", d->tokens), 1, source);
}

void lode_source_close(lode_source_t *source)
{
    lode_generator_destroy(&source->generator);
    lode_capture_close(&source->capture);
    free(source->starts);
    memset(source, 0, sizeof *source);
}

void lode_source_tokens(const lode_source_t *source, uint32_t block, uint32_t layer, uint64_t first, uint64_t n,
                        float *k, float *v)
{
    if (!source->captured) {
        lode_generator_tokens(source->generator, block, layer, first, n, k, v);
        return;
    }
    uint64_t width = (uint64_t)source->geometry.kv_heads * source->geometry.head_dim;
    lode_capture_read(&source->capture.layer[layer].k, first * width, n * width, k);
    lode_capture_read(&source->capture.layer[layer].v, first * width, n * width, v);
}

void lode_source_query(const lode_source_t *source, uint32_t layer, uint64_t number, float *q)
{
    if (!source->captured) {
        lode_generator_query(source->generator, layer, number, q);
        return;
    }
    uint64_t width = (uint64_t)source->geometry.query_heads * source->geometry.head_dim;
    lode_capture_read(&source->capture.layer[layer].q, number % source->capture.queries * width, width, q);
}

int64_t lode_source_position(const lode_source_t *source, uint64_t number)
{
    return source->captured ? source->capture.positions[number % source->capture.queries] : LODE_POSITION_END;
}
