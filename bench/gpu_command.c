/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"
#include "bench/gpu.h"
#include "bench/job.h"

int lode_bench_gpu(int argc, char **argv)
{
    static const lode_gpubench_subject_t steps[] = {{"step", lode_gpubench_step}, {NULL, NULL}};
    if (lode_job_rank_hint())
        return LODE_EXIT_OK; /* started by mpirun: one rank measures, or they would disturb each other */
    int code = lode_gpubench_main("lodemark bench gpu", argc, argv, steps);
    lode_job_end();
    return code;
}
