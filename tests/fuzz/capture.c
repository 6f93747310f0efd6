/* SPDX-License-Identifier: Apache-2.0 */
/* A capture file from a stranger: parsed, and if it is accepted every tensor is read to its last element. */
#include "bench/capture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_ends(const lode_capture_tensor_t *tensor, uint64_t elements)
{
    float value[2];
    lode_capture_read(tensor, 0, 1, &value[0]);
    lode_capture_read(tensor, elements - 1, 1, &value[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    lode_capture_t capture = {0};
    if (lode_capture_parse(data, bytes, &capture) == LODE_OK) {
        for (uint32_t i = 0; i < capture.layers; i++) {
            uint64_t kv = capture.tokens * capture.kv_heads * capture.head_dim;
            read_ends(&capture.layer[i].k, kv);
            read_ends(&capture.layer[i].v, kv);
            read_ends(&capture.layer[i].q, capture.queries * capture.query_heads * capture.head_dim);
        }
        lode_capture_check_finite(&capture);
    }
    lode_capture_close(&capture);
    return 0;
}
