/* SPDX-License-Identifier: Apache-2.0 */
/* What questions and talks have in common: blocks of their own, and where documents stand in their views. */
#include <inttypes.h>
#include <sys/random.h>

#include "reader/reader_inside.h"

lode_status_t lode_reader_own_block(const struct lode_reader *reader, const char *what, uint64_t expected, bool draft,
                                    lode_block_h *block)
{
    char name[LODE_NAME_MAX + 1];
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return lode_fail(LODE_ERR_IO, "the operating system gave no random bytes for a block's name");
    snprintf(name, sizeof name, "%s:%016" PRIx64 "%016" PRIx64, what, random[0], random[1]);
    lode_block_params_t params = {.name = name,
                                  .format = reader->format,
                                  .replicas = reader->replicas,
                                  .landmark = reader->landmark,
                                  .expected_tokens = expected,
                                  .draft = draft};
    return lode_block_create(reader->cluster, &params, block);
}

void lode_reader_lay_out(const struct lode_reader *reader, const lode_reader_piece_t *pieces, uint32_t count,
                         lode_block_h *blocks, int64_t *offsets, uint64_t *begins)
{
    int64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        blocks[i] = pieces[i].block;
        offsets[i] = reader->manner.shared_positions ? (int64_t)reader->manner.range - pieces[i].tokens : end;
        if (begins)
            begins[i] = (uint64_t)end;
        end += pieces[i].tokens;
    }
}

int64_t lode_reader_position_after(const struct lode_reader *reader, uint64_t tokens)
{
    return reader->manner.shared_positions ? (int64_t)reader->manner.range : (int64_t)tokens;
}
