/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file translate.h
 * @brief Messages that travel between ranks and to clients alike, from and to what the public header has.
 */
#ifndef LODE_PROTO_TRANSLATE_H
#define LODE_PROTO_TRANSLATE_H

#include "base/base.h"
#include "lodemark.pb-c.h"

/** The message borrows @p rope. */
void lode_geometry_pack(const lode_geometry_t *geometry, double rope[7], Lodemark__GeometrySet *message);
/** What a message says, not yet checked to make sense; NULL is malformed. @return LODE_ERR_FORMAT. */
lode_status_t lode_geometry_unpack(const Lodemark__GeometrySet *message, lode_geometry_t *geometry);
/** The numbers of a rank; its rank, host and whether it is alive travel apart. */
void lode_rank_numbers_pack(const lode_rank_stats_t *stats, Lodemark__RankStats *message);
void lode_rank_numbers_unpack(const Lodemark__RankStats *message, lode_rank_stats_t *stats);

#endif
