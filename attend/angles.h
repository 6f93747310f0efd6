/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file angles.h
 * @brief Angles of rotations by −offset, kept from step to step.
 */
#ifndef LODE_ATTEND_ANGLES_H
#define LODE_ATTEND_ANGLES_H

#include "attend/inside.h"

/** Zeros are an empty one. It belongs to one rope: callers give the same frequencies and dim always. */
typedef struct lode_angles {
    lode_buffer_t table;   /**< float (count, D): D/2 cosines, then D/2 sines */
    lode_buffer_t offsets; /**< int64_t (count) */
    lode_buffer_t slots;   /**< uint32_t (slot_count): an entry's index + 1, 0: none */
    size_t slot_count;
    uint32_t count;
} lode_angles_t;

void lode_angles_free(lode_angles_t *angles);
/** Make room for @p more offsets; what is kept is forgotten first if there is more of it than @p kept. */
lode_status_t lode_angles_begin(lode_angles_t *angles, uint32_t dim, size_t more, size_t kept);
/** Index in the table of a rotation by −offset, computed if it is not there. It holds until lode_angles_begin(). */
uint32_t lode_angles_of(lode_angles_t *angles, const double *freq, uint32_t dim, int64_t offset);

#endif
