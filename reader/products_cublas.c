/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products on a GPU, by cuBLAS. Weights lie in the GPU's memory; activations come from the host and go back there,
 * since attention takes them from either. cuBLAS is loaded at run time: a machine without it gets a reason.
 *
 * The tests' stand-in (tests/emulator/cublas.c) is all that this has run with.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "reader/products_inside.h"

/* Of cublas_api.h and library_types.h: as they are since CUDA 11, part of the library's binary interface. */
enum {
    CUBLAS_OK = 0,
    CUBLAS_NOT_TRANSPOSED = 0,
    CUBLAS_TRANSPOSED = 1,
    CUBLAS_FP32 = 0,
    CUBLAS_BF16 = 14,
    CUBLAS_SUMS_FP32 = 68,
    CUBLAS_CHOOSES = -1
};

#define BATCH_BYTES (UINT64_C(64) << 20)

typedef struct cublas {
    struct lode_products base;
    const lode_device_ops_t *ops;
    lode_device_h device;
    lode_device_stream_t stream;
    void *handle;
    void *x[2], *out[2]; /* pinned, on the device */
    size_t x_bytes, out_bytes;
} cublas_t;

typedef struct resident {
    struct lode_matrix base;
    void *weights; /* (outs, ins) on the device */
} resident_t;

/* ------------------------------------------------------------------ library */

static struct {
    pthread_once_t once;
    char why_not[160]; /* "": it is loaded */
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*version)(void *handle, int *version);
    int (*set_stream)(void *handle, void *stream);
    const char *(*words)(int status);
    int (*multiply)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                    const void *a, int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c,
                    int type_c, int ldc, int sums, int algorithm);
} cublas = {.once = PTHREAD_ONCE_INIT};

static void *open_library(void)
{
    void *library = NULL;
    const char *names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"};
    for (size_t i = 0; !library && i < sizeof names / sizeof *names; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

static void load(void)
{
    const struct {
        const char *name;
        void *to;
    } names[] = {{"cublasCreate_v2", &cublas.create},      {"cublasDestroy_v2", &cublas.destroy},
                 {"cublasGetVersion_v2", &cublas.version}, {"cublasSetStream_v2", &cublas.set_stream},
                 {"cublasGetStatusString", &cublas.words}, {"cublasGemmEx", &cublas.multiply}};
    void *library = open_library();
    if (!library) {
        snprintf(cublas.why_not, sizeof cublas.why_not, "cuBLAS cannot be loaded: %.120s", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *symbol = dlsym(library, names[i].name);
        memcpy(names[i].to, &symbol, sizeof symbol); /* an object's pointer to a function's, as POSIX has it */
        if (!symbol)
            snprintf(cublas.why_not, sizeof cublas.why_not, "cuBLAS is too old: it has no %s", names[i].name);
    }
}

static lode_status_t check(int status, const char *call)
{
    return status == CUBLAS_OK
               ? LODE_OK
               : lode_fail(LODE_ERR_DEVICE, "%.*s of cuBLAS: %s", (int)strcspn(call, "("), call, cublas.words(status));
}
#define CUBLAS(call) LODE_TRY(check(cublas.call, #call))

static lode_status_t of_device(const cublas_t *p, lode_status_t status)
{
    return status == LODE_OK ? LODE_OK : lode_fail(status, "products on the GPU: %s", p->ops->error());
}
#define DEVICE(call) LODE_TRY(of_device(p, p->ops->call))

/* ----------------------------------------------------------------- matrices */

static lode_status_t load_rows(cublas_t *p, const resident_t *matrix, const lode_matrix_part_t *parts)
{
    uint32_t outs = matrix->base.outs, ins = matrix->base.ins;
    size_t row = ins * lode_element_bytes(p->base.type);
    uint32_t most = (uint32_t)(BATCH_BYTES / row + 1), rows = outs < most ? outs : most;
    void *plain = malloc(rows * row);
    lode_status_t status = plain ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u rows of weights", rows);
    for (uint32_t first = 0; status == LODE_OK && first < outs; first += rows) {
        uint32_t here = outs - first < rows ? outs - first : rows;
        lode_matrix_rows(parts, ins, first, here, p->base.type, plain);
        status = p->ops->copy(p->stream, (uint8_t *)matrix->weights + first * row, plain, here * row);
        if (status == LODE_OK)
            status = p->ops->stream_wait(p->stream);
        status = of_device(p, status);
    }
    free(plain);
    return status;
}

static lode_status_t create_resident(lode_products_h products, lode_matrix_h matrix, const lode_matrix_part_t *parts)
{
    cublas_t *p = (cublas_t *)products;
    resident_t *m = (resident_t *)matrix;
    size_t bytes = (size_t)matrix->outs * matrix->ins * lode_element_bytes(p->base.type);
    DEVICE(alloc(p->device, bytes, &m->weights));
    return load_rows(p, m, parts);
}

static void forget_resident(lode_matrix_h matrix)
{
    const cublas_t *p = (const cublas_t *)matrix->products;
    if (((resident_t *)matrix)->weights)
        p->ops->free(p->device, ((resident_t *)matrix)->weights);
}

/* -------------------------------------------------------------- multiplying */

/* Room in pinned and in device memory; what was there is lost. */
static lode_status_t grow(cublas_t *p, void *room[2], size_t *has, size_t bytes)
{
    if (bytes <= *has)
        return LODE_OK;
    *has = 0;
    if (room[0])
        p->ops->pinned_free(p->device, room[0]);
    if (room[1])
        p->ops->free(p->device, room[1]);
    room[0] = room[1] = NULL;
    DEVICE(pinned_alloc(p->device, bytes, &room[0]));
    DEVICE(alloc(p->device, bytes, &room[1]));
    *has = bytes;
    return LODE_OK;
}

/* Rows that fit the room. cuBLAS counts columns first: our rows are its columns. */
static lode_status_t multiply_batch(cublas_t *p, const resident_t *m, uint32_t rows, const void *x, bool add,
                                    float *out)
{
    const float one = 1, zero = 0;
    int type = p->base.type == LODE_BF16 ? CUBLAS_BF16 : CUBLAS_FP32, outs = (int)m->base.outs, ins = (int)m->base.ins;
    size_t n = (size_t)rows * m->base.outs, x_bytes = (size_t)rows * m->base.ins * lode_element_bytes(p->base.type);
    LODE_TRY(grow(p, p->x, &p->x_bytes, x_bytes));
    LODE_TRY(grow(p, p->out, &p->out_bytes, n * sizeof *out));
    memcpy(p->x[0], x, x_bytes);
    DEVICE(copy(p->stream, p->x[1], p->x[0], x_bytes));
    CUBLAS(multiply(p->handle, CUBLAS_TRANSPOSED, CUBLAS_NOT_TRANSPOSED, outs, (int)rows, ins, &one, m->weights, type,
                    ins, p->x[1], type, ins, &zero, p->out[1], CUBLAS_FP32, outs, CUBLAS_SUMS_FP32, CUBLAS_CHOOSES));
    DEVICE(copy(p->stream, p->out[0], p->out[1], n * sizeof *out));
    DEVICE(stream_wait(p->stream));
    const float *made = p->out[0];
    for (size_t i = 0; i < n; i++)
        out[i] = add ? out[i] + made[i] : made[i];
    return LODE_OK;
}

static lode_status_t multiply(lode_matrix_h matrix, uint32_t rows, const void *x, bool add, float *out)
{
    cublas_t *p = (cublas_t *)matrix->products;
    const resident_t *m = (const resident_t *)matrix;
    uint32_t widest = matrix->outs > matrix->ins ? matrix->outs : matrix->ins;
    uint32_t most = (uint32_t)(BATCH_BYTES / (widest * sizeof *out) + 1);
    int before;
    DEVICE(enter(p->device, &before));
    lode_status_t status = LODE_OK;
    for (uint32_t first = 0; status == LODE_OK && first < rows; first += most)
        status = multiply_batch(p, m, rows - first < most ? rows - first : most,
                                (const uint8_t *)x + (size_t)first * matrix->ins * lode_element_bytes(p->base.type),
                                add, out + (size_t)first * matrix->outs);
    if (status != LODE_OK)
        p->ops->stream_wait(p->stream); /* what was enqueued reads the rooms */
    p->ops->leave(p->device, before);
    return status;
}

/* ----------------------------------------------------------------- products */

static void destroy(lode_products_h products)
{
    cublas_t *p = (cublas_t *)products;
    if (p->handle)
        cublas.destroy(p->handle);
    for (int i = 0; i < 2; i++) {
        void (*give)(lode_device_h, void *) = i ? p->ops->free : p->ops->pinned_free;
        if (p->x[i])
            give(p->device, p->x[i]);
        if (p->out[i])
            give(p->device, p->out[i]);
    }
    if (p->stream)
        p->ops->stream_destroy(p->stream);
    if (p->device)
        p->ops->close(&p->device);
    free(p);
}

static lode_status_t start(cublas_t *p, uint32_t ordinal)
{
    int before, version;
    DEVICE(open(ordinal, &p->device));
    DEVICE(enter(p->device, &before));
    lode_status_t status = of_device(p, p->ops->stream_create(p->device, &p->stream));
    if (status == LODE_OK)
        status = check(cublas.create(&p->handle), "create");
    if (status == LODE_OK)
        status = check(cublas.set_stream(p->handle, p->stream), "set_stream");
    if (status == LODE_OK)
        status = check(cublas.version(p->handle, &version), "version");
    p->ops->leave(p->device, before);
    LODE_TRY(status);
    snprintf(p->base.name, sizeof p->base.name, "cuBLAS %d.%d, %s, GPU %u", version / 10000, version / 100 % 100,
             p->base.type == LODE_BF16 ? "bf16" : "fp32", ordinal);
    return LODE_OK;
}

lode_status_t lode_products_create_gpu(const lode_device_ops_t *ops, uint32_t ordinal, lode_dtype_t type,
                                       lode_products_h *products)
{
    static const lode_products_calls_t calls = {destroy, create_resident, forget_resident, multiply,
                                                sizeof(resident_t)};
    pthread_once(&cublas.once, load);
    if (cublas.why_not[0])
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s", cublas.why_not);
    cublas_t *p = calloc(1, sizeof *p);
    if (!p)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for products");
    p->base.calls = &calls;
    p->base.type = type;
    p->ops = ops;
    lode_status_t status = start(p, ordinal);
    if (status == LODE_OK)
        *products = &p->base;
    else
        destroy(&p->base);
    return status;
}
