/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of whole steps of `bench gpu` on an emulated device: nothing wrong, the cache hit as often as its size says.
 */
#include <math.h>
#include <mpi.h>
#include <string.h>

#include "bench/gpu.h"

static lode_status_t steps(lode_gpubench_t *bench)
{
    LODE_TRY(lode_gpubench_step(bench));
    if (bench->count != 3)
        return lode_fail(LODE_ERR_INTERNAL, "%u rows, not 3", bench->count);
    const lode_gpubench_row_t *cached = &bench->rows[0], *mixed = &bench->rows[1], *none = &bench->rows[2];
    if (cached->hit_rate != 1 || none->hit_rate != 0 || !(mixed->hit_rate > 0))
        return lode_fail(LODE_ERR_INTERNAL, "hit rates %g, %g, %g", cached->hit_rate, mixed->hit_rate, none->hit_rate);
    for (uint32_t i = 0; i < 3; i++)
        if (!isfinite(bench->rows[i].figure) || !isfinite(bench->rows[i].floor))
            return lode_fail(LODE_ERR_INTERNAL, "%s was not measured", bench->rows[i].format);
    return LODE_OK;
}

int main(int argc, char **argv)
{
    static const lode_gpubench_subject_t subjects[] = {{"step", steps}, {NULL, NULL}};
    char *words[] = {(char *)"--small", (char *)"--filter", (char *)"step/"};
    MPI_Init(&argc, &argv);
    int code = lode_gpubench_main("bench_gpu", 3, words, subjects);
    MPI_Finalize();
    return code;
}
