/* SPDX-License-Identifier: Apache-2.0 */
/* For programs that run on a real GPU: there is no emulator, and nothing can be set of it. */
#include <string.h>

#include "tests/emulator/emulator.h"

bool lode_emulator_here(void)
{
    return false;
}

void lode_emulator_get(lode_emulator_t *settings)
{
    memset(settings, 0, sizeof *settings);
}

void lode_emulator_set(const lode_emulator_t *settings)
{
    (void)settings;
}

void lode_emulator_count(lode_emulator_counts_t *counts)
{
    memset(counts, 0, sizeof *counts);
}
