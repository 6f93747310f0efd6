/* SPDX-License-Identifier: Apache-2.0 */
/* faiss by plain C calls, for `bench index` alone. Nothing is thrown out of here: a failure is a null or a false. */
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <omp.h>

#include "bench/index_faiss.h"

struct lode_faiss {
    faiss::IndexFlatIP flat;
    faiss::IndexIVFFlat *ivf;

    explicit lode_faiss(int dim) : flat(dim), ivf(nullptr) {}
    ~lode_faiss()
    {
        delete ivf;
    }
};

lode_faiss_t *lode_faiss_create(int dim, long n, const float *keys, long lists)
{
    lode_faiss *made = nullptr;
    try {
        omp_set_num_threads(1);
        made = new lode_faiss(dim);
        if (lists == 0) {
            made->flat.add(n, keys);
            return made;
        }
        made->ivf = new faiss::IndexIVFFlat(&made->flat, dim, lists, faiss::METRIC_INNER_PRODUCT);
        made->ivf->cp.niter = 6;
        made->ivf->train(n, keys);
        made->ivf->add(n, keys);
        return made;
    } catch (...) {
        delete made;
        return nullptr;
    }
}

bool lode_faiss_search(lode_faiss_t *index, long queries, const float *q, long k, long probes, float *scores,
                       int64_t *ids)
{
    try {
        if (index->ivf) {
            index->ivf->nprobe = probes;
            index->ivf->search(queries, q, k, scores, ids);
        } else {
            index->flat.search(queries, q, k, scores, ids);
        }
        return true;
    } catch (...) {
        return false;
    }
}

void lode_faiss_destroy(lode_faiss_t *index)
{
    delete index;
}
