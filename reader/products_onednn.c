/* SPDX-License-Identifier: Apache-2.0 */
/* Products on the processor, by oneDNN. */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "reader/elementwise.h"
#include "reader/onednn.h"
#include "reader/products_inside.h"

enum {
    CHUNK_STEPS = 7,                     /* pieces have 1, 2, 4 … 64 rows: so many primitives a shape */
    CHUNK_ROWS = 1 << (CHUNK_STEPS - 1), /* */
    SLICE_BYTES = 256 << 10,             /* of weights: some 20 us to read, a few times what waking a thread takes */
    SLICE_COLUMNS = 64                   /* a slice's columns are a multiple of it */
};

/* A product of 2^step rows with one slice of weights. Its memories are those of one thread each. */
typedef struct kernel {
    dnnl_primitive_t primitive;
    dnnl_memory_t *sources, *outs, *scratches; /* (lanes) */
} kernel_t;

/* What slices of one size have in common, in whatever matrix. */
typedef struct shape {
    struct shape *next;
    uint32_t ins, columns, stride; /* stride: between rows of out */
    dnnl_memory_desc_t packed;
    kernel_t kernels[CHUNK_STEPS][2]; /* [rows][add] */
} shape_t;

/* What a thread needs for itself. */
typedef struct lane {
    dnnl_stream_t stream;
    void *scratch;
} lane_t;

typedef struct onednn {
    struct lode_products base;
    lode_team_h team;
    dnnl_data_type_t element;
    dnnl_engine_t engine;
    shape_t *shapes;
    lane_t *lanes;
    uint32_t lane_count;
    size_t scratch_bytes;
} onednn_t;

typedef struct slice {
    shape_t *shape;
    dnnl_memory_t weights;
    void *bytes;
} slice_t;

typedef struct packed {
    struct lode_matrix base;
    onednn_t *products;
    uint32_t width; /* columns of all slices but the last */
    uint32_t slice_count;
    slice_t *slices;
} packed_t;

/* ------------------------------------------------------------------- oneDNN */

static lode_status_t translate(dnnl_status_t status, const char *call)
{
    if (status == dnnl_success)
        return LODE_OK;
    if (status == dnnl_out_of_memory)
        return lode_fail(LODE_ERR_NO_MEMORY, "oneDNN had no memory for %s", call);
    if (status == dnnl_unimplemented)
        return lode_fail(LODE_ERR_UNSUPPORTED, "this machine's oneDNN cannot do %s", call);
    return lode_fail(LODE_ERR_INTERNAL, "oneDNN refused %s (status %d)", call, (int)status);
}

/** Return from the function unless a call of oneDNN succeeds. */
#define DNN_TRY(call) LODE_TRY(translate((call), #call))

/*
 * OpenMP's number of threads is a property of the calling thread. Ours is 1 while oneDNN computes: the team is what
 * shares out. Looked up at run time: oneDNN may be linked with any OpenMP or none.
 */
static struct {
    void (*set)(int);
    int (*get)(void);
} openmp;

static int one_thread(void)
{
    int before = openmp.get ? openmp.get() : 1;
    if (openmp.set)
        openmp.set(1);
    return before;
}

static void threads_again(int count)
{
    if (openmp.set)
        openmp.set(count);
}

static void find_openmp(void)
{
    void *set = dlsym(RTLD_DEFAULT, "omp_set_num_threads"), *get = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    if (!set || !get)
        return;
    memcpy(&openmp.set, &set, sizeof set);
    memcpy(&openmp.get, &get, sizeof get);
}

static bool can(dnnl_cpu_isa_t isa)
{
    return (dnnl_get_effective_cpu_isa() & isa) == isa;
}

lode_dtype_t lode_products_native(void)
{
    return can(dnnl_cpu_isa_avx512_core_bf16) ? LODE_BF16 : LODE_FP32;
}

void lode_products_describe(char text[96])
{
    const dnnl_version_t *version = dnnl_version();
    const char *isa = can(dnnl_cpu_isa_avx512_core_amx)    ? "AMX"
                      : can(dnnl_cpu_isa_avx512_core_bf16) ? "AVX-512 with bf16"
                      : can(dnnl_cpu_isa_avx512_core)      ? "AVX-512"
                      : can(dnnl_cpu_isa_avx2)             ? "AVX2"
                                                           : "neither AVX2 nor AVX-512";
    snprintf(text, 96, "%d.%d.%d, %s: products in %s", version->major, version->minor, version->patch, isa,
             lode_products_native() == LODE_BF16 ? "bf16" : "fp32");
}

static dnnl_data_type_t element_of(lode_dtype_t type)
{
    return type == LODE_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* ------------------------------------------------------------------- shapes */

static lode_status_t describe_rows(const onednn_t *products, const shape_t *shape, uint32_t rows,
                                   dnnl_memory_desc_t *source, dnnl_memory_desc_t *out)
{
    const dnnl_dims_t source_dims = {rows, shape->ins}, source_strides = {shape->ins, 1};
    const dnnl_dims_t out_dims = {rows, shape->columns}, out_strides = {shape->stride, 1};
    DNN_TRY(onednn_describe(source, source_dims, products->element, source_strides));
    DNN_TRY(onednn_describe(out, out_dims, dnnl_f32, out_strides));
    return LODE_OK;
}

static lode_status_t set_attributes(bool add, dnnl_primitive_attr_t *attributes)
{
    dnnl_post_ops_t operations;
    DNN_TRY(dnnl_primitive_attr_create(attributes));
    DNN_TRY(dnnl_primitive_attr_set_scratchpad_mode(*attributes, dnnl_scratchpad_mode_user));
    if (!add)
        return LODE_OK;
    DNN_TRY(dnnl_post_ops_create(&operations));
    dnnl_status_t status = onednn_sum(operations);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_post_ops(*attributes, operations);
    dnnl_post_ops_destroy(operations);
    return translate(status, "a product that adds to its result");
}

/* Describe a product of a shape. @p weights: the layout to use, or NULL for one that oneDNN likes. */
static lode_status_t describe_product(const onednn_t *products, const shape_t *shape, uint32_t rows, bool add,
                                      const dnnl_memory_desc_t *weights, dnnl_primitive_desc_t *made)
{
    dnnl_memory_desc_t source = ONEDNN_NO_SHAPE, out = ONEDNN_NO_SHAPE, any = ONEDNN_NO_SHAPE;
    dnnl_primitive_attr_t attributes = NULL;
    const dnnl_dims_t dims = {shape->ins, shape->columns};
    lode_status_t status = describe_rows(products, shape, rows, &source, &out);
    if (status == LODE_OK)
        status = translate(onednn_describe_any(&any, dims, products->element), "a layout of its own for weights");
    if (status == LODE_OK)
        status = set_attributes(add, &attributes);
    if (status == LODE_OK)
        status = translate(onednn_matmul(made, products->engine, &source, weights ? weights : &any, &out, attributes),
                           products->base.type == LODE_BF16 ? "products of matrices in bf16"
                                                            : "products of matrices in fp32");
    if (attributes)
        dnnl_primitive_attr_destroy(attributes);
    onednn_forget(&source);
    onednn_forget(&out);
    onednn_forget(&any);
    return status;
}

/* The layout of packed weights is what oneDNN wants for full pieces; smaller ones take it as it is. */
static lode_status_t choose_layout(onednn_t *products, shape_t *shape)
{
    dnnl_primitive_desc_t description;
    int threads = one_thread();
    lode_status_t status = describe_product(products, shape, CHUNK_ROWS, false, NULL, &description);
    threads_again(threads);
    LODE_TRY(status);
    status = translate(onednn_wanted(description, dnnl_query_weights_md, &shape->packed), "a layout for weights");
    dnnl_primitive_desc_destroy(description);
    return status;
}

static lode_status_t find_shape(onednn_t *products, uint32_t ins, uint32_t columns, uint32_t stride, shape_t **found)
{
    for (shape_t *shape = products->shapes; shape; shape = shape->next)
        if (shape->ins == ins && shape->columns == columns && shape->stride == stride) {
            *found = shape;
            return LODE_OK;
        }
    shape_t *shape = calloc(1, sizeof *shape);
    if (!shape)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a shape of products");
    *shape = (shape_t){.next = products->shapes, .ins = ins, .columns = columns, .stride = stride};
    lode_status_t status = choose_layout(products, shape);
    if (status != LODE_OK) {
        free(shape);
        return status;
    }
    products->shapes = *found = shape;
    return LODE_OK;
}

/* ------------------------------------------------------------------ kernels */

static void destroy_memories(dnnl_memory_t *memories, uint32_t count)
{
    for (uint32_t i = 0; memories && i < count; i++)
        if (memories[i])
            dnnl_memory_destroy(memories[i]);
    free(memories);
}

static void destroy_kernel(kernel_t *kernel, uint32_t lanes)
{
    if (kernel->primitive)
        dnnl_primitive_destroy(kernel->primitive);
    destroy_memories(kernel->sources, lanes);
    destroy_memories(kernel->outs, lanes);
    destroy_memories(kernel->scratches, lanes);
    *kernel = (kernel_t){0};
}

/* One memory without bytes for each lane. */
static lode_status_t create_memories(const onednn_t *products, const_dnnl_primitive_desc_t description,
                                     dnnl_query_t what, dnnl_memory_t **memories)
{
    dnnl_memory_desc_t wanted = ONEDNN_NO_SHAPE;
    *memories = calloc(products->lane_count, sizeof **memories);
    if (!*memories)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a product");
    DNN_TRY(onednn_wanted(description, what, &wanted));
    dnnl_status_t status = dnnl_success;
    for (uint32_t i = 0; status == dnnl_success && i < products->lane_count; i++)
        status = dnnl_memory_create(&(*memories)[i], ONEDNN_SHAPE(wanted), products->engine, DNNL_MEMORY_NONE);
    onednn_forget(&wanted);
    return translate(status, "a memory of a product");
}

/* Room for what a product puts aside, in each lane. */
static lode_status_t grow_scratch(onednn_t *products, const_dnnl_primitive_desc_t description)
{
    dnnl_memory_desc_t wanted = ONEDNN_NO_SHAPE;
    DNN_TRY(onednn_wanted(description, dnnl_query_scratchpad_md, &wanted));
    size_t bytes = dnnl_memory_desc_get_size(ONEDNN_SHAPE(wanted));
    onednn_forget(&wanted);
    if (bytes <= products->scratch_bytes)
        return LODE_OK;
    bytes = (bytes + 4095) & ~(size_t)4095;
    for (uint32_t i = 0; i < products->lane_count; i++) {
        void *grown = aligned_alloc(4096, bytes);
        if (!grown)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes that a product puts aside", bytes);
        free(products->lanes[i].scratch);
        products->lanes[i].scratch = grown;
    }
    products->scratch_bytes = bytes;
    return LODE_OK;
}

static lode_status_t create_kernel(onednn_t *products, shape_t *shape, uint32_t step, bool add)
{
    kernel_t made = {0};
    dnnl_primitive_desc_t description;
    LODE_TRY(describe_product(products, shape, 1u << step, add, &shape->packed, &description));
    lode_status_t status = translate(dnnl_primitive_create(&made.primitive, description), "a product of matrices");
    if (status == LODE_OK)
        status = create_memories(products, description, dnnl_query_src_md, &made.sources);
    if (status == LODE_OK)
        status = create_memories(products, description, dnnl_query_dst_md, &made.outs);
    if (status == LODE_OK)
        status = create_memories(products, description, dnnl_query_scratchpad_md, &made.scratches);
    if (status == LODE_OK)
        status = grow_scratch(products, description);
    dnnl_primitive_desc_destroy(description);
    if (status != LODE_OK) {
        destroy_kernel(&made, products->lane_count);
        return status;
    }
    shape->kernels[step][add] = made;
    return LODE_OK;
}

/* Make what a product of so many rows needs and no earlier one did. */
static lode_status_t prepare(packed_t *matrix, uint32_t rows, bool add)
{
    onednn_t *products = matrix->products;
    int threads = one_thread();
    lode_status_t status = LODE_OK;
    for (uint32_t step = 0; step < CHUNK_STEPS; step++) {
        if (step + 1 == CHUNK_STEPS ? rows < CHUNK_ROWS : !(rows >> step & 1))
            continue;
        for (uint32_t i = 0; i < matrix->slice_count && status == LODE_OK; i++)
            if (!matrix->slices[i].shape->kernels[step][add].primitive)
                status = create_kernel(products, matrix->slices[i].shape, step, add);
    }
    threads_again(threads);
    return status;
}

/* ----------------------------------------------------------------- products */

static lode_status_t create_lanes(onednn_t *products)
{
    products->lane_count = lode_team_threads(products->team);
    products->lanes = calloc(products->lane_count, sizeof *products->lanes);
    if (!products->lanes)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u threads of products", products->lane_count);
    for (uint32_t i = 0; i < products->lane_count; i++)
        DNN_TRY(dnnl_stream_create(&products->lanes[i].stream, products->engine, dnnl_stream_default_flags));
    return LODE_OK;
}

static void destroy_shapes(onednn_t *products)
{
    while (products->shapes) {
        shape_t *shape = products->shapes;
        products->shapes = shape->next;
        for (uint32_t step = 0; step < CHUNK_STEPS; step++)
            for (int add = 0; add < 2; add++)
                destroy_kernel(&shape->kernels[step][add], products->lane_count);
        onednn_forget(&shape->packed);
        free(shape);
    }
}

static void destroy(lode_products_h products)
{
    onednn_t *p = (onednn_t *)products;
    destroy_shapes(p);
    for (uint32_t i = 0; p->lanes && i < p->lane_count; i++) {
        if (p->lanes[i].stream)
            dnnl_stream_destroy(p->lanes[i].stream);
        free(p->lanes[i].scratch);
    }
    free(p->lanes);
    if (p->engine)
        dnnl_engine_destroy(p->engine);
    free(p);
}

/* ----------------------------------------------------------------- matrices */

static lode_status_t reorder(onednn_t *products, dnnl_memory_t from, dnnl_memory_t to, const dnnl_memory_desc_t *plain,
                             const dnnl_memory_desc_t *packed)
{
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    (void)plain;
    (void)packed;
    DNN_TRY(dnnl_reorder_primitive_desc_create(&description, ONEDNN_SHAPE(*plain), products->engine,
                                               ONEDNN_SHAPE(*packed), products->engine, NULL));
    dnnl_status_t status = dnnl_primitive_create(&primitive, description);
    dnnl_primitive_desc_destroy(description);
    DNN_TRY(status);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    status = dnnl_primitive_execute(primitive, products->lanes[0].stream, 2, arguments);
    if (status == dnnl_success)
        status = dnnl_stream_wait(products->lanes[0].stream);
    dnnl_primitive_destroy(primitive);
    return translate(status, "packing weights");
}

/* Pack rows of weights, which are columns of the product, that lie plain. */
static lode_status_t pack(onednn_t *products, const void *plain_bytes, slice_t *slice)
{
    const shape_t *shape = slice->shape;
    const dnnl_dims_t dims = {shape->ins, shape->columns}, strides = {1, shape->ins};
    dnnl_memory_desc_t plain = ONEDNN_NO_SHAPE;
    dnnl_memory_t from = NULL;
    size_t bytes = dnnl_memory_desc_get_size(ONEDNN_SHAPE(shape->packed));
    slice->bytes = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!slice->bytes)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes of weights", bytes);
    DNN_TRY(dnnl_memory_create(&slice->weights, ONEDNN_SHAPE(shape->packed), products->engine, slice->bytes));
    DNN_TRY(onednn_describe(&plain, dims, products->element, strides));
    lode_status_t status = translate(
        dnnl_memory_create(&from, ONEDNN_SHAPE(plain), products->engine, (void *)(uintptr_t)plain_bytes), "weights");
    if (status == LODE_OK) {
        int threads = one_thread();
        status = reorder(products, from, slice->weights, &plain, &shape->packed);
        threads_again(threads);
        dnnl_memory_destroy(from);
    }
    onednn_forget(&plain);
    return status;
}

static void choose_width(onednn_t *products, packed_t *matrix)
{
    uint64_t bytes = (uint64_t)matrix->base.outs * matrix->base.ins * lode_element_bytes(products->base.type);
    uint64_t slices = bytes / SLICE_BYTES;
    slices = slices < 1 ? 1 : slices > LODE_TEAM_THREADS ? LODE_TEAM_THREADS : slices;
    uint64_t width = (matrix->base.outs + slices - 1) / slices;
    width = (width + SLICE_COLUMNS - 1) / SLICE_COLUMNS * SLICE_COLUMNS;
    matrix->width = width < matrix->base.outs ? (uint32_t)width : matrix->base.outs;
    matrix->slice_count = (matrix->base.outs + matrix->width - 1) / matrix->width;
}

static lode_status_t fill_slices(packed_t *matrix, const lode_matrix_part_t *parts)
{
    onednn_t *products = matrix->products;
    uint8_t *plain = malloc((size_t)matrix->width * matrix->base.ins * lode_element_bytes(products->base.type));
    lode_status_t status =
        plain ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u rows of weights", matrix->width);
    for (uint32_t i = 0; i < matrix->slice_count && status == LODE_OK; i++) {
        uint32_t first = i * matrix->width, left = matrix->base.outs - first;
        uint32_t columns = left < matrix->width ? left : matrix->width;
        status = find_shape(products, matrix->base.ins, columns, matrix->base.outs, &matrix->slices[i].shape);
        if (status != LODE_OK)
            break;
        lode_matrix_rows(parts, matrix->base.ins, first, columns, products->base.type, plain);
        status = pack(products, plain, &matrix->slices[i]);
    }
    free(plain);
    return status;
}

static lode_status_t create_packed(lode_products_h products, lode_matrix_h matrix, const lode_matrix_part_t *parts)
{
    packed_t *packed = (packed_t *)matrix;
    packed->products = (onednn_t *)products;
    choose_width(packed->products, packed);
    packed->slices = calloc(packed->slice_count, sizeof *packed->slices);
    return packed->slices ? fill_slices(packed, parts) : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a matrix");
}

static void forget_packed(lode_matrix_h matrix)
{
    packed_t *packed = (packed_t *)matrix;
    for (uint32_t i = 0; packed->slices && i < packed->slice_count; i++) {
        if (packed->slices[i].weights)
            dnnl_memory_destroy(packed->slices[i].weights);
        free(packed->slices[i].bytes);
    }
    free(packed->slices);
}

/* ---------------------------------------------------------------- multiplying */

typedef struct multiplication {
    packed_t *matrix;
    uint32_t rows, full, chunks; /* full: pieces of CHUNK_ROWS rows; chunks: with the smaller ones after them */
    const uint8_t *x;
    float *out;
    bool add;
    _Atomic int failed; /* dnnl_status_t of a piece */
} multiplication_t;

/* Rows of the n-th piece: those after the full ones are the bits of the rest, highest first. */
static uint32_t chunk_step(const multiplication_t *m, uint32_t n, uint32_t *first)
{
    *first = n * CHUNK_ROWS;
    if (n < m->full)
        return CHUNK_STEPS - 1;
    uint32_t rest = m->rows % CHUNK_ROWS, step = 31 - (uint32_t)__builtin_clz(rest);
    *first = m->full * CHUNK_ROWS;
    for (n -= m->full; n; n--) {
        *first += 1u << step;
        rest -= 1u << step;
        step = 31 - (uint32_t)__builtin_clz(rest);
    }
    return step;
}

static dnnl_status_t execute(const kernel_t *kernel, const onednn_t *products, uint32_t thread, dnnl_memory_t weights,
                             const void *x, float *out)
{
    const lane_t *lane = &products->lanes[thread];
    dnnl_memory_t source = kernel->sources[thread], to = kernel->outs[thread], scratch = kernel->scratches[thread];
    dnnl_memory_set_data_handle(source, (void *)(uintptr_t)x);
    dnnl_memory_set_data_handle(to, out);
    dnnl_memory_set_data_handle(scratch, lane->scratch);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, to}, {DNNL_ARG_SCRATCHPAD, scratch}};
    return dnnl_primitive_execute(kernel->primitive, lane->stream, 4, arguments);
}

/* One piece: some rows by one slice. Neighbouring items share the slice. */
static void multiply_piece(void *context, uint32_t item, uint32_t thread)
{
    multiplication_t *m = context;
    packed_t *matrix = m->matrix;
    uint32_t n = item / m->chunks, first, step = chunk_step(m, item % m->chunks, &first);
    const slice_t *slice = &matrix->slices[n];
    const uint8_t *x = m->x + (size_t)first * matrix->base.ins * lode_element_bytes(matrix->products->base.type);
    float *out = m->out + (size_t)first * matrix->base.outs + (size_t)n * matrix->width;
    one_thread();
    dnnl_status_t status =
        execute(&slice->shape->kernels[step][m->add], matrix->products, thread, slice->weights, x, out);
    if (status != dnnl_success)
        atomic_store_explicit(&m->failed, status, memory_order_relaxed);
}

static lode_status_t multiply(lode_matrix_h whole, uint32_t rows, const void *x, bool add, float *out)
{
    packed_t *matrix = (packed_t *)whole;
    multiplication_t m = {.matrix = matrix, .rows = rows, .full = rows / CHUNK_ROWS, .x = x, .out = out, .add = add};
    m.chunks = m.full + (uint32_t)__builtin_popcount(rows % CHUNK_ROWS);
    LODE_TRY(prepare(matrix, rows, add));
    uint32_t items = m.chunks * matrix->slice_count;
    int threads = one_thread();
    if (items == 1)
        multiply_piece(&m, 0, 0);
    else if (items)
        lode_team_run(matrix->products->team, items, multiply_piece, &m);
    threads_again(threads);
    return translate((dnnl_status_t)m.failed, "a product of matrices");
}

lode_status_t lode_products_create(lode_team_h team, lode_dtype_t type, lode_products_h *products)
{
    static const lode_products_calls_t calls = {destroy, create_packed, forget_packed, multiply, sizeof(packed_t)};
    onednn_t *made = calloc(1, sizeof *made);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for products");
    const dnnl_version_t *version = dnnl_version();
    made->base.calls = &calls;
    made->team = team;
    made->base.type = type;
    made->element = element_of(type);
    snprintf(made->base.name, sizeof made->base.name, "oneDNN %d.%d.%d, %s", version->major, version->minor,
             version->patch, type == LODE_BF16 ? "bf16" : "fp32");
    find_openmp();
    lode_status_t status = translate(dnnl_engine_create(&made->engine, dnnl_cpu, 0), "an engine on the CPU");
    if (status == LODE_OK)
        status = create_lanes(made);
    if (status == LODE_OK)
        *products = &made->base;
    else
        destroy(&made->base);
    return status;
}
