/* SPDX-License-Identifier: Apache-2.0 */
/* The levels of x86-64, and which of them this processor and its system have. Compiled without their flags. */
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/machine_x86.h"

/* Which register files the operating system saves: 6 is SSE and AVX, 0xe6 adds the three parts of AVX-512, 0x60000 the
 * tiles of AMX. */
static uint32_t saved_registers(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_avx2(void)
{
    uint32_t a, b, c = 0, d;
    __builtin_cpu_init();
    return (saved_registers() & 6) == 6 && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && (c & bit_PCLMUL) &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("sse4.2") &&
           __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2");
}

static bool has_avx512(void)
{
    return (saved_registers() & 0xe6) == 0xe6 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void)
{
    return __builtin_cpu_supports("avx512vnni");
}

static bool has_vbmi(void)
{
    return __builtin_cpu_supports("avx512vbmi");
}

/* A process must ask for the tiles before it uses them. */
static bool has_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    const uint32_t tile_and_int8 = 1u << 24 | 1u << 25;
    uint32_t a, b, c, d = 0;
    return (saved_registers() & 0x60000) == 0x60000 && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & tile_and_int8) == tile_and_int8 && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

const lode_level_t lode_machine_levels[] = {
    {"avx2", lode_avx2_fill, has_avx2},
    {"avx512", lode_avx512_fill, has_avx512},
    {"avx512vnni", lode_avx512vnni_fill, has_vnni},
    {"avx512vbmi", lode_avx512vbmi_fill, has_vbmi},
    {"amx", lode_amx_fill, has_amx},
    {NULL},
};
