/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/capture.h"
#include "bench/generate.h"
#include "bench/job.h"
#include "bench/reference.h"

TestSuite(generator, .timeout = 60);
TestSuite(capture, .timeout = 60);
TestSuite(reference, .timeout = 60);
TestSuite(job, .timeout = 60);

/* ---------------------------------------------------------------- generator */

static const uint64_t starts[] = {0, 300, 512};

static lode_generator_h make_generator(uint32_t dim, uint64_t seed)
{
    lode_generator_params_t params = {
        .seed = seed, .geometry = {2, 8, 4, dim, 0, 0, {.theta = 500000}}, .blocks = 2, .starts = starts};
    lode_generator_h generator;
    lode_generator_defaults(&params);
    cr_assert(lode_generator_create(&params, &generator) == LODE_OK, "%s", lode_error_message());
    return generator;
}

Test(generator, pieces_are_parts_of_the_whole)
{
    enum { TOKENS = 200, FIRST = 37, N = 64, ROW = 4 * 64 };
    lode_generator_h g = make_generator(64, 7);
    static float k[TOKENS * ROW], v[TOKENS * ROW], part_k[N * ROW], part_v[N * ROW];
    lode_generator_tokens(g, 1, 1, 0, TOKENS, k, v);
    lode_generator_tokens(g, 1, 1, FIRST, N, part_k, part_v);
    cr_assert(memcmp(k + FIRST * ROW, part_k, sizeof part_k) == 0);
    cr_assert(memcmp(v + FIRST * ROW, part_v, sizeof part_v) == 0);
    lode_generator_destroy(&g);
    cr_assert(g == NULL);
}

Test(generator, everything_in_the_key_counts)
{
    enum { ROW = 4 * 64 };
    lode_generator_h a = make_generator(64, 7), b = make_generator(64, 8);
    float k[5][ROW], v[ROW];
    lode_generator_tokens(a, 0, 0, 5, 1, k[0], v);
    lode_generator_tokens(b, 0, 0, 5, 1, k[1], v);
    lode_generator_tokens(a, 1, 0, 5, 1, k[2], v);
    lode_generator_tokens(a, 0, 1, 5, 1, k[3], v);
    lode_generator_tokens(a, 0, 0, 6, 1, k[4], v);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++)
            cr_assert(memcmp(k[i], k[j], sizeof k[i]) != 0, "%d and %d are the same", i, j);
    cr_assert(memcmp(k[0], k[0] + 64, 64 * sizeof(float)) != 0, "heads are the same");
    lode_generator_destroy(&a);
    lode_generator_destroy(&b);
}

Test(generator, values_are_bf16_and_sane)
{
    enum { TOKENS = 256, ROW = 4 * 128 };
    lode_generator_h g = make_generator(128, 3);
    static float k[TOKENS * ROW], v[TOKENS * ROW];
    double sum = 0;
    lode_generator_tokens(g, 0, 0, 0, TOKENS, k, v);
    for (size_t i = 0; i < TOKENS * ROW; i++) {
        uint32_t bits;
        memcpy(&bits, &k[i], 4);
        bool sane = (bits & 0xffff) == 0 && isfinite(k[i]) && fabsf(k[i]) < 100;
        cr_assert(sane, "k[%zu] is %g", i, k[i]);
        memcpy(&bits, &v[i], 4);
        sane = (bits & 0xffff) == 0 && isfinite(v[i]);
        cr_assert(sane, "v[%zu] is %g", i, v[i]);
        sum += k[i] * k[i];
    }
    sum /= TOKENS * ROW; /* one for the tokens, a quarter and the outliers' 4 · 50 / 128 for the mean */
    cr_assert(sum > 1.5 && sum < 6, "mean square %g", sum);
    lode_generator_destroy(&g);
}

static double logit(const float *q, const float *k, double angle_scale, uint32_t dim, int64_t turn)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim / 2; i++) {
        double angle = (double)turn * pow(500000, -2.0 * i / dim) * angle_scale, c = cos(angle), s = sin(angle);
        double a = q[i] * c - q[i + dim / 2] * s, b = q[i] * s + q[i + dim / 2] * c;
        sum += a * k[i] + b * k[i + dim / 2];
    }
    return sum / sqrt(dim);
}

/* A sharp query's facts must stand out from other tokens, seen from the view: also those of the second document. */
Test(generator, sharp_queries_find_their_facts)
{
    enum { DIM = 128, HEADS = 4, GROUP = 2 };
    lode_generator_h g = make_generator(DIM, 11);
    static float k[512 * HEADS * DIM], v[512 * HEADS * DIM], q[8 * DIM];
    lode_generator_tokens(g, 0, 0, 0, 300, k, v);
    lode_generator_tokens(g, 1, 0, 0, 212, k + 300 * HEADS * DIM, v);
    lode_generator_query(g, 0, 4, q);
    int sharp = 0;
    for (uint32_t h = 0; h < HEADS * GROUP; h++) {
        uint64_t facts[LODE_FACTS_MAX];
        double least = INFINITY, mean = 0;
        if (!lode_generator_sharp(g, h / GROUP))
            continue;
        sharp++;
        uint32_t n = lode_generator_facts(g, 0, 4, h, facts);
        cr_assert(eq(u32, n, DIM / 32));
        for (uint64_t t = 0; t < 512; t++) {
            int64_t turn = t < 300 ? 0 : -300;
            double l = logit(q + h * DIM, k + (t * HEADS + h / GROUP) * DIM, 1, DIM, turn);
            mean += l / 512;
            for (uint32_t f = 0; f < n; f++)
                if (facts[f] == t && l < least)
                    least = l;
        }
        cr_assert(least - mean > 6, "head %u: facts %.1f, mean %.1f", h, least, mean);
    }
    cr_assert(eq(int, sharp, HEADS *GROUP / 2));
    lode_generator_destroy(&g);
}

Test(generator, refuses_what_does_not_fit)
{
    lode_generator_h g = NULL;
    lode_generator_params_t params = {.geometry = {1, 8, 3, 64, 0, 0, {.theta = 10000}}, .blocks = 2, .starts = starts};
    lode_generator_defaults(&params);
    cr_assert(eq(int, lode_generator_create(&params, &g), LODE_ERR_GEOMETRY));
    cr_assert(strstr(lode_error_message(), "multiple") != NULL);
    params.geometry.kv_heads = 4;
    params.geometry.head_dim = 96;
    cr_assert(eq(int, lode_generator_create(&params, &g), LODE_ERR_GEOMETRY));
    cr_assert(strstr(lode_error_message(), "96") != NULL);
    cr_assert(g == NULL);
}

/* ------------------------------------------------------------------ capture */

enum { TOKENS = 5, QUERIES = 2, KV = 2, HEADS = 4, DIM = 64 };

/* The pieces of a capture's header, so that each test can replace one. */
typedef struct recipe {
    const char *k, *v, *q, *positions, *metadata, *more;
    uint64_t length_lie, cut;
} recipe_t;

#define K_BYTES (TOKENS * KV * DIM * 2)     /* BF16 */
#define V_BYTES (TOKENS * KV * DIM * 2)     /* F16 */
#define Q_BYTES (QUERIES * HEADS * DIM * 4) /* F32 */
#define P_BYTES (QUERIES * 8)
#define DATA_BYTES (K_BYTES + V_BYTES + Q_BYTES + P_BYTES)

static const recipe_t good = {
    .k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}",
    .v = "\"layers.0.v\":{\"dtype\":\"F16\",\"shape\":[5,2,64],\"data_offsets\":[1280,2560]}",
    .q = "\"layers.0.q\":{\"dtype\":\"F32\",\"shape\":[2,4,64],\"data_offsets\":[2560,4608]}",
    .positions = "\"q_positions\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[4608,4624]}",
    .metadata = "\"__metadata__\":{\"lodemark.capture\":\"1\",\"rope_theta\":\"10000.0\"}",
};

/* In a block of its own size, so that AddressSanitizer sees a byte read too far. */
static uint8_t *bake(const recipe_t *r, size_t *bytes)
{
    char header[2048];
    int length = snprintf(header, sizeof header, "{%s,%s,%s,%s,%s%s}", r->k, r->v, r->q, r->positions, r->metadata,
                          r->more ? r->more : "");
    cr_assert(length > 0 && (size_t)length < sizeof header);
    *bytes = 8 + (size_t)length + DATA_BYTES - r->cut;
    uint8_t *whole = calloc(1, 8 + (size_t)length + DATA_BYTES), *file;
    uint64_t said = r->length_lie ? r->length_lie : (uint64_t)length;
    for (int i = 0; i < 8; i++)
        whole[i] = (uint8_t)(said >> 8 * i);
    memcpy(whole + 8, header, (size_t)length);
    uint8_t *data = whole + 8 + length;
    data[1] = 0x3f;           /* k[0] = 0.5 in bf16 */
    data[K_BYTES + 3] = 0xc0; /* v[1] = −2 in f16 */
    float one = 1.25f;
    memcpy(data + K_BYTES + V_BYTES + 4, &one, 4);
    int64_t positions[QUERIES] = {3, 7};
    memcpy(data + K_BYTES + V_BYTES + Q_BYTES, positions, sizeof positions);
    file = malloc(*bytes);
    memcpy(file, whole, *bytes);
    free(whole);
    return file;
}

Test(capture, reads_what_was_written)
{
    size_t bytes;
    uint8_t *file = bake(&good, &bytes);
    lode_capture_t c = {0};
    cr_assert(lode_capture_parse(file, bytes, &c) == LODE_OK, "%s", lode_error_message());
    cr_assert(eq(u32, c.layers, 1));
    cr_assert(eq(u32, c.query_heads, HEADS));
    cr_assert(eq(u32, c.kv_heads, KV));
    cr_assert(eq(u32, c.head_dim, DIM));
    cr_assert(eq(u64, c.tokens, TOKENS));
    cr_assert(eq(u64, c.queries, QUERIES));
    cr_assert(ieee_ulp_eq(dbl, c.rope_theta, 10000.0, 0));
    cr_assert(eq(i64, c.positions[1], 7));
    float x[2];
    lode_capture_read(&c.layer[0].k, 0, 2, x);
    cr_assert(x[0] == 0.5f && x[1] == 0);
    lode_capture_read(&c.layer[0].v, 0, 2, x);
    cr_assert(x[0] == 0 && x[1] == -2);
    lode_capture_read(&c.layer[0].q, 1, 1, x);
    cr_assert(x[0] == 1.25f);
    cr_assert(lode_capture_check_finite(&c) == LODE_OK);
    lode_capture_close(&c);
    lode_capture_close(&c);
    free(file);
}

/* Each line: what is put in place of a part, and a word of the sentence that must come back. */
static void refuse(recipe_t recipe, const char *word)
{
    size_t bytes;
    uint8_t *file = bake(&recipe, &bytes);
    lode_capture_t c = {.tokens = 42};
    lode_status_t status = lode_capture_parse(file, bytes, &c);
    cr_expect(status == LODE_ERR_FORMAT, "\"%s\": status %d", word, status);
    cr_expect(strstr(lode_error_message(), word) != NULL, "\"%s\" is not in: %s", word, lode_error_message());
    cr_expect(c.tokens == 42, "\"%s\": the output was touched", word);
    free(file);
}

Test(capture, refuses_a_lying_frame)
{
    recipe_t r = good;
    r.length_lie = UINT64_MAX;
    refuse(r, "only");
    r = good, r.length_lie = 3;
    refuse(r, "JSON");
    r = good, r.cut = 1;
    refuse(r, "truncated");
    r = good, r.cut = DATA_BYTES;
    refuse(r, "truncated");
    r = good, r.more = ",\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[4623,4624]}";
    refuse(r, "overlap");
    r = good, r.positions = "\"q_positions\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[4616,4624]}";
    refuse(r, "belong to no tensor");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[1280,0]}";
    refuse(r, "data_offsets");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[0,9223372036854775807]}";
    refuse(r, "truncated");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[0]}";
    refuse(r, "data_offsets");
    r = good, r.k = "\"layers.0.k\":[1]";
    refuse(r, "dtype");
}

Test(capture, refuses_lying_tensors)
{
    recipe_t r = good;
    r.k = "\"layers.0.k\":{\"dtype\":\"F32\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "need 2560");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF17\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "BF17");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"I16\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "must be BF16");
    r = good,
    r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296,64],\"data_offsets\":[0,1280]}";
    refuse(r, "larger than any memory");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[-5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "whole number");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[640],\"data_offsets\":[0,1280]}";
    refuse(r, "heads, head_dim");
    r = good, r.k = "\"layers.0.k\":{\"dtype\":\"BF16\",\"shape\":[2,5,64],\"data_offsets\":[0,1280]}";
    refuse(r, "tensors before it");
    r = good, r.q = "\"layers.0.q\":{\"dtype\":\"F32\",\"shape\":[8,1,64],\"data_offsets\":[2560,4608]}";
    refuse(r, "multiple");
    r = good, r.q = "\"layers.0.x\":{\"dtype\":\"F32\",\"shape\":[2,4,64],\"data_offsets\":[2560,4608]}";
    refuse(r, "layers.0.q");
    r = good, r.k = "\"layers.1.k\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "layers.0.k");
    r = good, r.k = "\"other\":{\"dtype\":\"BF16\",\"shape\":[5,2,64],\"data_offsets\":[0,1280]}";
    refuse(r, "layers.N.k");
    r = good, r.positions = "\"q_positions\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[4608,4624]}";
    refuse(r, "I64");
    r = good, r.positions = "\"positions\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[4608,4624]}";
    refuse(r, "q_positions");
    r = good, r.more = ",\"k_positions\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[4624,4624]}";
    refuse(r, "\"k_positions\" must be I64 of shape (5), the tokens");
}

Test(capture, refuses_lying_metadata)
{
    recipe_t r = good;
    r.metadata = "\"__metadata__\":{\"rope_theta\":\"10000.0\"}";
    refuse(r, "no capture");
    r.metadata = "\"__metadata__\":{\"lodemark.capture\":\"2\",\"rope_theta\":\"10000.0\"}";
    refuse(r, "only 1");
    r.metadata = "\"__metadata__\":{\"lodemark.capture\":1,\"rope_theta\":\"10000.0\"}";
    refuse(r, "no capture");
    r.metadata = "\"__metadata__\":{\"lodemark.capture\":\"1\"}";
    refuse(r, "rope_theta");
    r.metadata = "\"__metadata__\":{\"lodemark.capture\":\"1\",\"rope_theta\":\"nan\"}";
    refuse(r, "rope_theta");
}

/* Every prefix of a good file is refused, and none is read past its end. */
Test(capture, refuses_every_prefix)
{
    size_t bytes;
    uint8_t *file = bake(&good, &bytes);
    lode_capture_t c;
    for (size_t n = 0; n < bytes; n += n < 700 ? 1 : 97) {
        uint8_t *part = malloc(n ? n : 1);
        memcpy(part, file, n);
        cr_assert(lode_capture_parse(part, n, &c) == LODE_ERR_FORMAT, "%zu bytes were accepted", n);
        free(part);
    }
    free(file);
}

Test(capture, names_the_first_nan)
{
    size_t bytes;
    uint8_t *file = bake(&good, &bytes);
    lode_capture_t c;
    uint8_t *data = file + bytes - DATA_BYTES;
    data[K_BYTES + ((3 * KV + 1) * DIM + 9) * 2 + 1] = 0x7e; /* v of token 3, head 1 in f16 */
    cr_assert(lode_capture_parse(file, bytes, &c) == LODE_OK);
    cr_assert(eq(int, lode_capture_check_finite(&c), LODE_ERR_NONFINITE));
    cr_assert(strstr(lode_error_message(), "layers.0.v: NaN at layer 0, head 1, token 3") != NULL, "%s",
              lode_error_message());
    lode_capture_close(&c);
    free(file);
}

Test(capture, opens_files)
{
    char path[] = "/tmp/lodemark-capture-XXXXXX";
    size_t bytes;
    uint8_t *file = bake(&good, &bytes);
    lode_capture_t c = {0};
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && write(fd, file, bytes) == (ssize_t)bytes);
    cr_expect(lode_capture_open(path, &c) == LODE_OK, "%s", lode_error_message());
    cr_expect(eq(u64, c.tokens, TOKENS));
    lode_capture_close(&c);
    cr_expect(ftruncate(fd, 5) == 0);
    cr_expect(eq(int, lode_capture_open(path, &c), LODE_ERR_FORMAT));
    cr_expect(strstr(lode_error_message(), path) != NULL, "%s", lode_error_message());
    close(fd);
    unlink(path);
    cr_expect(eq(int, lode_capture_open(path, &c), LODE_ERR_IO));
    cr_expect(eq(int, lode_capture_open("/", &c), LODE_ERR_IO));
    free(file);
}

/* ---------------------------------------------------------------- reference */

enum { R_TOKENS = 200, R_WRITTEN = 70, R_PAGED = R_TOKENS + 64, R_HEADS = 4, R_KV = 2, R_DIM = 64 };

typedef struct scene {
    lode_source_t source;
    float q[R_HEADS * R_DIM];
    float k[(R_TOKENS + R_WRITTEN) * R_KV * R_DIM], v[(R_TOKENS + R_WRITTEN) * R_KV * R_DIM];
    double share[R_HEADS][R_TOKENS + R_WRITTEN]; /* softmax */
    double logit[R_HEADS][R_TOKENS + R_WRITTEN];
    double out[R_HEADS * R_DIM];
} scene_t;

static scene_t scene;

/* Dense attention the plain way: every key is turned to its place in the view, the query stays. */
static void set_scene(void)
{
    lode_generator_params_t params = {.seed = 5, .geometry = {1, R_HEADS, R_KV, R_DIM, 0, 0, {.theta = 10000}}};
    lode_generator_defaults(&params);
    cr_assert(lode_source_generate(&params, R_TOKENS, 3, &scene.source) == LODE_OK);
    lode_source_query(&scene.source, 0, 9, scene.q);
    uint64_t at = 0;
    for (uint32_t b = 0; b <= scene.source.blocks; b++) {
        bool written = b == scene.source.blocks;
        uint64_t n = written ? R_WRITTEN : scene.source.starts[b + 1] - scene.source.starts[b];
        lode_source_tokens(&scene.source, b, 0, 0, n, scene.k + at * R_KV * R_DIM, scene.v + at * R_KV * R_DIM);
        for (uint64_t t = at; t < at + n; t++) {
            for (int h = 0; h < R_HEADS; h++) {
                double sum = 0;
                const float *k = scene.k + (t * R_KV + h / 2) * R_DIM, *q = scene.q + h * R_DIM;
                for (int i = 0; i < R_DIM / 2; i++) {
                    double angle = (double)at * pow(10000, -2.0 * i / R_DIM), c = cos(angle), s = sin(angle);
                    sum +=
                        q[i] * (k[i] * c - k[i + R_DIM / 2] * s) + q[i + R_DIM / 2] * (k[i] * s + k[i + R_DIM / 2] * c);
                }
                scene.logit[h][t] = sum / sqrt(R_DIM);
            }
        }
        at += n;
    }
    for (int h = 0; h < R_HEADS; h++) {
        double sum = 0;
        for (uint64_t t = 0; t < at; t++)
            sum += exp(scene.logit[h][t]);
        for (uint64_t t = 0; t < at; t++) {
            scene.share[h][t] = exp(scene.logit[h][t]) / sum;
            for (int i = 0; i < R_DIM; i++)
                scene.out[h * R_DIM + i] += scene.share[h][t] * scene.v[(t * R_KV + h / 2) * R_DIM + i];
        }
    }
}

static lode_check_t make_check(const uint32_t *chosen, uint64_t count)
{
    lode_check_t check = {.writer = scene.source.blocks,
                          .position = R_TOKENS + R_WRITTEN - 1,
                          .written = R_WRITTEN,
                          .q = scene.q,
                          .paged = R_PAGED};
    cr_assert(lode_check_create(&scene.source.geometry, &check) == LODE_OK);
    for (int h = 0; h < R_KV; h++) {
        check.chosen[h] = malloc((count + 1) * sizeof(uint32_t));
        memcpy(check.chosen[h], chosen, count * sizeof(uint32_t));
        check.chosen_count[h] = count;
    }
    return check;
}

static double tail_share(int head)
{
    double share = 0;
    for (uint64_t t = R_PAGED; t < R_TOKENS + R_WRITTEN; t++)
        share += scene.share[head][t];
    return share;
}

static void run(lode_check_t *check, uint32_t sinks, uint32_t window)
{
    lode_reference_params_t params = {
        .source = &scene.source, .merge = LODE_MERGE_MAX, .sinks = sinks, .window = window, .memory = 1};
    cr_assert(lode_job_begin(&params.job) == LODE_OK);
    cr_assert(lode_reference_run(&params, check, 1) == LODE_OK, "%s", lode_error_message());
    lode_job_end();
}

Test(reference, is_dense_attention, .init = set_scene)
{
    static const uint32_t chosen[] = {0, 7, 63, 64, 120, 199, 200, 263};
    lode_check_t check = make_check(chosen, 8);
    run(&check, 0, 0);
    for (int i = 0; i < R_HEADS * R_DIM; i++)
        cr_expect(fabs(check.out[i] - scene.out[i]) < 1e-10, "element %d: %g and %g", i, check.out[i], scene.out[i]);
    for (int h = 0; h < R_HEADS; h++) {
        double mass = tail_share(h);
        for (int i = 0; i < 8; i++)
            mass += scene.share[h][chosen[i]];
        cr_expect(fabs(check.found[h] - mass) < 1e-10, "head %d: found %g, not %g", h, check.found[h], mass);
        cr_expect(check.oracle[h] <= 1);
    }
    lode_check_free(&scene.source.geometry, &check);
}

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The oracle's set by sorting: forced first, then the highest merged scores. */
static double oracle_share(int head, uint64_t count, uint64_t sinks, uint64_t window)
{
    double score[R_PAGED], sorted[R_PAGED], lse[2], mass = tail_share(head);
    int first = head / 2 * 2;
    for (int j = 0; j < 2; j++) {
        double sum = 0;
        for (int t = 0; t < R_PAGED; t++)
            sum += exp(scene.logit[first + j][t]);
        lse[j] = log(sum);
    }
    uint64_t tail = R_TOKENS + R_WRITTEN - R_PAGED, begin = window > tail ? R_PAGED - (window - tail) : R_PAGED;
    for (uint64_t t = 0; t < R_PAGED; t++) {
        score[t] = fmax(scene.logit[first][t] - lse[0], scene.logit[first + 1][t] - lse[1]);
        if (t < sinks || t >= begin)
            score[t] = INFINITY;
    }
    memcpy(sorted, score, sizeof sorted);
    qsort(sorted, R_PAGED, sizeof *sorted, descending);
    for (int t = 0; t < R_PAGED; t++)
        if (score[t] >= sorted[count - 1])
            mass += scene.share[head][t];
    return mass;
}

Test(reference, oracle_takes_the_best, .init = set_scene)
{
    enum { COUNT = 24, SINKS = 3, WINDOW = 10 };
    uint32_t chosen[COUNT];
    for (uint32_t i = 0; i < COUNT; i++)
        chosen[i] = i * 3;
    lode_check_t check = make_check(chosen, COUNT);
    run(&check, SINKS, WINDOW);
    for (int h = 0; h < R_HEADS; h++) {
        double mass = oracle_share(h, COUNT, SINKS, WINDOW);
        cr_expect(fabs(check.oracle[h] - mass) < 1e-10, "head %d: oracle %g, not %g", h, check.oracle[h], mass);
        cr_expect(check.oracle[h] >= check.found[h] - 0.05);
    }
    lode_check_free(&scene.source.geometry, &check);
}

Test(reference, a_query_sees_no_later_token, .init = set_scene)
{
    lode_check_t check = make_check((const uint32_t[]){0}, 1);
    check.written = 0;
    check.position = 99;
    check.paged = 100;
    run(&check, 0, 0);
    for (int h = 0; h < R_HEADS; h++) {
        double sum = 0;
        for (int t = 0; t < 100; t++)
            sum += exp(scene.logit[h][t]);
        cr_expect(fabs(check.found[h] - exp(scene.logit[h][0]) / sum) < 1e-10);
    }
    lode_check_free(&scene.source.geometry, &check);
}

/* ---------------------------------------------------------------------- job */

Test(job, median)
{
    double odd[] = {5, 1, 3}, even[] = {4, 1, 3, 2};
    cr_assert(lode_median(odd, 3) == 3);
    cr_assert(lode_median(even, 4) == 2.5);
    cr_assert(lode_median(even, 0) == 0);
}

Test(job, output_must_be_writable)
{
    cr_assert(eq(int, lode_job_check_output("/nonexistent/x.json"), LODE_ERR_IO));
    cr_assert(strstr(lode_error_message(), "/nonexistent/x.json") != NULL);
    char path[] = "/tmp/lodemark-json-XXXXXX";
    int fd = mkstemp(path);
    close(fd);
    unlink(path);
    cr_assert(lode_job_check_output(path) == LODE_OK);
    cr_assert(access(path, F_OK) != 0, "a trial file was left behind");
    json_t *object = json_pack("{s:f}", "x", 0.5);
    cr_assert(lode_job_write_json(path, object) == LODE_OK);
    json_t *again = json_load_file(path, 0, NULL);
    cr_expect(json_equal(object, again));
    json_decref(again);
    cr_expect(eq(int, lode_job_write_json("/dev/full", object), LODE_ERR_IO));
    json_decref(object);
    unlink(path);
}
