/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libnccl.so.2 for machines without GPUs: broadcasts among processes of one host, through shared memory.
 *
 * It is as strict as NCCL lets a program be: calls come back before they are done and are done after a few polls;
 * only then is the operation in its stream; an operation stays in the stream until all ranks have come to it, for ever
 * if one does not; ranks that come with other roots or sizes have made a mistake. Aborting frees this rank's streams
 * and leaves the others in theirs.
 *
 * LODEMARK_TEST_NCCL, as it is when a communicator is made, has this rank fail: "silent:n" never comes to operation n,
 * "error:n" reports an error there, "kill:n" kills the process there, "init" does not get connected.
 * Streams are those of tests/multi/plain_device.c, which the program exports.
 */
#include "nccl.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { RANKS = 16, CHUNK = 64 * 1024, POLLS = 3, VERSION = 22899 };

typedef struct posted {
    _Atomic int root;
    _Atomic size_t bytes;
} posted_t;

typedef struct shared {
    _Atomic int joined;
    _Atomic uint64_t entered[RANKS]; /* operations that each rank has come to */
    posted_t posted[RANKS][2];       /* a rank is at most one operation ahead of another */
    _Atomic uint64_t filled;         /* chunks, of all operations */
    _Atomic uint64_t taken[RANKS];
    uint8_t chunk[CHUNK];
} shared_t;

typedef struct operation {
    ncclComm_t comm;
    uint64_t number;
    uint8_t *buffer;
    size_t bytes, at;
    int root;
    bool entered, checked;
    uint64_t chunk;
    void *stream;
} operation_t;

typedef enum fault { FAULT_NONE, FAULT_SILENT, FAULT_ERROR, FAULT_KILL, FAULT_INIT } fault_t;

struct ncclComm {
    pthread_mutex_t lock;
    shared_t *shared;
    char name[64];
    int ranks, rank, polls;
    int references; /* the caller's, and operations in streams */
    bool connected, aborted;
    ncclResult_t error;
    operation_t *next; /* called, not yet in its stream */
    uint64_t operations, chunks;
    fault_t fault;
    uint64_t fault_at;
};

static void release(ncclComm_t comm)
{
    pthread_mutex_lock(&comm->lock);
    bool last = --comm->references == 0;
    pthread_mutex_unlock(&comm->lock);
    if (!last)
        return;
    munmap(comm->shared, sizeof *comm->shared);
    pthread_mutex_destroy(&comm->lock);
    free(comm->next);
    free(comm);
}

/* ------------------------------------------------------------- an operation */

/* Whether all ranks have come to it, with the same wish. */
static bool all_entered(operation_t *o)
{
    ncclComm_t comm = o->comm;
    shared_t *shared = comm->shared;
    for (int r = 0; r < comm->ranks; r++)
        if (atomic_load(&shared->entered[r]) <= o->number)
            return false;
    for (int r = 0; r < comm->ranks; r++) {
        const posted_t *posted = &shared->posted[r][o->number % 2];
        if (atomic_load(&posted->root) != o->root || atomic_load(&posted->bytes) != o->bytes)
            comm->error = ncclInvalidUsage;
    }
    return comm->error == ncclSuccess;
}

/* @return false: it stays in the stream */
static bool enter(operation_t *o)
{
    ncclComm_t comm = o->comm;
    posted_t *posted = &comm->shared->posted[comm->rank][o->number % 2];
    fault_t fault = o->number == comm->fault_at ? comm->fault : FAULT_NONE;
    if (fault == FAULT_KILL)
        raise(SIGKILL);
    if (fault == FAULT_ERROR)
        comm->error = ncclRemoteError;
    if (fault == FAULT_SILENT || fault == FAULT_ERROR)
        return false;
    atomic_store(&posted->root, o->root);
    atomic_store(&posted->bytes, o->bytes);
    atomic_store(&comm->shared->entered[comm->rank], o->number + 1);
    o->entered = true;
    return true;
}

/* The root's chunk may be replaced when all have it. */
static bool all_took(const operation_t *o)
{
    for (int r = 0; r < o->comm->ranks; r++)
        if (r != o->root && atomic_load(&o->comm->shared->taken[r]) < o->chunk)
            return false;
    return true;
}

static bool move_chunk(operation_t *o)
{
    shared_t *shared = o->comm->shared;
    size_t bytes = o->bytes - o->at < CHUNK ? o->bytes - o->at : CHUNK;
    bool root = o->comm->rank == o->root;
    if (root ? !all_took(o) : atomic_load(&shared->filled) <= o->chunk)
        return false;
    if (root)
        memcpy(shared->chunk, o->buffer + o->at, bytes);
    else
        memcpy(o->buffer + o->at, shared->chunk, bytes);
    o->at += bytes;
    o->chunk++;
    atomic_store(&shared->taken[o->comm->rank], o->chunk); /* the root's too: in the next operation it is another */
    if (root)
        atomic_store(&shared->filled, o->chunk);
    return true;
}

/* What the stream asks: whether it is over. */
static bool poll_operation(void *context)
{
    operation_t *o = context;
    ncclComm_t comm = o->comm;
    pthread_mutex_lock(&comm->lock);
    bool over = comm->aborted;
    if (!over && (o->entered || enter(o)) && (o->checked || (o->checked = all_entered(o)))) {
        while (o->at < o->bytes && move_chunk(o))
            ;
        over = o->at == o->bytes && (comm->rank != o->root || all_took(o));
    }
    pthread_mutex_unlock(&comm->lock);
    if (over) {
        release(comm);
        free(o);
    }
    return over;
}

static void push(operation_t *o)
{
    void (*to_stream)(void *, bool (*)(void *), void *);
    void *symbol = dlsym(RTLD_DEFAULT, "plain_stream_push");
    memcpy(&to_stream, &symbol, sizeof symbol);
    if (!symbol)
        abort();
    pthread_mutex_lock(&o->comm->lock);
    o->comm->references++;
    pthread_mutex_unlock(&o->comm->lock);
    to_stream(o->stream, poll_operation, o);
}

/* --------------------------------------------------------------------- calls */

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    *version = VERSION;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/lode-nccl-%d-%lx", (int)getpid(),
             (unsigned long)now.tv_sec * 1000000000ul + (unsigned long)now.tv_nsec);
    int fd = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    bool made = fd >= 0 && ftruncate(fd, sizeof(shared_t)) == 0;
    if (fd >= 0)
        close(fd);
    return made ? ncclSuccess : ncclSystemError;
}

static void read_fault(ncclComm_t comm)
{
    static const char *const names[] = {"silent:", "error:", "kill:"};
    const char *text = getenv("LODEMARK_TEST_NCCL");
    if (!text)
        return;
    comm->fault = strcmp(text, "init") == 0 ? FAULT_INIT : FAULT_NONE;
    for (int i = 0; i < 3; i++)
        if (strncmp(text, names[i], strlen(names[i])) == 0) {
            comm->fault = (fault_t)(FAULT_SILENT + i);
            comm->fault_at = strtoull(text + strlen(names[i]), NULL, 10);
        }
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    if (ranks > RANKS || rank >= ranks || config->magic != 0xcafebeef || config->blocking != 0)
        return ncclInvalidArgument;
    int fd = shm_open(id.internal, O_RDWR, 0600);
    if (fd < 0)
        return ncclSystemError;
    void *shared = mmap(NULL, sizeof(shared_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ncclComm_t made = calloc(1, sizeof *made);
    if (shared == MAP_FAILED || !made)
        return ncclSystemError;
    pthread_mutex_init(&made->lock, NULL);
    made->shared = shared;
    made->ranks = ranks;
    made->rank = rank;
    made->references = 1;
    snprintf(made->name, sizeof made->name, "%.63s", id.internal);
    read_fault(made);
    if (made->fault != FAULT_INIT)
        atomic_fetch_add(&made->shared->joined, 1);
    *comm = made;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    operation_t *begun = NULL;
    pthread_mutex_lock(&comm->lock);
    bool busy = false;
    if (!comm->connected) {
        busy = atomic_load(&comm->shared->joined) < comm->ranks;
        comm->connected = !busy;
        if (!busy && comm->rank == 0)
            shm_unlink(comm->name);
    } else if (comm->next) {
        busy = ++comm->polls < POLLS;
        if (!busy) {
            begun = comm->next;
            comm->next = NULL;
        }
    }
    *error = comm->error != ncclSuccess ? comm->error : busy ? ncclInProgress : ncclSuccess;
    pthread_mutex_unlock(&comm->lock);
    if (begun) /* not under the lock: the stream takes its own first */
        push(begun);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                                  ncclComm_t comm, cudaStream_t stream)
{
    if (!comm->connected || comm->next || send != receive || type != ncclUint8 || !stream || root < 0 ||
        root >= comm->ranks)
        return ncclInvalidUsage;
    operation_t *o = calloc(1, sizeof *o);
    if (!o)
        return ncclSystemError;
    *o = (operation_t){.comm = comm,
                       .number = comm->operations++,
                       .buffer = receive,
                       .bytes = count,
                       .root = root,
                       .chunk = comm->chunks,
                       .stream = stream};
    comm->chunks += (count + CHUNK - 1) / CHUNK;
    comm->polls = 0;
    comm->next = o;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    pthread_mutex_lock(&comm->lock);
    comm->aborted = true;
    if (comm->rank == 0 && !comm->connected)
        shm_unlink(comm->name);
    pthread_mutex_unlock(&comm->lock);
    release(comm);
    return ncclSuccess;
}

EXPORT const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError    ? "remote process exited or there was a network error"
           : result == ncclInvalidUsage ? "invalid usage"
                                        : "unhandled error";
}

EXPORT const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "said by the stand-in";
}
