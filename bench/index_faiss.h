/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file index_faiss.h
 * @brief faiss by plain C calls; built where faiss and a C++ compiler are (LODE_HAVE_FAISS).
 */
#ifndef LODE_BENCH_INDEX_FAISS_H
#define LODE_BENCH_INDEX_FAISS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lode_faiss lode_faiss_t;

/** An index of n keys by inner product, on one thread: exact if @p lists is 0, else inverted lists. NULL: it failed. */
lode_faiss_t *lode_faiss_create(int dim, long n, const float *keys, long lists);
/** The k best of each query; @p probes: lists to look into. @param[out] scores, ids  (queries, k) */
bool lode_faiss_search(lode_faiss_t *index, long queries, const float *q, long k, long probes, float *scores,
                       int64_t *ids);
void lode_faiss_destroy(lode_faiss_t *index);

#ifdef __cplusplus
}
#endif

#endif
