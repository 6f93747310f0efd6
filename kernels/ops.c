/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "kernels/internal.h"
#ifdef LODEMARK_X86
#include <cpuid.h>
#endif

enum { SCALAR, AVX2, AVX512, LEVELS };

static const char *const names[LEVELS] = {"scalar", "avx2", "avx512"};
static lode_ops_t tables[LEVELS];
static bool compiled[LEVELS], usable[LEVELS];

#ifdef LODEMARK_X86
/* Which register files the operating system saves: 6 is SSE and AVX, 0xe6 adds the three parts of AVX-512. */
static uint32_t saved_registers(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void detect(void)
{
    uint32_t a, b, c = 0, d;
    uint32_t saved = saved_registers();
    __builtin_cpu_init();
    bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && (c & bit_PCLMUL);
    compiled[AVX2] = compiled[AVX512] = true;
    usable[AVX2] = (saved & 6) == 6 && has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") &&
                   __builtin_cpu_supports("bmi2");
    usable[AVX512] = usable[AVX2] && (saved & 0xe6) == 0xe6 && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl");
}
#else
static void detect(void) {}
#endif

static void fill(void)
{
    lode_higgs_prepare();
    compiled[SCALAR] = usable[SCALAR] = true;
    detect();
    for (int level = 0; level < LEVELS; level++)
        lode_scalar_fill(&tables[level]);
#ifdef LODEMARK_X86
    lode_avx2_fill(&tables[AVX2]);
    lode_avx2_fill(&tables[AVX512]);
    lode_avx512_fill(&tables[AVX512]);
#endif
    for (int level = 0; level < LEVELS; level++)
        tables[level].level = names[level];
}

static void prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}

lode_status_t lode_ops_get(const char *level, const lode_ops_t **ops)
{
    prepare();
    int chosen = LEVELS - 1;
    if (strcmp(level, "auto") == 0) {
        while (!usable[chosen])
            chosen--;
    } else {
        while (chosen >= 0 && strcmp(level, names[chosen]) != 0)
            chosen--;
        if (chosen < 0)
            return LODE_ERR_INVALID;
        if (!usable[chosen])
            return LODE_ERR_UNSUPPORTED;
    }
    *ops = &tables[chosen];
    return LODE_OK;
}

bool lode_backend_query(uint32_t i, lode_backend_t *backend)
{
    prepare();
    if (i < LEVELS)
        *backend = (lode_backend_t){names[i], compiled[i], usable[i]};
    else if (i == LEVELS)
        *backend = (lode_backend_t){"cuda", false, false};
    else
        return false;
    return true;
}
