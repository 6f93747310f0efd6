/* SPDX-License-Identifier: Apache-2.0 */
/* The traits of the model kind, each measured on what is generated. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/generate.h"

TestSuite(model, .timeout = 60);

enum { DIM = 128, HEADS = 4, GROUP = 2, TOKENS = 2048, ROW = HEADS * DIM };

static const uint64_t starts[] = {0, TOKENS};
static float k[TOKENS * ROW], v[TOKENS * ROW], q[HEADS * GROUP * DIM];

static lode_generator_h make(const char *text)
{
    lode_generator_params_t params = {
        .seed = 5, .geometry = {2, HEADS * GROUP, HEADS, DIM, 0, 0, {.theta = 500000}}, .blocks = 1, .starts = starts};
    lode_generator_h generator;
    cr_assert(lode_generator_parse(text, &params) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_generator_create(&params, &generator) == LODE_OK, "%s", lode_error_message());
    return generator;
}

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

static const float *key_at(uint64_t token, uint32_t head)
{
    return k + (token * HEADS + head) * DIM;
}

Test(model, pieces_are_parts_of_the_whole)
{
    enum { FIRST = 37, N = 64 };
    lode_generator_h g = make("model");
    static float part_k[N * ROW], part_v[N * ROW];
    lode_generator_tokens(g, 0, 1, 0, 200, k, v);
    lode_generator_tokens(g, 0, 1, FIRST, N, part_k, part_v);
    cr_assert(memcmp(k + FIRST * ROW, part_k, sizeof part_k) == 0);
    cr_assert(memcmp(v + FIRST * ROW, part_v, sizeof part_v) == 0);
    for (uint32_t block = 0; block < 2; block++) /* another layer, another block, one that a stream writes */
        for (uint32_t layer = 0; layer < 2; layer++) {
            lode_generator_tokens(g, block, layer, FIRST, 1, part_k, part_v);
            bool same = memcmp(k + FIRST * ROW, part_k, DIM * sizeof *k) == 0;
            cr_assert(eq(int, same, block == 0 && layer == 1));
        }
    lode_generator_destroy(&g);
}

/* The first sink takes a broad head's share that was asked for, though its key and value are short. */
Test(model, sinks_take_their_share)
{
    lode_generator_h g = make("model,sink-share=0.4");
    double share = 0;
    uint32_t broad = 0;
    lode_generator_tokens(g, 0, 0, 0, TOKENS, k, v);
    for (uint64_t number = 0; number < 8; number++) {
        lode_generator_query(g, 0, number, q);
        for (uint32_t h = 0; h < HEADS * GROUP; h++) {
            double sum = 0, first = 0;
            if (lode_generator_sharp(g, h / GROUP))
                continue;
            for (uint64_t t = 0; t < TOKENS; t++) {
                double logit = dot(q + h * DIM, key_at(t, h / GROUP), DIM) / sqrt(DIM);
                sum += exp(logit);
                first += t == 0 ? exp(logit) : 0;
            }
            share += first / sum;
            broad++;
        }
    }
    cr_assert(broad > 0 && share / broad > 0.15 && share / broad < 0.75, "share %.3f", share / broad);
    for (uint32_t h = 0; h < HEADS; h++) {
        double sink = dot(key_at(0, h), key_at(0, h), DIM), usual = dot(key_at(99, h), key_at(99, h), DIM);
        cr_assert(sink < usual / 4, "head %u: %.1f and %.1f", h, sink, usual);
        cr_assert(dot(v + h * DIM, v + h * DIM, DIM) < 0.1 * dot(v + 99 * ROW, v + 99 * ROW, DIM));
    }
    lode_generator_destroy(&g);
}

/* The facts are among the greatest logits; the greatest of a needle head are of its passage. */
Test(model, sharp_queries_find_their_facts)
{
    lode_generator_h g = make("model,needles=0.5");
    uint32_t of[LODE_HEAD_KINDS] = {0}, found[LODE_HEAD_KINDS] = {0};
    lode_generator_tokens(g, 0, 0, 0, TOKENS, k, v);
    lode_generator_query(g, 0, 4, q);
    for (uint32_t h = 0; h < HEADS * GROUP; h++) {
        uint64_t positions[LODE_FACTS_MAX], best = 8;
        lode_head_kind_t kind = lode_generator_head_kind(g, h / GROUP);
        const float *x = q + h * DIM;
        if (kind == LODE_HEAD_BROAD)
            continue;
        uint32_t n = lode_generator_facts(g, 0, 4, h, positions);
        cr_assert(eq(u32, n, kind == LODE_HEAD_NEEDLE ? 1 : DIM / 32));
        for (uint64_t t = 8; t < TOKENS; t++)
            best = dot(x, key_at(t, h / GROUP), DIM) > dot(x, key_at(best, h / GROUP), DIM) ? t : best;
        for (uint32_t f = 0; f < n; f++) {
            uint32_t better = 0;
            for (uint64_t t = 8; t < TOKENS; t++)
                better += dot(x, key_at(t, h / GROUP), DIM) > dot(x, key_at(positions[f], h / GROUP), DIM);
            found[kind] += kind == LODE_HEAD_NEEDLE ? best / 32 == positions[f] / 32 : better < TOKENS / 100;
            of[kind]++;
        }
    }
    for (int kind = LODE_HEAD_FACTS; kind <= LODE_HEAD_NEEDLE; kind++)
        cr_assert(of[kind] > 0 && found[kind] >= of[kind] * 9 / 10, "%s: %u of %u", lode_head_kind_names[kind],
                  found[kind], of[kind]);
    lode_generator_destroy(&g);
}

/* Facts are tokens that stand out from the means of their pages, where most of their channels do not. */
Test(model, facts_stand_out)
{
    lode_generator_h g = make("model");
    uint64_t positions[LODE_FACTS_MAX];
    uint32_t sharp = 0, n;
    double facts = 0, others = 0;
    while (lode_generator_head_kind(g, sharp) != LODE_HEAD_FACTS)
        sharp++;
    lode_generator_tokens(g, 0, 0, 0, TOKENS, k, v);
    for (uint64_t number = 0; number < 64; number += 4) {
        n = lode_generator_facts(g, 0, number, sharp * GROUP, positions);
        for (uint32_t f = 0; f < n; f++)
            for (int which = 0; which < 2; which++) {
                uint64_t t = which ? positions[f] ^ 1 : positions[f];
                float far = 0; /* from a token of the same page */
                for (uint32_t i = 0; i < DIM; i++)
                    far = fmaxf(far, fabsf(key_at(t, sharp)[i] - key_at(t ^ 2, sharp)[i]));
                *(which ? &others : &facts) += far;
            }
    }
    cr_assert(facts > 1.08 * others, "%.1f and %.1f", facts, others);
    lode_generator_destroy(&g);
}

/* Queries lie off the keys' distribution: farther from its mean, in its own metric, than keys do. Logits of massive
 * channels are negative. */
Test(model, queries_are_off_the_keys_distribution)
{
    lode_generator_h g = make("model");
    lode_generator_tokens(g, 0, 0, 8, TOKENS, k, v);
    for (uint32_t head = 0; head < HEADS; head++) {
        static double covariance[DIM * DIM];
        double mean[DIM] = {0}, x[DIM], of_keys = 0, of_queries = 0;
        memset(covariance, 0, sizeof covariance);
        for (uint64_t t = 0; t < TOKENS; t++)
            for (uint32_t i = 0; i < DIM; i++)
                mean[i] += key_at(t, head)[i] / TOKENS;
        for (uint64_t t = 0; t < TOKENS; t++)
            for (uint32_t i = 0; i < DIM; i++)
                for (uint32_t j = 0; j <= i; j++)
                    covariance[i * DIM + j] += (key_at(t, head)[i] - mean[i]) * (key_at(t, head)[j] - mean[j]) / TOKENS;
        cr_assert(LAPACKE_dpotrf(LAPACK_ROW_MAJOR, 'L', DIM, covariance, DIM) == 0);
        for (uint32_t n = 0; n < 16; n++) {
            double norm = 0;
            lode_generator_query(g, 0, n, q);
            const float *query = q + head * GROUP * DIM, *key = key_at(n * 100, head);
            for (int which = 0; which < 2; which++) {
                norm = 0;
                for (uint32_t i = 0; i < DIM; i++)
                    x[i] = (which ? query[i] : key[i]) - mean[i];
                cr_assert(LAPACKE_dtrtrs(LAPACK_ROW_MAJOR, 'L', 'N', 'N', DIM, 1, covariance, DIM, x, 1) == 0);
                for (uint32_t i = 0; i < DIM; i++)
                    norm += x[i] * x[i];
                *(which ? &of_queries : &of_keys) += norm;
            }
        }
        cr_assert(of_queries > 4 * of_keys, "head %u: %.0f and %.0f", head, of_queries, of_keys);
    }
    lode_generator_destroy(&g);
}

/* Neighbours are alike and strangers are not, and no more than was asked for. */
Test(model, neighbours_are_alike)
{
    static const char *const texts[] = {"model,neighbour=0,outliers=0", "model,outliers=0",
                                        "model,neighbour=0.9,outliers=0"};
    double near[3] = {0};
    for (int i = 0; i < 3; i++) {
        lode_generator_h g = make(texts[i]);
        lode_generator_tokens(g, 0, 0, 4, TOKENS, k, v);
        for (uint64_t t = 0; t + 1 < TOKENS; t++)
            near[i] += dot(key_at(t, 1), key_at(t + 1, 1), DIM) /
                       sqrt(dot(key_at(t, 1), key_at(t, 1), DIM) * dot(key_at(t + 1, 1), key_at(t + 1, 1), DIM)) /
                       TOKENS;
        lode_generator_destroy(&g);
    }
    cr_assert(near[0] + 0.05 < near[1] && near[1] + 0.05 < near[2], "cosines %.2f, %.2f, %.2f", near[0], near[1],
              near[2]);
}

/* Over the heads of a layer keys before rotation need few dimensions: with a base without end nothing turns. */
Test(model, keys_before_rotation_have_low_rank)
{
    static double covariance[ROW * ROW];
    double values[ROW], mean[ROW] = {0}, all = 0, few = 0;
    lode_generator_params_t params = {
        .seed = 5, .geometry = {2, HEADS * GROUP, HEADS, DIM, 0, 0, {.theta = 1e300}}, .blocks = 1, .starts = starts};
    lode_generator_h g;
    cr_assert(lode_generator_parse("model,outliers=0,sinks=0", &params) == LODE_OK);
    cr_assert(lode_generator_create(&params, &g) == LODE_OK);
    lode_generator_tokens(g, 0, 0, 0, 1024, k, v);
    for (uint64_t t = 0; t < 1024; t++)
        for (uint32_t i = 0; i < ROW; i++)
            mean[i] += k[t * ROW + i] / 1024;
    for (uint64_t t = 0; t < 1024; t++)
        for (uint32_t i = 0; i < ROW; i++)
            for (uint32_t j = 0; j <= i; j++)
                covariance[i * ROW + j] += (k[t * ROW + i] - mean[i]) * (k[t * ROW + j] - mean[j]);
    cr_assert(LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'N', 'L', ROW, covariance, ROW, values) == 0);
    for (uint32_t i = 0; i < ROW; i++) {
        all += values[i];
        few += i >= ROW - ROW * 160 / 1024 ? values[i] : 0; /* the share of dimensions that ShadowKV keeps */
    }
    cr_assert(few > 0.6 * all && few < 0.95 * all, "%.2f of the variance", few / all);
    lode_generator_destroy(&g);
}

/* Facts are held over some queries and change one after another; a broad head's queries move slowly. */
Test(model, queries_resemble_the_last)
{
    lode_generator_h g = make("model,hold=4");
    uint64_t before[LODE_FACTS_MAX], now[LODE_FACTS_MAX];
    uint32_t sharp = 0;
    while (lode_generator_head_kind(g, sharp) != LODE_HEAD_FACTS)
        sharp++;
    lode_generator_facts(g, 0, 0, sharp * GROUP, before);
    for (uint64_t number = 1; number < 12; number++) {
        uint32_t same = 0, n = lode_generator_facts(g, 0, number, sharp * GROUP, now);
        for (uint32_t f = 0; f < n; f++)
            same += now[f] == before[f];
        cr_assert(eq(u32, same, n - 1), "query %lu", (unsigned long)number);
        memcpy(before, now, sizeof now);
    }
    lode_generator_destroy(&g);
}

Test(model, knobs_are_read_and_refused)
{
    lode_generator_params_t params = {.seed = 9};
    cr_assert(lode_generator_parse("model,tail=1.5,facts=3", &params) == LODE_OK);
    cr_assert(params.kind == LODE_GENERATOR_MODEL && params.tail == 1.5 && params.facts == 3 && params.seed == 9);
    static const struct {
        const char *text, *word;
    } wrong[] = {{"modle", "plain or model"},  {"model,tial=1", "\"tail\""},    {"model,tail", "knob=value"},
                 {"model,facts=1.5", "whole"}, {"model,tail=nan", "from 0.01"}, {"model,tail=1x", "from 0.01"},
                 {"model,,", "knob=value"},    {"", "plain or model"},          {"model,decay=3", "from 0 to 2"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_expect(lode_generator_parse(wrong[i].text, &params) == LODE_ERR_INVALID, "%s", wrong[i].text);
        cr_expect(strstr(lode_error_message(), wrong[i].word) != NULL, "%s: %s", wrong[i].text, lode_error_message());
    }
    cr_assert(params.tail == 1.5);
}
