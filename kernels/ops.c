/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "kernels/device.h"
#include "kernels/internal.h"

enum { MOST_LEVELS = 8 };

/* All names there are, on any machine: those that this build lacks are unsupported, not unknown. */
static const char *const elsewhere[] = {"avx2", "avx512", "avx512vnni", "avx512vbmi", "amx"};

static lode_ops_t tables[MOST_LEVELS];
static bool usable[MOST_LEVELS];
static int levels;

/* A level has all of the one below it, and is usable only if that one is. */
static void fill(void)
{
    lode_higgs_prepare();
    lode_scalar_fill(&tables[0]);
    tables[0].level = "scalar";
    usable[0] = true;
    levels = 1;
    for (const lode_level_t *level = lode_machine_levels; level->name && levels < MOST_LEVELS; level++, levels++) {
        tables[levels] = tables[levels - 1];
        usable[levels] = usable[levels - 1] && level->usable();
        if (usable[levels]) /* else filling alone could take instructions that the processor has not */
            level->fill(&tables[levels]);
        tables[levels].level = level->name;
    }
}

static void prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}

static bool known_elsewhere(const char *name)
{
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (strcmp(name, elsewhere[i]) == 0)
            return true;
    return false;
}

lode_status_t lode_ops_get(const char *level, const lode_ops_t **ops)
{
    prepare();
    int chosen = levels - 1;
    if (strcmp(level, "auto") == 0) {
        while (!usable[chosen])
            chosen--;
    } else {
        while (chosen >= 0 && strcmp(level, tables[chosen].level) != 0)
            chosen--;
        if (chosen < 0)
            return known_elsewhere(level) ? LODE_ERR_UNSUPPORTED : LODE_ERR_INVALID;
        if (!usable[chosen])
            return LODE_ERR_UNSUPPORTED;
    }
    *ops = &tables[chosen];
    return LODE_OK;
}

/* A device counts if it can be opened: it is there, new enough, and this build has code for it. */
static bool device_usable(const lode_device_ops_t *ops)
{
    uint32_t devices;
    lode_device_h device;
    if (ops->count(&devices) != LODE_OK)
        return false;
    for (uint32_t i = 0; i < devices; i++)
        if (ops->open(i, &device) == LODE_OK) {
            ops->close(&device);
            return true;
        }
    return false;
}

static lode_backend_t query_cuda(void)
{
    const lode_device_ops_t *ops;
    bool compiled = lode_device_get("cuda", &ops) == LODE_OK;
    return (lode_backend_t){"cuda", compiled, compiled && device_usable(ops)};
}

bool lode_backend_query(uint32_t i, lode_backend_t *backend)
{
    prepare();
    if (i < (uint32_t)levels)
        *backend = (lode_backend_t){tables[i].level, true, usable[i]};
    else if (i == (uint32_t)levels)
        *backend = query_cuda();
    else
        return false;
    return true;
}
