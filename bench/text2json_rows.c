/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of tab-separated cells against gold rows: precision, recall, F1. */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

/** Rows below the header, each as its cells in plain form, a tab behind every one. */
typedef struct rows {
    char **row;
    uint32_t count, room;
    uint32_t columns;
} rows_t;

static void rows_free(rows_t *rows)
{
    for (uint32_t i = 0; i < rows->count; i++)
        free(rows->row[i]);
    free(rows->row);
    *rows = (rows_t){0};
}

/* ------------------------------------------------------------------- cells */

static bool is_article(const char *word, size_t bytes)
{
    return (bytes == 1 && *word == 'a') || (bytes == 2 && memcmp(word, "an", 2) == 0) ||
           (bytes == 3 && memcmp(word, "the", 3) == 0);
}

/* Lower case, no punctuation, no articles, no spaces; of ASCII. Other bytes stay as they are. */
static void add_plain_cell(const char *cell, size_t bytes, lode_prose_t *out)
{
    char word[64];
    size_t length = 0;
    for (size_t i = 0; i <= bytes; i++) {
        unsigned char c = i < bytes ? (unsigned char)cell[i] : ' ';
        bool upper = c >= 'A' && c <= 'Z', digit = c >= '0' && c <= '9';
        if (upper || digit || (c >= 'a' && c <= 'z') || c >= 0x80) {
            if (length == sizeof word) { /* too long for an article */
                lode_prose_bytes(out, word, length);
                length = 0;
            }
            word[length++] = (char)(upper ? c - 'A' + 'a' : c);
        } else if (c == ' ' || c == '\r') {
            if (!is_article(word, length))
                lode_prose_bytes(out, word, length);
            length = 0;
        }
    }
    lode_prose_add(out, "\t");
}

static uint32_t columns_of(const char *line, size_t bytes)
{
    uint32_t columns = 1;
    for (size_t i = 0; i < bytes; i++)
        columns += line[i] == '\t';
    return columns;
}

/* -------------------------------------------------------------------- rows */

static lode_status_t add_row(rows_t *rows, const char *line, size_t bytes)
{
    lode_prose_t plain = {0};
    if (rows->count == rows->room) {
        uint32_t room = rows->room ? 2 * rows->room : 32;
        char **grown = realloc(rows->row, room * sizeof *grown);
        if (!grown)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for rows");
        rows->row = grown;
        rows->room = room;
    }
    if (columns_of(line, bytes) != rows->columns)
        lode_prose_add(&plain, "?"); /* equals no row */
    for (const char *cell = line, *end = line + bytes; cell <= end;) {
        const char *tab = memchr(cell, '\t', (size_t)(end - cell));
        add_plain_cell(cell, (size_t)((tab ? tab : end) - cell), &plain);
        cell = tab ? tab + 1 : end + 1;
    }
    if (plain.failed) {
        lode_prose_free(&plain);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for rows");
    }
    rows->row[rows->count++] = plain.text;
    return LODE_OK;
}

static bool is_blank(const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r", line[i]))
            return false;
    return true;
}

/* The first line that is not blank is the header. A last line of another width is a remark or was cut off. */
static lode_status_t read_rows(const char *text, const char *end, rows_t *rows)
{
    for (const char *line = text; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line)), *next = stop ? stop + 1 : end;
        size_t bytes = (size_t)((stop ? stop : end) - line);
        bool last = is_blank(next, (size_t)(end - next));
        if (is_blank(line, bytes))
            ;
        else if (!rows->columns)
            rows->columns = columns_of(line, bytes);
        else if (!last || columns_of(line, bytes) == rows->columns)
            LODE_TRY(add_row(rows, line, bytes));
        line = next;
    }
    return LODE_OK;
}

/* What is between ```tsv and the next ```, or all of it. */
static void find_rows(const char *output, const char **begin, const char **end)
{
    static const char fence[] = "```";
    const char *open = strstr(output, "```tsv");
    *begin = open ? open + strlen("```tsv") : output;
    const char *close = open ? strstr(*begin, fence) : NULL;
    *end = close ? close : *begin + strlen(*begin);
}

static void match(const rows_t *gold, const rows_t *predicted, bool *used, lode_rows_score_t *score)
{
    for (uint32_t i = 0; i < predicted->count; i++)
        for (uint32_t j = 0; j < gold->count; j++)
            if (!used[j] && strcmp(gold->row[j], predicted->row[i]) == 0) {
                used[j] = true;
                score->matched++;
                break;
            }
    score->precision = predicted->count ? (double)score->matched / predicted->count : 0;
    score->recall = gold->count ? (double)score->matched / gold->count : 0;
    double sum = score->precision + score->recall;
    score->f1 = sum > 0 ? 2 * score->precision * score->recall / sum : 0;
}

lode_status_t lode_rows_score(const char *gold, const char *output, lode_rows_score_t *score)
{
    rows_t right = {0}, given = {0};
    const char *begin, *end;
    bool *used = NULL;
    find_rows(output, &begin, &end);
    lode_status_t status = read_rows(gold, gold + strlen(gold), &right);
    if (status == LODE_OK)
        status = read_rows(begin, end, &given);
    if (status == LODE_OK && !right.count)
        status = lode_fail(LODE_ERR_INVALID, "its answer has no row below the header");
    if (status == LODE_OK && !(used = calloc(right.count, sizeof *used)))
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for rows");
    if (status == LODE_OK) {
        *score = (lode_rows_score_t){.gold = right.count, .predicted = given.count};
        match(&right, &given, used, score);
    }
    free(used);
    rows_free(&right);
    rows_free(&given);
    return status;
}
