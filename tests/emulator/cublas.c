/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libcublas.so.13 for machines without GPUs: products of matrices by plain sums, enqueued on the streams of
 * tests/multi/plain_device.c, which the program exports. It has what reader/products_cublas.c calls, refuses types and
 * sizes that cuBLAS would, and all products once LODEMARK_TEST_CUBLAS is "broken".
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, INVALID = 7, FAILED = 13, FP32 = 0, BF16 = 14, SUMS_FP32 = 68, VERSION = 120405 };

typedef struct handle {
    void *stream;
    void (*push)(void *stream, bool (*poll)(void *), void *context);
} handle_t;

typedef struct product {
    bool turned[2];
    int m, n, k, type, lead[3];
    float alpha, beta;
    const void *a, *b;
    float *c;
} product_t;

int cublasCreate_v2(void **handle);
int cublasDestroy_v2(void *handle);
int cublasGetVersion_v2(void *handle, int *version);
int cublasSetStream_v2(void *handle, void *stream);
const char *cublasGetStatusString(int status);
int cublasGemmEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a,
                 int type_a, int lead_a, const void *b, int type_b, int lead_b, const void *beta, void *c, int type_c,
                 int lead_c, int sums, int algorithm);

EXPORT int cublasCreate_v2(void **handle)
{
    handle_t *made = calloc(1, sizeof *made);
    void *symbol = dlsym(RTLD_DEFAULT, "plain_stream_push");
    if (!made || !symbol)
        return FAILED;
    memcpy(&made->push, &symbol, sizeof symbol);
    *handle = made;
    return OK;
}

EXPORT int cublasDestroy_v2(void *handle)
{
    free(handle);
    return OK;
}

EXPORT int cublasGetVersion_v2(void *handle, int *version)
{
    *version = VERSION;
    return handle ? OK : INVALID;
}

EXPORT int cublasSetStream_v2(void *handle, void *stream)
{
    ((handle_t *)handle)->stream = stream;
    return OK;
}

EXPORT const char *cublasGetStatusString(int status)
{
    return status == OK ? "fine" : status == INVALID ? "an argument is wrong" : "the stand-in was told to fail";
}

/* A copy in fp32 whose columns of k elements follow one another. */
static float *columns(const product_t *p, int which, const void *matrix, int count)
{
    float *copy = malloc((size_t)count * (size_t)p->k * sizeof *copy);
    for (int i = 0; copy && i < count; i++)
        for (int l = 0; l < p->k; l++) {
            bool along = p->turned[which] == (which == 0); /* the k elements follow one another already */
            size_t at = (size_t)(along ? i : l) * (size_t)p->lead[which] + (size_t)(along ? l : i);
            float *to = &copy[(size_t)i * (size_t)p->k + (size_t)l];
            uint32_t bits = p->type == BF16 ? (uint32_t)((const uint16_t *)matrix)[at] << 16 : 0;
            memcpy(to, p->type == BF16 ? (const void *)&bits : &((const float *)matrix)[at], sizeof *to);
        }
    return copy;
}

/* Columns first, as cuBLAS has it. */
static bool multiply(void *context)
{
    product_t *p = context;
    float *a = columns(p, 0, p->a, p->m), *b = columns(p, 1, p->b, p->n);
    for (int i = 0; a && b && i < p->m; i++)
        for (int j = 0; j < p->n; j++) {
            const float *x = a + (size_t)i * (size_t)p->k, *y = b + (size_t)j * (size_t)p->k;
            double sum = 0;
            for (int l = 0; l < p->k; l++)
                sum += (double)x[l] * y[l];
            float *c = &p->c[(size_t)j * (size_t)p->lead[2] + (size_t)i];
            *c = (float)(p->alpha * sum + (p->beta != 0 ? (double)(p->beta * *c) : 0));
        }
    free(a);
    free(b);
    free(p);
    return true;
}

EXPORT int cublasGemmEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a,
                        int type_a, int lead_a, const void *b, int type_b, int lead_b, const void *beta, void *c,
                        int type_c, int lead_c, int sums, int algorithm)
{
    const handle_t *h = handle;
    const char *told = getenv("LODEMARK_TEST_CUBLAS");
    if (told && strcmp(told, "broken") == 0)
        return FAILED;
    bool fits = m > 0 && n > 0 && k > 0 && lead_a >= (turn_a ? k : m) && lead_b >= (turn_b ? n : k) && lead_c >= m;
    if (!fits || type_a != type_b || (type_a != FP32 && type_a != BF16) || type_c != FP32 || sums != SUMS_FP32 ||
        algorithm != -1)
        return INVALID;
    product_t *p = malloc(sizeof *p);
    if (!p)
        return FAILED;
    *p = (product_t){{turn_a, turn_b}, m, n, k, type_a, {lead_a, lead_b, lead_c}, 0, 0, a, b, c};
    memcpy(&p->alpha, alpha, sizeof p->alpha);
    memcpy(&p->beta, beta, sizeof p->beta);
    h->push(h->stream, multiply, p);
    return OK;
}
