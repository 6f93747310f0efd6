/* SPDX-License-Identifier: Apache-2.0 */
/* A model's output from a stranger: scored as a list of objects and as rows. A score is a share. */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char gold_text[] =
    "[{\"name\": \"Ann's\", \"a\": \"12\", \"b\": \"x\"}, {\"name\": \"B\", \"a\": \"\", \"b\": \"-3\"}]";
static const char gold_rows[] = "name\ta\nThe Fox\t$1.5\nB\tN/A\n";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static json_t *gold;
    lode_text2json_score_t score;
    lode_rows_score_t rows;
    if (!gold)
        gold = json_loads(gold_text, 0, NULL);
    char *text = malloc(bytes + 1);
    if (!text)
        return 0;
    memcpy(text, data, bytes);
    text[bytes] = 0;
    if (lode_text2json_score(gold, text, bytes, &score) != LODE_OK || score.score < 0 || score.score > 1)
        abort();
    if (lode_rows_score(gold_rows, text, &rows) != LODE_OK || rows.f1 < 0 || rows.f1 > 1)
        abort();
    /* and as a gold, which is read by the same rules */
    json_t *list = json_loadb(text, bytes, JSON_ALLOW_NUL, NULL);
    if (list && lode_text2json_check_gold(list) == LODE_OK &&
        lode_text2json_score(list, text, bytes, &score) != LODE_OK)
        abort();
    json_decref(list);
    if (lode_rows_score(text, gold_rows, &rows) == LODE_OK && rows.recall > 1)
        abort();
    free(text);
    return 0;
}
