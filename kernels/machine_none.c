/* SPDX-License-Identifier: Apache-2.0 */
/* A processor for which there is nothing but the scalar level. */
#include "kernels/internal.h"

const lode_level_t lode_machine_levels[] = {{NULL}};
