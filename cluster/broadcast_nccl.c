/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NCCL behind cluster/broadcast.h. Compiled against its header, loaded at run time: a machine without it, or with one
 * that is too old, gets a reason and not a program that does not start.
 *
 * The emulator's stand-in (tests/emulator/nccl.c) is all that this has run with.
 */
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/broadcast.h"

#define LIBRARY "libnccl.so.2"
/* ncclCommInitRankConfig with blocking = 0, and ncclGetLastError(), are as old as this. */
#define OLDEST 21400

_Static_assert(sizeof(ncclUniqueId) <= sizeof(lode_broadcast_id_t), "an id fits");

struct lode_broadcast {
    ncclComm_t comm;
};

/* ------------------------------------------------------------------ library */

static struct {
    pthread_once_t once;
    char why_not[160]; /* "": it is loaded */
    int version;
    ncclResult_t (*get_version)(int *);
    ncclResult_t (*get_unique_id)(ncclUniqueId *);
    ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
    ncclResult_t (*async_error)(ncclComm_t, ncclResult_t *);
    ncclResult_t (*broadcast)(const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*abort)(ncclComm_t);
    const char *(*error_string)(ncclResult_t);
    const char *(*last_error)(ncclComm_t);
} nccl = {.once = PTHREAD_ONCE_INIT};

static void load(void)
{
    const struct {
        const char *name;
        void *to;
    } names[] = {
        {"ncclGetVersion", &nccl.get_version},      {"ncclGetUniqueId", &nccl.get_unique_id},
        {"ncclCommInitRankConfig", &nccl.init},     {"ncclCommGetAsyncError", &nccl.async_error},
        {"ncclBroadcast", &nccl.broadcast},         {"ncclCommAbort", &nccl.abort},
        {"ncclGetErrorString", &nccl.error_string}, {"ncclGetLastError", &nccl.last_error},
    };
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(nccl.why_not, sizeof nccl.why_not, "NCCL cannot be loaded: %.130s", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *symbol = dlsym(library, names[i].name);
        memcpy(names[i].to, &symbol, sizeof symbol); /* an object's pointer to a function's, as POSIX has it */
        if (!symbol) {
            snprintf(nccl.why_not, sizeof nccl.why_not, "%s is too old: it has no %s", LIBRARY, names[i].name);
            return;
        }
    }
    if (nccl.get_version(&nccl.version) != ncclSuccess || nccl.version < OLDEST)
        snprintf(nccl.why_not, sizeof nccl.why_not, "NCCL %d is too old: %d is the least", nccl.version, OLDEST);
}

lode_status_t lode_broadcast_library(uint32_t *version)
{
    pthread_once(&nccl.once, load);
    if (nccl.why_not[0])
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s", nccl.why_not);
    *version = (uint32_t)nccl.version;
    return LODE_OK;
}

/* Turn the code of a call into ours. @p comm: whose last words are wanted; NULL: none has any. */
static lode_status_t check(ncclResult_t code, const char *call, ncclComm_t comm)
{
    if (code == ncclSuccess || code == ncclInProgress)
        return LODE_OK;
    const char *words = comm ? nccl.last_error(comm) : NULL;
    return lode_fail(LODE_ERR_DEVICE, "%.*s: %s%s%.120s", (int)strcspn(call, "("), call, nccl.error_string(code),
                     words && *words ? ": " : "", words ? words : "");
}
#define NCCL(call, comm) check(nccl.call, "nccl " #call, (comm))

/* ------------------------------------------------------------- communicators */

lode_status_t lode_broadcast_identify(lode_broadcast_id_t *id)
{
    uint32_t version;
    ncclUniqueId made;
    LODE_TRY(lode_broadcast_library(&version));
    LODE_TRY(NCCL(get_unique_id(&made), NULL));
    *id = (lode_broadcast_id_t){{0}};
    memcpy(id->bytes, made.internal, sizeof made.internal);
    return LODE_OK;
}

lode_status_t lode_broadcast_create(const lode_broadcast_id_t *id, uint32_t ranks, uint32_t rank,
                                    lode_broadcast_h *broadcast)
{
    uint32_t version;
    ncclUniqueId unique;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    LODE_TRY(lode_broadcast_library(&version));
    lode_broadcast_h made = calloc(1, sizeof *made);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a communicator's handle");
    memcpy(unique.internal, id->bytes, sizeof unique.internal);
    config.blocking = 0;
    lode_status_t status = NCCL(init(&made->comm, (int)ranks, unique, (int)rank, &config), NULL);
    if (status != LODE_OK) {
        lode_broadcast_abort(&made);
        return status;
    }
    *broadcast = made;
    return LODE_OK;
}

lode_status_t lode_broadcast_poll(lode_broadcast_h broadcast, bool *ready)
{
    ncclResult_t state;
    LODE_TRY(NCCL(async_error(broadcast->comm, &state), broadcast->comm));
    LODE_TRY(check(state, "nccl communicator", broadcast->comm));
    *ready = state == ncclSuccess;
    return LODE_OK;
}

lode_status_t lode_broadcast_send(lode_broadcast_h broadcast, uint32_t root, void *buffer, size_t bytes, void *stream)
{
    return NCCL(broadcast(buffer, buffer, bytes, ncclUint8, (int)root, broadcast->comm, (cudaStream_t)stream),
                broadcast->comm);
}

void lode_broadcast_abort(lode_broadcast_h *handle)
{
    lode_broadcast_h broadcast = *handle;
    *handle = NULL;
    if (broadcast && broadcast->comm)
        nccl.abort(broadcast->comm);
    free(broadcast);
}
