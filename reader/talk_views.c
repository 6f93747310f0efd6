/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of a talk, the views of them, and the positions that are left. */
#include <math.h>
#include <stdlib.h>

#include "reader/talk_inside.h"

/* ---------------------------------------------------------------- positions */

int64_t lode_talk_end_of(const struct lode_talk *talk, uint32_t block)
{
    int64_t end = talk->base;
    for (uint32_t b = 0; b <= block; b++)
        end += talk->blocks[b].tokens;
    return end;
}

uint64_t lode_talk_used(const struct lode_talk *talk)
{
    uint64_t used = (uint64_t)lode_talk_end_of(talk, lode_talk_block_of(LODE_TALK_WRITER));
    for (int s = LODE_TALK_INPUT; s <= LODE_TALK_WRITER; s++)
        used += talk->pending[s].count;
    return used;
}

/* A quarter of what is left behind documents and prompt at most: else thoughts about a short context would not begin.
 */
uint64_t lode_talk_words_room(const struct lode_talk *talk)
{
    const lode_talk_voice_t *writer = &talk->voices[LODE_TALK_WRITER];
    uint64_t context = lode_model_info(talk->reader->model)->context;
    uint64_t quarter = (context - (uint64_t)lode_talk_end_of(talk, LODE_TALK_PROMPT)) / 4;
    uint64_t words = writer->most > writer->said ? writer->most - writer->said : 0;
    return (words < quarter ? words : quarter) + talk->question.count;
}

/* -------------------------------------------------------------------- views */

/*
 * The talk's own tokens are attended to in full wherever they are: in tails they are anyway, and in pages as the first
 * tokens of the view, where they stand for that reason, behind all documents though their positions are. The budget and
 * what else the caller's policy says is of the documents.
 */
static lode_policy_t policy_of(const struct lode_talk *talk, uint32_t held)
{
    lode_policy_t policy = talk->talking.policy;
    uint64_t documents = talk->reader->listed_tokens;
    if (policy.select == LODE_SELECT_DENSE || !documents) {
        policy.select = LODE_SELECT_DENSE;
        return policy;
    }
    if (!policy.budget_tokens)
        policy.budget_tokens = (uint64_t)ceil(policy.budget_share * (double)documents);
    policy.budget_tokens += held;
    policy.sinks += held;
    policy.window = policy.window > held ? policy.window - held : 0;
    return policy;
}

/* Own blocks up to @p last, then documents. @return how many own ones there are */
static uint32_t lay_out(const struct lode_talk *talk, uint32_t last, lode_block_h *blocks, int64_t *offsets)
{
    uint32_t own = 0;
    for (uint32_t b = 0; b <= last; b++) {
        if (!talk->blocks[b].block)
            continue;
        blocks[own] = talk->blocks[b].block;
        offsets[own] = own ? LODE_OFFSET_AFTER : talk->base;
        own++;
    }
    lode_reader_lay_out(talk->reader, talk->reader->pieces, talk->reader->piece_count, blocks + own, offsets + own,
                        NULL);
    return own;
}

static lode_status_t create_view(const struct lode_talk *talk, uint32_t last, uint32_t held, lode_view_h *view)
{
    uint32_t most = LODE_TALK_BLOCKS + talk->reader->piece_count;
    lode_block_h *blocks = malloc(most * sizeof *blocks);
    int64_t *offsets = malloc(most * sizeof *offsets);
    lode_status_t status;
    if (blocks && offsets) {
        uint32_t own = lay_out(talk, last, blocks, offsets);
        lode_view_params_t params = {.blocks = blocks,
                                     .offsets = offsets,
                                     .count = own + talk->reader->piece_count,
                                     .write_block = (int32_t)own - 1,
                                     .shared_positions = 1,
                                     .policy = policy_of(talk, held)};
        status = lode_view_create(talk->reader->cluster, &params, view);
    } else {
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", most);
    }
    free(blocks);
    free(offsets);
    return status;
}

lode_status_t lode_talk_view(struct lode_talk *talk, uint32_t block, lode_view_h *view)
{
    lode_talk_block_t *own = &talk->blocks[block];
    bool sparse = talk->talking.policy.select != LODE_SELECT_DENSE && talk->reader->listed_tokens;
    uint32_t held = 0;
    for (uint32_t b = 0; b <= block; b++)
        held += talk->blocks[b].paged;
    if (own->view && sparse && own->held != held)
        LODE_TRY(lode_view_destroy(&own->view));
    if (!own->view)
        LODE_TRY(create_view(talk, block, held, &own->view));
    own->held = held;
    *view = own->view;
    return LODE_OK;
}

/* ------------------------------------------------------------------- blocks */

static void drop(lode_talk_block_t *own)
{
    if (own->view)
        lode_view_destroy(&own->view);
    if (own->block && lode_block_drop(&own->block) != LODE_OK && own->block)
        lode_block_close(&own->block);
    *own = (lode_talk_block_t){0};
}

void lode_talk_drop_blocks(struct lode_talk *talk)
{
    for (uint32_t b = LODE_TALK_BLOCKS; b--;)
        drop(&talk->blocks[b]);
}
