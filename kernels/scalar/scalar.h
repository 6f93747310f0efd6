/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file scalar.h
 * @brief The reference form of every operation. Contracts are those of lode_ops_t.
 */
#ifndef LODE_KERNELS_SCALAR_H
#define LODE_KERNELS_SCALAR_H

#include "kernels/internal.h"

void lode_scalar_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n);
void lode_scalar_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n);
size_t lode_scalar_first_nonfinite(const float *x, size_t n);
void lode_scalar_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine);
void lode_scalar_hadamard(float *x, uint32_t rows, uint32_t dim);
void lode_scalar_project(const float *matrix, uint32_t dim, float *x, uint32_t rows);
void lode_scalar_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y);
void lode_scalar_gather(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes);

void lode_scalar_crc32c_prepare(void);
uint32_t lode_scalar_crc32c(uint32_t seed, const void *data, size_t bytes);

float lode_scalar_absmax(const float *x, uint32_t n);
/** Dot product in lane order (internal.h). */
float lode_scalar_lane_dot(const float *a, const float *b, uint32_t n);
/** Divide x by its rms norm rounded to bf16; the norm times @p back is returned. Zero stays zero. */
uint16_t lode_scalar_rms_scale(float *x, uint32_t dim, float back);

void lode_scalar_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                               uint8_t *record);
void lode_scalar_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v);
bool lode_scalar_record_check(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag);
/** Decode one vector; HIGGS stays in the transformed space. */
void lode_scalar_vector_decode(lode_format_t format, uint32_t dim, const uint8_t *codes, uint16_t scale, float *x);

void lode_scalar_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                   uint8_t *rows);
void lode_scalar_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                float *scratch);

void lode_scalar_landmark_place(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *rows, size_t n,
                                uint8_t *tiles, size_t first);
void lode_scalar_landmark_take(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t first,
                               size_t n, uint8_t *rows);
void lode_scalar_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                               lode_landmark_query_t *query);

float lode_scalar_logsumexp(const float *x, size_t n);
void lode_scalar_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n);
size_t lode_scalar_topk(const float *scores, size_t n, size_t k, uint32_t *out);
void lode_scalar_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes);
void lode_scalar_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                                uint32_t first, lode_notes_t *notes);
size_t lode_scalar_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out);

void lode_scalar_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                        const float *q, float *out, float *lse);
void lode_scalar_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                             const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse);
void lode_scalar_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim);

#endif
