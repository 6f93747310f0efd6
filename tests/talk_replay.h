/* SPDX-License-Identifier: Apache-2.0 */
/**
 * What tests of talks compare with: the same tokens in the same order through the same weights, a stream after another,
 * with blocks that are laid out anew for each and whose keys are rotated afresh, in double. It knows nothing of views,
 * pages and offsets.
 */
#ifndef LODE_TESTS_TALK_REPLAY_H
#define LODE_TESTS_TALK_REPLAY_H

#include "reader/talk.h"

/** Keys and values as the model made them; keys are rotated to positions in the block. */
typedef struct replay_block {
    uint32_t *tokens;       /* (layers) */
    float **keys, **values; /* (layers), (room, KV heads, dim) */
    int64_t offset;         /* of a document; the others stand behind one another */
} replay_block_t;

typedef struct replay {
    lode_model_h model;
    lode_geometry_t geometry;
    uint32_t room; /* tokens of each block */
    replay_block_t *blocks;
    uint32_t documents, count; /* of blocks; after the documents: prompt, input, thoughts, words, probe */
    int64_t base;
    uint32_t current; /* block of the passage */
    bool writes;
    float *logits;
} replay_t;

void replay_open(replay_t *replay, lode_model_h model, uint32_t documents, uint32_t room);
void replay_close(replay_t *replay);
/** A document by itself, from position 0 on; then it stands at @p offset. */
void replay_document(replay_t *replay, uint32_t i, const uint32_t *tokens, uint32_t count, int64_t offset);
/** More tokens of a block (0: the prompt's …), seeing all before it. @return logits of the last, borrowed */
const float *replay_run(replay_t *replay, uint32_t block, const uint32_t *tokens, uint32_t count);
/** A block's last token once more; nothing is written. */
const float *replay_again(replay_t *replay, uint32_t block, uint32_t token);
void replay_clear(replay_t *replay, uint32_t block);
uint32_t replay_tokens(const replay_t *replay, uint32_t block);

#endif
