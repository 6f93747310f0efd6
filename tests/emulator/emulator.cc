/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of a block as fibers, and what they do together: barriers, shuffles, matrix products. */
#include "internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace
{

enum { MOST_THREADS = 1024, STACK_BYTES = 128 << 10, GUARD_BYTES = 4096, SHARED_BYTES = 227 << 10, MOST_COPIES = 256 };

enum state { READY, IN_WARP, IN_BLOCK, ENDED };

struct copy {
    void *to;
    const void *from;
    uint32_t bytes, group;
};

#if defined(__x86_64__)
typedef void *context;
#else
typedef ucontext_t context;
#endif

struct fiber {
    context at;
    char *stack;
    state now;
    uint32_t mask;    /* of the collective it waits in */
    const char *what; /* its name */
    void (*all_warp)(uint32_t, void *const[32]);
    void (*all_block)(uint32_t, void *const[]);
    void *mine;
    uint32_t copies, group; /* asynchronous copies that are under way, and groups committed */
    copy copy_of[MOST_COPIES];
};

fiber *fibers;
context scheduler;
uint32_t threads, current, live;
uint32_t ready[MOST_THREADS], ready_first, ready_count;        /* a ring */
uint32_t in_warp[MOST_THREADS / 32], ended[MOST_THREADS / 32]; /* lanes of each warp */
uint32_t in_block;                                             /* threads that wait at a barrier */
const char *kernel_name;
const std::function<void()> *body;
bool running;
alignas(128) unsigned char shared_memory[SHARED_BYTES];
uint64_t random_state = 1;

#if defined(__x86_64__)
/* Save what a call must keep on this stack, and go on on the other. */
extern "C" void lode_emulated_switch(void **from, void *to);
asm(R"(
    .text
    .globl lode_emulated_switch
    .hidden lode_emulated_switch
    .type lode_emulated_switch, @function
lode_emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size lode_emulated_switch, . - lode_emulated_switch
)");
#endif

void switch_to(context *from, context *to)
{
#if defined(__x86_64__)
    lode_emulated_switch(from, *to);
#else
    swapcontext(from, to);
#endif
}

void set_thread(uint32_t t)
{
    current = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

uint32_t pick(void)
{
    /* in turn, the last first, or any: by the block's mood */
    uint32_t mood = (uint32_t)(random_state >> 60) % 3, last = (ready_first + --ready_count) % MOST_THREADS;
    if (mood == 1) {
        uint32_t t = ready[ready_first];
        ready_first = (ready_first + 1) % MOST_THREADS;
        return t;
    }
    if (mood == 2)
        std::swap(ready[last], ready[(ready_first + lode_emulated_random() % (ready_count + 1)) % MOST_THREADS]);
    return ready[last];
}

void leave(void)
{
    fiber *f = &fibers[current];
    uint32_t me = current;
    switch_to(&f->at, &scheduler);
    set_thread(me);
}

void wake(uint32_t t)
{
    fibers[t].now = READY;
    in_warp[t / 32] &= ~(1u << t % 32);
    ready[(ready_first + ready_count++) % MOST_THREADS] = t;
}

/* If all of the mask are there, or have ended, let them go on. */
void try_warp(uint32_t t)
{
    fiber *f = &fibers[t];
    uint32_t first = t & ~31u, mask = f->mask, there = mask & ~ended[t / 32];
    void *lanes[32] = {};
    if (there & ~in_warp[t / 32])
        return;
    for (uint32_t l = 0; l < 32; l++) {
        if (!(there >> l & 1))
            continue;
        fiber *other = &fibers[first + l];
        if (other->mask != mask) { /* it may be with others first, unless they wait for one another */
            if (other->mask >> (t & 31) & 1)
                lode_emulated_stop("lane %u waits in %s with mask %08x, lane %u in %s with mask %08x", t & 31, f->what,
                                   mask, l, other->what, other->mask);
            return;
        }
        if (other->what != f->what && strcmp(other->what, f->what) != 0)
            lode_emulated_stop("lane %u waits in %s, lane %u of the same mask in %s", t & 31, f->what, l, other->what);
        lanes[l] = other->mine;
    }
    f->all_warp(mask, lanes);
    for (uint32_t l = 0; l < 32; l++)
        if (lanes[l])
            wake(first + l);
}

void try_block(void)
{
    if (in_block == 0 || in_block != live)
        return;
    static void *all[MOST_THREADS];
    fiber *first = NULL;
    for (uint32_t t = 0; t < threads; t++) {
        fiber *f = &fibers[t];
        all[t] = f->now == IN_BLOCK ? f->mine : NULL;
        if (f->now == IN_BLOCK && !first)
            first = f;
        if (f->now == IN_BLOCK && f->what != first->what && strcmp(f->what, first->what) != 0)
            lode_emulated_stop("some threads wait in %s, others in %s", first->what, f->what);
    }
    first->all_block(threads, all);
    in_block = 0;
    for (uint32_t t = 0; t < threads; t++)
        if (all[t])
            wake(t);
}

[[noreturn]] void fiber_main(void)
{
    for (;;) {
        set_thread(current);
        (*body)();
        fibers[current].now = ENDED;
        live--;
        switch_to(&fibers[current].at, &scheduler);
    }
}

void prepare_fiber(fiber *f)
{
#if defined(__x86_64__)
    void **top = (void **)(f->stack + STACK_BYTES);
    *--top = NULL; /* the stack of a function that was called is 8 off 16 */
    *--top = (void *)fiber_main;
    top -= 6;
    memset(top, 0, 6 * sizeof *top);
    f->at = top;
#else
    getcontext(&f->at);
    f->at.uc_stack.ss_sp = f->stack;
    f->at.uc_stack.ss_size = STACK_BYTES;
    f->at.uc_link = NULL;
    makecontext(&f->at, (void (*)(void))fiber_main, 0);
#endif
    f->now = READY;
    f->copies = f->group = 0;
}

void allocate_fibers(void)
{
    if (fibers)
        return;
    size_t each = STACK_BYTES + GUARD_BYTES;
    char *stacks = (char *)mmap(NULL, MOST_THREADS * each, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fibers = (fiber *)calloc(MOST_THREADS, sizeof *fibers);
    if (stacks == MAP_FAILED || !fibers)
        lode_emulated_stop("no memory for the stacks of threads");
    for (uint32_t t = 0; t < MOST_THREADS; t++) {
        mprotect(stacks + t * each, GUARD_BYTES, PROT_NONE);
        fibers[t].stack = stacks + t * each + GUARD_BYTES;
    }
}

void say_waiting(void)
{
    for (uint32_t t = 0, said = 0; t < threads && said < 12; t++)
        if (fibers[t].now == IN_WARP || fibers[t].now == IN_BLOCK) {
            fprintf(stderr, "  thread %u waits in %s, mask %08x\n", t, fibers[t].what,
                    fibers[t].now == IN_WARP ? fibers[t].mask : 0xffffffffu);
            said++;
        }
}

void run_block(size_t shared_bytes)
{
    memset(shared_memory, 0xa9, shared_bytes);
    live = threads;
    in_block = 0;
    ready_first = ready_count = 0;
    for (uint32_t t = 0; t < threads; t++) {
        prepare_fiber(&fibers[t]);
        ready[ready_count++] = t;
    }
    for (uint32_t w = 0; w < MOST_THREADS / 32; w++) {
        in_warp[w] = 0;
        ended[w] = 32 * w + 32 <= threads ? 0 : 32 * w >= threads ? ~0u : ~0u << threads % 32;
    }
    lode_emulated_random();
    if (random_state & 8) /* warps in an order of their own */
        for (uint32_t i = threads; i > 1; i--)
            std::swap(ready[i - 1], ready[lode_emulated_random() % i]);
    while (live > 0) {
        if (ready_count == 0) {
            say_waiting();
            lode_emulated_stop("deadlock: all of its %u threads that have not ended wait", live);
        }
        set_thread(pick());
        uint32_t me = current;
        switch_to(&scheduler, &fibers[me].at);
        if (fibers[me].now != ENDED)
            continue;
        ended[me / 32] |= 1u << me % 32;
        for (uint32_t t = me & ~31u; t < threads && t < (me & ~31u) + 32; t++)
            if (fibers[t].now == IN_WARP)
                try_warp(t);
        try_block();
    }
}

fiber *mine(void)
{
    if (!running)
        lode_emulated_stop("device code runs on the host");
    return &fibers[current];
}

} // namespace

uint64_t lode_emulated_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

void lode_emulated_stop(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "emulator: ");
    if (running)
        fprintf(stderr, "%s, block (%u,%u,%u) of (%u,%u,%u), thread (%u,%u,%u) of (%u,%u,%u): ", kernel_name,
                blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, threadIdx.x, threadIdx.y,
                threadIdx.z, blockDim.x, blockDim.y, blockDim.z);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    abort();
}

void lode_emulated_run(dim3 grid, dim3 block, size_t shared_bytes, const char *name,
                       const std::function<void()> &thread)
{
    allocate_fibers();
    random_state ^= lode_emulated.seed * 0x9e3779b97f4a7c15u;
    kernel_name = name;
    body = &thread;
    gridDim = grid;
    blockDim = block;
    threads = block.x * block.y * block.z;
    running = true;
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    std::vector<uint32_t> order(blocks);
    for (uint64_t i = 0; i < blocks; i++)
        order[i] = (uint32_t)i;
    for (uint64_t i = blocks; i > 1; i--)
        std::swap(order[i - 1], order[lode_emulated_random() % i]);
    for (uint32_t b : order) {
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
        run_block(shared_bytes);
    }
    running = false;
}

void lode_emulate_warp(uint32_t mask, const char *what, void (*all)(uint32_t mask, void *const lanes[32]), void *with)
{
    fiber *f = mine();
    if (!(mask >> (current & 31) & 1))
        lode_emulated_stop("%s by lane %u, which is not in its mask %08x", what, current & 31, mask);
    f->mask = mask;
    f->what = what;
    f->all_warp = all;
    f->mine = with;
    f->now = IN_WARP;
    in_warp[current / 32] |= 1u << current % 32;
    try_warp(current);
    leave();
}

void lode_emulate_block(const char *what, void (*all)(uint32_t n, void *const threads[]), void *with)
{
    fiber *f = mine();
    f->what = what;
    f->all_block = all;
    f->mine = with;
    f->now = IN_BLOCK;
    in_block++;
    try_block();
    leave();
}

void lode_emulate_yield(void)
{
    mine();
    wake(current);
    leave();
}

void *lode_emulate_shared(void)
{
    return shared_memory;
}
uint32_t lode_emulate_lane(void)
{
    return current & 31;
}

/* ---------------------------------------------- matrices: the fragments of PTX's mma and ldmatrix */

namespace
{

struct product {
    int32_t *d;
    float *df;
    const uint32_t *a, *b;
    bool a_signed;
    double (*half)(const uint32_t *words, uint32_t i);
};

template <class T> T *all_lanes(void *const lanes[32], const char *what, uint32_t lane)
{
    if (!lanes[lane])
        lode_emulated_stop("%s without lane %u: all 32 must be there", what, lane);
    return (T *)lanes[lane];
}

int32_t byte_of(const uint32_t *words, uint32_t i, bool is_signed)
{
    uint8_t byte = (uint8_t)(words[i / 4] >> 8 * (i % 4));
    return is_signed ? (int8_t)byte : byte;
}

/*
 * m16n8k32: with g = lane / 4 and t = lane % 4, byte i (0 … 15) of a lane's A is row g (+8 if i/4 is odd), column
 * 4t + i%4 (+16 if i ≥ 8); byte i (0 … 7) of B row 4t + i%4 (+16 if i ≥ 4), column g; element i of D row g (+8 if
 * i ≥ 2), column 2t + i%2.
 */
void product_8(uint32_t, void *const lanes[32])
{
    static int32_t a[16][32], b[32][8], d[16][8];
    for (uint32_t l = 0; l < 32; l++) {
        const product *p = all_lanes<product>(lanes, "lode_mma", l);
        uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 16; i++)
            a[g + (i / 4 % 2) * 8][4 * t + i % 4 + (i / 8) * 16] = byte_of(p->a, i, p->a_signed);
        for (uint32_t i = 0; i < 8; i++)
            b[4 * t + i % 4 + (i / 4) * 16][g] = byte_of(p->b, i, true);
        for (uint32_t i = 0; i < 4; i++)
            d[g + (i / 2) * 8][2 * t + i % 2] = p->d[i];
    }
    for (uint32_t m = 0; m < 16; m++)
        for (uint32_t k = 0; k < 32; k++)
            for (uint32_t n = 0; n < 8; n++)
                d[m][n] = (int32_t)((uint32_t)d[m][n] + (uint32_t)(a[m][k] * b[k][n]));
    for (uint32_t l = 0; l < 32; l++)
        for (uint32_t i = 0; i < 4; i++)
            ((product *)lanes[l])->d[i] = d[l / 4 + (i / 2) * 8][2 * (l % 4) + i % 2];
}

double bf16_of(const uint32_t *words, uint32_t i)
{
    return __uint_as_float((words[i / 2] >> 16 * (i % 2) & 0xffff) << 16);
}

double fp16_of(const uint32_t *words, uint32_t i)
{
    uint32_t half = words[i / 2] >> 16 * (i % 2), magnitude = half & 0x7fff;
    /* in a float's fields the exponent is 112 too small */
    double x = magnitude < 0x7c00 ? __uint_as_float(magnitude << 13) * 0x1p112 : magnitude > 0x7c00 ? NAN : INFINITY;
    return half & 0x8000 ? -x : x;
}

/*
 * m16n8k16: element i (0 … 7) of a lane's A is row g (+8 if i/2 is odd), column 2t + i%2 (+8 if i ≥ 4); element i
 * (0 … 3) of B row 2t + i%2 (+8 if i ≥ 2), column g; D as above. How the hardware rounds the sum is its own affair;
 * here it is summed in double and rounded once.
 */
void product_halves(uint32_t, void *const lanes[32])
{
    static double a[16][16], b[16][8], d[16][8];
    for (uint32_t l = 0; l < 32; l++) {
        const product *p = all_lanes<product>(lanes, "lode_mma", l);
        uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 8; i++)
            a[g + (i / 2 % 2) * 8][2 * t + i % 2 + (i / 4) * 8] = p->half(p->a, i);
        for (uint32_t i = 0; i < 4; i++)
            b[2 * t + i % 2 + (i / 2) * 8][g] = p->half(p->b, i);
        for (uint32_t i = 0; i < 4; i++)
            d[g + (i / 2) * 8][2 * t + i % 2] = p->df[i];
    }
    for (uint32_t m = 0; m < 16; m++)
        for (uint32_t k = 0; k < 16; k++)
            for (uint32_t n = 0; n < 8; n++)
                d[m][n] += a[m][k] * b[k][n];
    for (uint32_t l = 0; l < 32; l++)
        for (uint32_t i = 0; i < 4; i++)
            ((product *)lanes[l])->df[i] = (float)d[l / 4 + (i / 2) * 8][2 * (l % 4) + i % 2];
}

struct matrix_load {
    uint32_t *r;
    const uint16_t *row;
    bool transposed;
};

/* x4: lanes 8i … 8i+7 name the rows of matrix i; a lane gets elements 2t and 2t+1 of row g, or of column g. */
void load_matrices(uint32_t, void *const lanes[32])
{
    for (uint32_t l = 0; l < 32; l++) {
        const matrix_load *load = all_lanes<matrix_load>(lanes, "lode_ldmatrix", l);
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t g = l / 4, t = l % 4, two[2];
            for (uint32_t e = 0; e < 2; e++) {
                uint32_t row = load->transposed ? 2 * t + e : g, column = load->transposed ? g : 2 * t + e;
                two[e] = all_lanes<matrix_load>(lanes, "lode_ldmatrix", 8 * i + row)->row[column];
            }
            load->r[i] = two[0] | two[1] << 16;
        }
    }
}

} // namespace

void lode_emulate_mma_8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], bool a_signed)
{
    product p = {d, NULL, a, b, a_signed, NULL};
    lode_emulate_warp(0xffffffffu, a_signed ? "lode_mma_s8" : "lode_mma_u8s8", product_8, &p);
}

void lode_emulate_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    product p = {NULL, d, a, b, false, bf16_of};
    lode_emulate_warp(0xffffffffu, "lode_mma_bf16", product_halves, &p);
}

void lode_emulate_mma_fp16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    product p = {NULL, d, a, b, false, fp16_of};
    lode_emulate_warp(0xffffffffu, "lode_mma_fp16", product_halves, &p);
}

void lode_emulate_ldmatrix(uint32_t r[4], const void *row, bool transposed)
{
    if ((uintptr_t)row % 16)
        lode_emulated_stop("lode_ldmatrix of a row at %p: not 16-byte aligned", row);
    uint32_t loaded[4];
    matrix_load load = {loaded, (const uint16_t *)row, transposed};
    lode_emulate_warp(0xffffffffu, transposed ? "lode_ldmatrix_x4_trans" : "lode_ldmatrix_x4", load_matrices, &load);
    memcpy(r, loaded, sizeof loaded);
}

/* ------------------------------------------------- asynchronous copies: done when they are waited for */

void lode_emulate_copy_async(void *to, const void *from, uint32_t bytes)
{
    fiber *f = mine();
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes)
        lode_emulated_stop("lode_copy_async%u from %p to %p: not aligned", bytes, from, to);
    if (f->copies == MOST_COPIES)
        lode_emulated_stop("more than %u asynchronous copies of a thread are under way", MOST_COPIES);
    f->copy_of[f->copies++] = {to, from, bytes, f->group};
}

void lode_emulate_copy_commit(void)
{
    mine()->group++;
}

void lode_emulate_copy_wait(uint32_t groups_left)
{
    fiber *f = mine();
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->copies; i++) {
        copy c = f->copy_of[i];
        if (c.group + groups_left >= f->group)
            f->copy_of[kept++] = c;
        else
            memcpy(c.to, c.from, c.bytes);
    }
    f->copies = kept;
}
