/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mpi.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/fetch.h"

enum { TAG_PORT = 1, TAG_DONE = 2, PATIENCE_MS = 5000, CLIENT_MS = 60000 };

/* ----------------------------------------------------------------- children */

uint16_t lode_fetch_free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint16_t port = 0;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &length) == 0)
        port = ntohs(address.sin_port);
    if (fd >= 0)
        close(fd);
    return port;
}

/* The child is no rank: what mpirun told this process would make it join the job. */
static char **environment_without_job(void)
{
    size_t count = 0, kept = 0;
    while (environ[count])
        count++;
    char **copy = calloc(count + 1, sizeof *copy);
    for (size_t i = 0; copy && i < count; i++)
        if (strncmp(environ[i], "OMPI_", 5) != 0 && strncmp(environ[i], "PMIX_", 5) != 0 &&
            strncmp(environ[i], "UCX_MM_ERROR_HANDLING", 21) != 0) /* a floor without our error handling */
            copy[kept++] = environ[i];
    return copy;
}

pid_t lode_fetch_spawn(char *const argv[], int out)
{
    posix_spawn_file_actions_t actions;
    char **environment = environment_without_job();
    pid_t child = -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (out >= 0)
        posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    else
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (!environment || posix_spawnp(&child, argv[0], &actions, NULL, argv, environment) != 0)
        child = -1;
    posix_spawn_file_actions_destroy(&actions);
    free(environment);
    return child;
}

/* Connecting would use up the one connection that ucx_perftest accepts, so the kernel's table is asked. */
static bool in_listen_table(const char *path, uint16_t port)
{
    char line[512];
    bool found = false;
    FILE *table = fopen(path, "r");
    while (table && !found && fgets(line, sizeof line, table)) {
        unsigned local, state;
        if (sscanf(line, "%*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &local, &state) == 2)
            found = local == port && state == 0x0a;
    }
    if (table)
        fclose(table);
    return found;
}

bool lode_fetch_listens(uint16_t port, pid_t child)
{
    for (int waited = 0; waited < PATIENCE_MS; waited += 5) {
        int status;
        if (in_listen_table("/proc/net/tcp", port) || in_listen_table("/proc/net/tcp6", port))
            return true;
        if (waitpid(child, &status, WNOHANG) == child)
            return false;
        usleep(5000);
    }
    return false;
}

bool lode_fetch_reap(pid_t child, int ms)
{
    int status = -1;
    for (int waited = 0; child > 0; waited += 2) {
        if (waitpid(child, &status, WNOHANG) != 0)
            return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (waited == ms)
            kill(child, SIGTERM);
        if (waited >= ms + 1000)
            kill(child, SIGKILL);
        usleep(2000);
    }
    return false;
}

/* ------------------------------------------------------------- ucx_perftest */

/* The owner's side. @return the port, 0 if it could not be started. */
static uint16_t serve(pid_t *server)
{
    char port[8];
    uint16_t number = lode_fetch_free_port();
    snprintf(port, sizeof port, "%u", number);
    char *const argv[] = {"ucx_perftest", "-p", port, NULL};
    *server = number ? lode_fetch_spawn(argv, -1) : -1;
    return *server > 0 && lode_fetch_listens(number, *server) ? number : 0;
}

/* The last line of its CSV is: iterations, three latencies, average and overall MB/s, two rates. */
static double read_rate(int fd)
{
    char text[4096];
    size_t used = 0;
    ssize_t got;
    double rate = 0;
    while (used < sizeof text - 1 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0)
        used += (size_t)got;
    text[used] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        double overall;
        if (sscanf(line, "%*u,%*f,%*f,%*f,%*f,%lf", &overall) == 1)
            rate = overall * 0x1p20 / 1e6; /* its megabytes are 2^20 bytes */
    }
    return rate;
}

static double ask(const char *host, uint16_t number, const char *test, uint64_t bytes, uint32_t iterations)
{
    char port[8], size[24], count[16];
    int ends[2];
    snprintf(port, sizeof port, "%u", number);
    snprintf(size, sizeof size, "%" PRIu64, bytes);
    snprintf(count, sizeof count, "%u", iterations);
    char *const argv[] = {"ucx_perftest",
                          (char *)(uintptr_t)host,
                          "-p",
                          port,
                          "-t",
                          (char *)(uintptr_t)test,
                          "-s",
                          size,
                          "-n",
                          count,
                          "-w",
                          "20",
                          "-f",
                          "-v",
                          NULL};
    if (pipe2(ends, O_CLOEXEC))
        return 0;
    pid_t client = lode_fetch_spawn(argv, ends[1]);
    close(ends[1]);
    double rate = client > 0 ? read_rate(ends[0]) : 0;
    close(ends[0]);
    return lode_fetch_reap(client, CLIENT_MS) ? rate : 0;
}

/* The owner's half of a slice: serve until the requester says how it went, without polling meanwhile. */
static bool serve_slice(void)
{
    enum { NAP_US = 5000, LAST_MS = 2000 };
    char host[256] = {0};
    pid_t server;
    int well = 0, done = 0;
    MPI_Request request;
    uint16_t port = serve(&server);
    gethostname(host, sizeof host - 1);
    MPI_Send(&port, 1, MPI_UINT16_T, 0, TAG_PORT, MPI_COMM_WORLD);
    MPI_Send(host, sizeof host, MPI_CHAR, 0, TAG_PORT, MPI_COMM_WORLD);
    MPI_Irecv(&well, 1, MPI_INT, 0, TAG_DONE, MPI_COMM_WORLD, &request);
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done)
        usleep(NAP_US);
    lode_fetch_reap(server, well ? LAST_MS : 0);
    return well;
}

/* The requester's half. @return MB/s, 0 if it failed. */
static double ask_slice(const lode_fetch_bench_t *b, const char *test, uint64_t bytes, uint32_t iterations)
{
    char host[256];
    uint16_t port;
    MPI_Recv(&port, 1, MPI_UINT16_T, 1, TAG_PORT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Recv(host, sizeof host, MPI_CHAR, 1, TAG_PORT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    double rate = port ? ask(b->one_host ? "127.0.0.1" : host, port, test, bytes, iterations) : 0;
    int well = rate > 0;
    MPI_Send(&well, 1, MPI_INT, 1, TAG_DONE, MPI_COMM_WORLD);
    return rate;
}

void lode_fetch_floor_slice(const lode_fetch_bench_t *b, const char *test, uint32_t *iterations, lode_slices_t *slices)
{
    enum { FIRST_ITERATIONS = 200, MOST_ITERATIONS = 100000 };
    double rate = 0;
    bool well;
    if (slices->skipped[0] || b->job.rank > 1)
        return;
    if (b->job.rank == 1) {
        well = serve_slice();
    } else {
        uint64_t bytes = 0;
        (void)lode_parse_bytes(lode_config_get(b->config, "reply"), &bytes); /* the table has checked it */
        rate = ask_slice(b, test, bytes, *iterations ? *iterations : FIRST_ITERATIONS);
        well = rate > 0;
        if (well && *iterations) /* the first only says how many fill a slice */
            slices->rate[slices->count++] = rate;
        double wanted = rate * 1e6 / (double)bytes * b->slice_ms * 1e-3;
        *iterations = wanted < FIRST_ITERATIONS  ? FIRST_ITERATIONS
                      : wanted > MOST_ITERATIONS ? MOST_ITERATIONS
                                                 : (uint32_t)wanted;
    }
    if (!well)
        snprintf(slices->skipped, sizeof slices->skipped,
                 "ucx_perftest -t %s did not run (is it installed, and does it know the transport?)", test);
}
