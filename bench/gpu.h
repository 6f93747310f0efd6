/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file gpu.h
 * @brief What the files of `bench gpu` share.
 *
 * Each subject (gpu_scan.c, gpu_attend.c, …) adds its rows. A row's kernel is first compared with the scalar table or
 * with plain C in double on fresh random inputs, its outputs poisoned before; then it is measured in turns with its
 * floor: a slice of the one, a slice of the other, by the device's own events, medians of all slices. A slice is one
 * replay of a captured graph of several calls, over several sets of inputs in rotation, so that neither the gaps
 * between launches nor the second-level cache count.
 *
 * These files want kernels/, base/ and landmarks/choose.c alone, so that tests/gpu/kernels.c can run them where there
 * is nothing but nvcc and a C compiler. What needs the library (gpu_step.c) is a subject of `lodemark bench gpu` only.
 */
#ifndef LODE_BENCH_GPU_H
#define LODE_BENCH_GPU_H

#include "base/base.h"
#include "bench/median.h"
#include "kernels/device.h"

enum { LODE_GPU_ROWS = 512, LODE_GPU_MEMORIES = 256 };

/** One row of the table. What was not measured is NAN. */
typedef struct lode_gpubench_row {
    const char *kernel, *unit, *beside; /**< beside: what the floor is */
    char format[32];
    uint32_t group, head_dim;
    double figure, floor, ratio;
    double us;     /**< of one call */
    double target; /**< of the ratio, or of us if that is what is judged; NAN: none */
    bool at_most, judge_us;
    bool timed; /**< on a GPU, at its sizes: else a target says nothing */
    uint64_t wrong;
    double hit_rate; /**< of steps; NAN elsewhere */
    char note[200];  /**< why it was skipped, or what to know of it; "" if nothing */
} lode_gpubench_row_t;

typedef struct lode_gpubench_failure {
    const char *subject;
    char why[400];
} lode_gpubench_failure_t;

typedef struct lode_gpubench_memory {
    lode_memory_t kind;
    void *at;
} lode_gpubench_memory_t;

typedef struct lode_gpubench {
    lode_options_t options;
    const lode_device_ops_t *ops;
    const lode_ops_t *scalar;
    lode_device_h device;
    lode_device_info_t info;
    lode_device_stream_t stream;
    lode_device_event_t begin, end;
    bool emulated; /**< times say nothing */
    bool small;    /**< sizes that an emulator can do; times say nothing */
    const char *filter;
    uint32_t slices;
    uint64_t seed, random;
    lode_gpubench_memory_t memories[LODE_GPU_MEMORIES]; /**< of the subject that runs */
    uint32_t memory_count;
    lode_gpubench_row_t rows[LODE_GPU_ROWS];
    uint32_t count;
    lode_gpubench_failure_t failures[32];
    uint32_t failure_count;
} lode_gpubench_t;

/** Call the device's table; an error's sentence becomes ours. */
#define LODE_GPU(b, call)                                                      \
    do {                                                                       \
        lode_status_t gpu_status_ = (call);                                    \
        if (gpu_status_ != LODE_OK)                                            \
            return lode_fail(gpu_status_, "%s: %s", #call, (b)->ops->error()); \
    } while (0)

/* ------------------------------------------------------------------- memory */

/** Memory of the subject, freed when it ends; host memory is zero, other memory is not touched. */
lode_status_t lode_gpubench_alloc(lode_gpubench_t *bench, lode_memory_t kind, size_t bytes, void **at);
void lode_gpubench_free_last(lode_gpubench_t *bench);
void lode_gpubench_free_all(lode_gpubench_t *bench);
/** Copy and wait. */
lode_status_t lode_gpubench_copy(lode_gpubench_t *bench, void *to, const void *from, size_t bytes);
/** A copy of n bytes of the host's in new device memory. */
lode_status_t lode_gpubench_put(lode_gpubench_t *bench, const void *from, size_t bytes, void **at);
/** Fill `bytes` at `to` by repeating `sample` bytes of the host's. */
lode_status_t lode_gpubench_spread(lode_gpubench_t *bench, uint8_t *to, const void *from, size_t sample, size_t bytes);
/** Poison, and wait. */
lode_status_t lode_gpubench_poison(lode_gpubench_t *bench, void *at, size_t bytes);

/* ------------------------------------------------------------------- inputs */

uint64_t lode_gpubench_random(lode_gpubench_t *bench);
uint32_t lode_gpubench_below(lode_gpubench_t *bench, uint32_t n);
double lode_gpubench_uniform(lode_gpubench_t *bench); /**< (0, 1) */
void lode_gpubench_gaussian(lode_gpubench_t *bench, float scale, float *x, size_t n);
/** n numbers 0 … n−1, in random order. */
void lode_gpubench_shuffle(lode_gpubench_t *bench, uint32_t *numbers, size_t n);
/** The first if the sizes are a GPU's, the second if they are an emulator's. */
static inline uint64_t lode_gpubench_size(const lode_gpubench_t *bench, uint64_t full, uint64_t small)
{
    return bench->small ? small : full;
}

/* ---------------------------------------------------------------- measuring */

/** What is measured: enqueue call number `turn`, which takes its inputs from set turn mod `sets`. */
typedef struct lode_gpubench_work {
    lode_status_t (*enqueue)(lode_gpubench_t *bench, void *context, uint32_t turn);
    void *context;
    uint32_t sets; /**< 0: 1 */
    bool plain;    /**< cannot be captured in a graph: calls are enqueued one by one */
} lode_gpubench_work_t;

/** Seconds a call of two works in turns, as medians. @p floor may be NULL. */
lode_status_t lode_gpubench_measure(lode_gpubench_t *bench, const lode_gpubench_work_t *figure,
                                    const lode_gpubench_work_t *floor, double *seconds, double *floor_seconds);

/** Whether the filter lets a row through. */
bool lode_gpubench_wanted(const lode_gpubench_t *bench, const char *kernel, const char *format);
/** A new row with nothing measured. */
lode_gpubench_row_t *lode_gpubench_row(lode_gpubench_t *bench, const char *kernel, const char *format, uint32_t group,
                                       uint32_t head_dim);
/**
 * Measure a row of bytes: figure and floor in GB/s of what each moves, the ratio figure / floor.
 * @param bytes, floor_bytes  what one call of each counts as moved
 */
lode_status_t lode_gpubench_rate(lode_gpubench_t *bench, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                 double bytes, const lode_gpubench_work_t *floor, double floor_bytes);
/** Measure a row of times: figure and floor in µs, the ratio figure / floor (at most is better). */
lode_status_t lode_gpubench_time(lode_gpubench_t *bench, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                 const lode_gpubench_work_t *floor);
/** As above, of what `figure` takes longer than `without`, which is the same but for the call of interest. */
lode_status_t lode_gpubench_extra(lode_gpubench_t *bench, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                  const lode_gpubench_work_t *without, const lode_gpubench_work_t *floor);
/** Print a row that is finished. */
void lode_gpubench_row_end(const lode_gpubench_row_t *row);

/** The floor of most rows: a kernel that only reads, and a copy; the context is a stretch. */
typedef struct lode_gpubench_stretch {
    uint8_t *from, *to; /**< to: of copies; of reads 4 bytes for a sum */
    size_t bytes;       /**< of one call */
    uint32_t sets;      /**< call number t begins at from + (t mod sets) · bytes */
} lode_gpubench_stretch_t;
lode_status_t lode_gpubench_read_enqueue(lode_gpubench_t *bench, void *stretch, uint32_t turn);
lode_status_t lode_gpubench_copy_enqueue(lode_gpubench_t *bench, void *stretch, uint32_t turn);
/** A stretch of device memory of its own, filled with random bytes, to be read in calls of `bytes`. */
lode_status_t lode_gpubench_read_floor(lode_gpubench_t *bench, size_t bytes, lode_gpubench_stretch_t *stretch,
                                       lode_gpubench_work_t *work);
/** How many sets of `bytes` are needed so that the second-level cache does not hold them all. */
uint32_t lode_gpubench_sets(const lode_gpubench_t *bench, size_t bytes);

/* -------------------------------------------------------------------- pages */

/** lode_format_name(), which is not in kernels/. */
const char *lode_gpubench_format_name(lode_format_t format);

/** A view over blocks in pages, one row and its choice for each KV head, as a step has them in device memory. */
typedef struct lode_gpubench_pages {
    lode_format_t format;
    uint32_t dim, group, heads;
    uint32_t blocks, masks;
    uint32_t per_head, records; /**< chosen; of all heads, each its own */
    uint32_t *tokens;           /**< (heads, per_head) on the host, ascending */
    uint64_t *wanted;           /**< (masks) on the host, as want() should leave them */
    uint32_t *numbers;          /**< (heads, per_head) on the host: the number of each record, in the order of masks */
    lode_device_block_t *host_blocks;
    lode_device_row_t *rows; /**< from here on in device memory */
    lode_device_part_t *parts;
    lode_device_block_t *device_blocks;
    lode_device_chosen_t *chosen;
    uint32_t *device_tokens, *first;
    uint64_t *device_wanted; /**< as `wanted` */
} lode_gpubench_pages_t;

/**
 * @param tokens  of the view, cut in so many blocks of unlike lengths  @param per_head  chosen among them at random
 * @param held  where every other page is held, in pinned memory; NULL: all pages are elsewhere
 */
lode_status_t lode_gpubench_pages_create(lode_gpubench_t *bench, lode_format_t format, uint32_t dim, uint32_t group,
                                         uint32_t heads, uint32_t tokens, uint32_t blocks, uint32_t per_head,
                                         const uint8_t *held, lode_gpubench_pages_t *pages);

/* ----------------------------------------------------------------- subjects */

typedef struct lode_gpubench_subject {
    const char *name;
    lode_status_t (*run)(lode_gpubench_t *bench);
} lode_gpubench_subject_t;

lode_status_t lode_gpubench_copies(lode_gpubench_t *bench);
lode_status_t lode_gpubench_prepare(lode_gpubench_t *bench);
lode_status_t lode_gpubench_scan(lode_gpubench_t *bench);
lode_status_t lode_gpubench_select(lode_gpubench_t *bench);
lode_status_t lode_gpubench_cache(lode_gpubench_t *bench);
lode_status_t lode_gpubench_gather(lode_gpubench_t *bench);
lode_status_t lode_gpubench_attend(lode_gpubench_t *bench);
lode_status_t lode_gpubench_merge(lode_gpubench_t *bench);
/** Makes a cluster of this process alone; initialises MPI. */
lode_status_t lode_gpubench_step(lode_gpubench_t *bench);

/** All subjects that need no library; ends with a NULL name. */
extern const lode_gpubench_subject_t lode_gpubench_kernels[];

/** The command: options, device, subjects, report. @param extra  more subjects, or NULL @return the exit code */
int lode_gpubench_main(const char *command, int argc, char **argv, const lode_gpubench_subject_t *extra);

void lode_gpubench_head(const lode_gpubench_t *bench);
/** The last lines of the table, and the same as JSON if @p path is given. */
lode_status_t lode_gpubench_report(const lode_gpubench_t *bench, const char *path);

/* gpu_floor.cu */
#ifdef __cplusplus
extern "C"
#endif
    /** Read bytes (a multiple of 16) of device memory; the sum goes to *sink if it is a number that it never is. */
    lode_status_t
    lode_gpubench_floor_read(lode_device_stream_t stream, const void *from, size_t bytes, uint32_t processors,
                             uint32_t *sink);

#endif
