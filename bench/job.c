/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/job.h"

static uint32_t from_launcher(const char *const *names, uint32_t otherwise)
{
    for (; *names; names++) {
        const char *value = getenv(*names);
        uint64_t number;
        if (value && lode_parse_count(value, &number) == LODE_OK)
            return (uint32_t)number;
    }
    return otherwise;
}

uint32_t lode_job_rank_hint(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", NULL};
    return from_launcher(names, 0);
}

uint32_t lode_job_local_rank_hint(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", NULL};
    return from_launcher(names, 0);
}

/* SLURM_NTASKS is also set for a program that sbatch starts alone, so it counts only beside PMIX_RANK. */
uint32_t lode_job_ranks_hint(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    static const char *const slurm[] = {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", NULL};
    return from_launcher(names, getenv("PMIX_RANK") ? from_launcher(slurm, 1) : 1);
}

static bool mpi_runs(void)
{
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

int lode_job_refuse(int code, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    bool together = lode_job_ranks_hint() > 1;
    if (together && !mpi_runs())
        MPI_Init(NULL, NULL);
    if (lode_job_rank_hint() == 0)
        fprintf(stderr, "lodemark: %s\n", line);
    if (together) {
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Finalize();
    }
    return code;
}

lode_status_t lode_job_begin(lode_job_t *job)
{
    int provided, rank, ranks;
    if (!mpi_runs() && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return lode_fail(LODE_ERR_MPI, "MPI_Init_thread failed");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    job->rank = (uint32_t)rank;
    job->ranks = (uint32_t)ranks;
    return LODE_OK;
}

void lode_job_end(void)
{
    if (mpi_runs())
        MPI_Finalize();
}

lode_status_t lode_job_agree(lode_status_t status)
{
    int rank, first, mine;
    if (!mpi_runs())
        return status;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    mine = status == LODE_OK ? INT32_MAX : rank;
    MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (first == INT32_MAX)
        return LODE_OK;
    char sentence[512] = {0};
    int code = (int)status;
    if (rank == first)
        snprintf(sentence, sizeof sentence, "%s", lode_error_message());
    MPI_Bcast(&code, 1, MPI_INT, first, MPI_COMM_WORLD);
    MPI_Bcast(sentence, sizeof sentence, MPI_CHAR, first, MPI_COMM_WORLD);
    return lode_fail((lode_status_t)code, "%s", sentence);
}

void lode_job_wait(const lode_job_t *job)
{
    MPI_Request request;
    int done = job->ranks < 2;
    if (!done)
        MPI_Ibarrier(MPI_COMM_WORLD, &request);
    while (!done) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (!done)
            usleep(1000);
    }
}

void lode_job_sum(const lode_job_t *job, double *values, size_t n)
{
    if (job->ranks > 1)
        MPI_Allreduce(MPI_IN_PLACE, values, (int)n, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

void lode_job_sum_counts(const lode_job_t *job, uint64_t *values, size_t n)
{
    if (job->ranks > 1)
        MPI_Allreduce(MPI_IN_PLACE, values, (int)n, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
}

void lode_job_max(const lode_job_t *job, const double *mine, double *largest, size_t n)
{
    if (job->ranks > 1)
        MPI_Allreduce(mine, largest, (int)n, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    else
        memcpy(largest, mine, n * sizeof *mine);
}

/* @return seconds there and back; of use on rank 0. */
static double round_trip(const lode_job_t *job, char *data, int bytes)
{
    int last = (int)job->ranks - 1;
    double begin = MPI_Wtime();
    if (job->rank == 0) {
        MPI_Send(data, bytes, MPI_CHAR, last, 0, MPI_COMM_WORLD);
        MPI_Recv(data, bytes, MPI_CHAR, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else if (job->rank == (uint32_t)last) {
        MPI_Recv(data, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(data, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
    }
    return MPI_Wtime() - begin;
}

double lode_job_link(const lode_job_t *job)
{
    enum { BYTES = 4 << 20, WARM = 2, TRIES = 9 };
    static char data[BYTES];
    double seconds[TRIES], rate;
    if (job->ranks < 2)
        return 0;
    for (int i = -WARM; i < TRIES; i++)
        seconds[i < 0 ? 0 : i] = round_trip(job, data, BYTES);
    rate = 2.0 * BYTES * 8 / lode_median(seconds, TRIES) / 1e9;
    MPI_Bcast(&rate, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    return rate;
}

lode_status_t lode_job_check_output(const char *path)
{
    bool there = access(path, F_OK) == 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    close(fd);
    if (!there)
        unlink(path);
    return LODE_OK;
}

json_t *lode_job_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

void lode_job_set_number(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, lode_job_number(value));
}

void lode_job_set_count(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

void lode_job_set_text(json_t *object, const char *key, const char *value)
{
    json_object_set_new(object, key, value ? json_string(value) : json_null());
}

lode_status_t lode_job_write_json(const char *path, const json_t *object)
{
    if (!path)
        return LODE_OK;
    FILE *file = fopen(path, "w");
    if (!file)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    int wrong = json_dumpf(object, file, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    wrong |= fputc('\n', file) == EOF;
    wrong |= fclose(file);
    return wrong ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno)) : LODE_OK;
}
