/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file machine_x86.h
 * @brief Fillers of x86-64's levels, each over the one before.
 */
#ifndef LODE_KERNELS_MACHINE_X86_H
#define LODE_KERNELS_MACHINE_X86_H

#include "kernels/internal.h"

void lode_avx2_fill(lode_ops_t *ops);
void lode_avx512_fill(lode_ops_t *ops);
void lode_avx512vnni_fill(lode_ops_t *ops);
void lode_avx512vbmi_fill(lode_ops_t *ops);
void lode_amx_fill(lode_ops_t *ops);

#endif
