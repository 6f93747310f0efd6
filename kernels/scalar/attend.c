/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/scalar/scalar.h"

/* One row's running softmax: take in a record with logit `logit`. */
static void take(uint32_t dim, float logit, const float *v, float *greatest, float *sum, float *out)
{
    if (logit > *greatest) {
        float shrink = expf(*greatest - logit);
        *sum *= shrink;
        for (uint32_t i = 0; i < dim; i++)
            out[i] *= shrink;
        *greatest = logit;
    }
    float weight = expf(logit - *greatest);
    *sum += weight;
    for (uint32_t i = 0; i < dim; i++)
        out[i] += weight * v[i];
}

void lode_scalar_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                             const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse)
{
    float k[LODE_MAX_DIM], v[LODE_MAX_DIM];
    float greatest[LODE_MAX_GROUP], sum[LODE_MAX_GROUP], logit[LODE_MAX_GROUP];
    size_t bytes = lode_format_vector_bytes(format, dim);
    if (format == LODE_FORMAT_HIGGS4) /* attend in the space of the codes: there and back once, not per record */
        lode_scalar_hadamard(q, count * group, dim);
    memset(out, 0, sizeof *out * group * dim);
    for (uint32_t g = 0; g < group; g++) {
        greatest[g] = -INFINITY;
        sum[g] = 0;
    }
    for (size_t i = 0; i < n; i++) {
        const uint8_t *end = records[i] + 2 * bytes;
        const float *mine = q + (size_t)(of ? of[i] : 0) * group * dim;
        lode_scalar_vector_decode(format, dim, records[i], lode_load16(end), k);
        lode_scalar_vector_decode(format, dim, records[i] + bytes, lode_load16(end + 2), v);
        for (uint32_t g = 0; g < group; g++) {
            lode_scalar_dot_rows(mine + g * dim, k, 1, dim, &logit[g]);
            take(dim, logit[g], v, &greatest[g], &sum[g], out + g * dim);
        }
    }
    for (uint32_t g = 0; g < group; g++) {
        lse[g] = n ? greatest[g] + logf(sum[g]) : -INFINITY;
        for (uint32_t i = 0; n && i < dim; i++)
            out[g * dim + i] /= sum[g];
    }
    if (format == LODE_FORMAT_HIGGS4)
        lode_scalar_hadamard(out, group, dim);
}

void lode_scalar_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                        const float *q, float *out, float *lse)
{
    float query[LODE_MAX_GROUP * LODE_MAX_DIM];
    memcpy(query, q, sizeof *q * group * dim);
    lode_scalar_attend_each(format, dim, group, records, NULL, n, query, 1, out, lse);
}

void lode_scalar_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim)
{
    for (uint32_t row = 0; row < rows; row++, out += dim, part += dim) {
        float greatest = fmaxf(lse[row], part_lse[row]);
        if (part_lse[row] == -INFINITY)
            continue;
        float mine = expf(lse[row] - greatest), theirs = expf(part_lse[row] - greatest);
        float sum = mine + theirs;
        for (uint32_t i = 0; i < dim; i++)
            out[i] = (mine / sum) * (mine > 0 ? out[i] : 0) + (theirs / sum) * part[i];
        lse[row] = greatest + logf(sum);
    }
}
