/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the host can read what a caller points to. A rank without a GPU of its own may live in a program that has
 * one, and a pointer to device memory would else end that program. CUDA's driver is asked only if the program has
 * loaded it: looking makes no context, and loads nothing.
 */
#include <dlfcn.h>
#include <stdatomic.h>

#include "base/base.h"

/* cuPointerGetAttribute() of the driver's API, and what is asked of it. */
typedef int (*pointer_attribute_t)(void *data, int attribute, uintptr_t pointer);
enum { MEMORY_TYPE = 2, IS_MANAGED = 8, TYPE_DEVICE = 2 };

static _Atomic(pointer_attribute_t) driver;

void lode_find_cuda(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (!library)
        return;
    atomic_store(&driver, (pointer_attribute_t)dlsym(library, "cuPointerGetAttribute"));
    dlclose(library); /* the program's own handle keeps it */
}

lode_status_t lode_check_host(const char *what, const void *x)
{
    pointer_attribute_t attribute = atomic_load_explicit(&driver, memory_order_relaxed);
    unsigned type = 0, managed = 0;
    if (!attribute || !x || attribute(&type, MEMORY_TYPE, (uintptr_t)x) != 0 || type != TYPE_DEVICE)
        return LODE_OK;
    if (attribute(&managed, IS_MANAGED, (uintptr_t)x) == 0 && managed)
        return LODE_OK;
    return lode_fail(
        LODE_ERR_INVALID,
        "%s is in a GPU's memory, which this call cannot read: give a copy in host memory, or, to a step, a "
        "rank that runs its steps on that GPU (option device)",
        what);
}

lode_status_t lode_check_host_stream(const lode_stream_t *stream)
{
    LODE_TRY(lode_check_host("q", stream->q));
    LODE_TRY(lode_check_host("k", stream->k));
    LODE_TRY(lode_check_host("v", stream->v));
    LODE_TRY(lode_check_host("out", stream->out));
    LODE_TRY(lode_check_host("lse", stream->lse));
    return lode_check_host("lost_share", stream->lost_share);
}
