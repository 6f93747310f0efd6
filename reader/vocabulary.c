/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE. tokenizer.json writes bytes as characters of an alphabet of 256 (GPT-2's): those that print stand
 * for themselves, the others are U+0100 and on. Inside, words and tokens are bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "reader/tokenizer_inside.h"
#include "reader/utf8.h"

struct lode_symbol {
    uint32_t id;
    uint32_t before, after; /* neighbours; NOBODY at the ends */
};
struct lode_chance {
    uint32_t rank, at; /* at: the left symbol */
    uint32_t left, right, made;
};

#define NOBODY UINT32_MAX

/* ----------------------------------------------------------------- alphabet */

/* Byte of a character of the alphabet, −1 if it is not one of it. */
static int byte_of(uint32_t character)
{
    uint32_t nth = character - 256; /* of the bytes that do not print: 0 … 32, 127 … 160, 173 */
    if (character < 256)
        return character < '!' || (character > '~' && character < 0xa1) || character == 0xad ? -1 : (int)character;
    return nth <= 32 ? (int)nth : nth <= 66 ? (int)(nth - 33 + 127) : nth == 67 ? 173 : -1;
}

/* The bytes that a text of the alphabet stands for; false if a character is not of it. Room: as many as the text has.
 */
static bool to_bytes(const char *text, size_t length, char *bytes, size_t *count)
{
    size_t n = 0;
    for (size_t at = 0; at < length;) {
        const uint8_t *s = (const uint8_t *)text + at;
        int width = lode_utf8_length(s, length - at);
        int byte = width == 1 ? byte_of(s[0]) : width == 2 ? byte_of((s[0] & 0x1fu) << 6 | (s[1] & 0x3fu)) : -1;
        if (byte < 0)
            return false;
        bytes[n++] = (char)byte;
        at += (size_t)width;
    }
    *count = n;
    return true;
}

/* ------------------------------------------------------------------- tables */

lode_status_t lode_tokens_append(lode_tokens_t *tokens, const uint32_t *ids, size_t count)
{
    if (tokens->count + count > tokens->room) {
        size_t room = tokens->room ? tokens->room : 256;
        while (room < tokens->count + count)
            room *= 2;
        uint32_t *larger = realloc(tokens->ids, room * sizeof *larger);
        if (!larger)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu tokens", room);
        tokens->ids = larger;
        tokens->room = room;
    }
    for (size_t i = 0; i < count; i++)
        tokens->ids[tokens->count + i] = ids[i];
    tokens->count += count;
    return LODE_OK;
}

static uint64_t hash_bytes(const char *bytes, size_t count)
{
    uint64_t hash = count, word;
    for (; count >= 8; count -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        hash = lode_mix(hash ^ word, 0x51u);
    }
    word = 0;
    memcpy(&word, bytes, count);
    return lode_mix(hash ^ word, 0x52u);
}

static uint32_t power_of_2(size_t least)
{
    uint32_t places = 16;
    while (places < least)
        places *= 2;
    return places;
}

/* The place of a word in by_text: where it is, or where it would be. */
static uint32_t *find_text(const lode_vocabulary_t *v, const char *bytes, size_t count)
{
    uint32_t mask = v->text_places - 1;
    for (uint32_t at = (uint32_t)hash_bytes(bytes, count) & mask;; at = (at + 1) & mask) {
        uint32_t id = v->by_text[at];
        if (id == 0)
            return &v->by_text[at];
        const lode_token_t *token = &v->tokens[id - 1];
        if (token->bytes == count && memcmp(v->arena + token->at, bytes, count) == 0)
            return &v->by_text[at];
    }
}

static lode_merge_t *find_merge(const lode_vocabulary_t *v, uint32_t left, uint32_t right)
{
    uint32_t mask = v->merge_places - 1;
    for (uint32_t at = (uint32_t)lode_mix((uint64_t)left << 32 | right, 0x53u) & mask;; at = (at + 1) & mask) {
        lode_merge_t *merge = &v->merges[at];
        if (merge->rank == UINT32_MAX || (merge->left == left && merge->right == right))
            return merge;
    }
}

/* -------------------------------------------------------------------- reading */

static lode_status_t make_room(lode_vocabulary_t *v, uint32_t id, size_t bytes)
{
    if (id >= v->room) {
        uint32_t room = power_of_2((size_t)id + 1);
        lode_token_t *larger = realloc(v->tokens, room * sizeof *larger);
        if (!larger)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a vocabulary of %u tokens", room);
        memset(larger + v->room, 0, (room - v->room) * sizeof *larger);
        v->tokens = larger;
        v->room = room;
    }
    if (v->arena_bytes + bytes + 1 > v->arena_room) {
        size_t room = (v->arena_bytes + bytes + 1) * 2;
        char *larger = realloc(v->arena, room);
        if (!larger)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes of tokens", room);
        v->arena = larger;
        v->arena_room = room;
    }
    return LODE_OK;
}

/* Put a text of the file at an id: as bytes if it is of the alphabet, else as it is. */
static lode_status_t put(lode_vocabulary_t *v, uint32_t id, const char *text, lode_token_kind_t kind)
{
    size_t bytes = strlen(text);
    LODE_TRY(make_room(v, id, bytes));
    lode_token_t *token = &v->tokens[id];
    if (token->kind != LODE_TOKEN_NONE)
        return lode_fail(LODE_ERR_FORMAT, "\"%.40s\" and another token have the same id %u", text, id);
    if (v->count == LODE_VOCABULARY_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "there are more than %d tokens", LODE_VOCABULARY_MAX);
    char *at = v->arena + v->arena_bytes;
    if (kind == LODE_TOKEN_WORD && (bytes == 0 || !to_bytes(text, bytes, at, &bytes)))
        kind = LODE_TOKEN_ODD;
    if (kind != LODE_TOKEN_WORD)
        memcpy(at, text, bytes);
    at[bytes] = 0;
    *token = (lode_token_t){(uint32_t)v->arena_bytes, (uint32_t)bytes, kind};
    v->arena_bytes += bytes + 1;
    v->size = id >= v->size ? id + 1 : v->size;
    v->count++;
    return LODE_OK;
}

lode_status_t lode_vocabulary_add(lode_vocabulary_t *v, uint32_t id, const char *text)
{
    if (id >= v->size || v->tokens[id].kind == LODE_TOKEN_NONE)
        return put(v, id, text, LODE_TOKEN_ADDED);
    lode_token_t *token = &v->tokens[id];
    size_t bytes = strlen(text);
    if (token->kind == LODE_TOKEN_ADDED || token->bytes != bytes || memcmp(v->arena + token->at, text, bytes) != 0)
        return lode_fail(LODE_ERR_FORMAT, "added token \"%.40s\" has id %u, which is \"%.40s\"", text, id,
                         v->arena + token->at);
    token->kind = LODE_TOKEN_ADDED;
    return LODE_OK;
}

static lode_status_t index_words(lode_vocabulary_t *v)
{
    v->text_places = power_of_2((size_t)v->count * 2);
    v->by_text = calloc(v->text_places, sizeof *v->by_text);
    if (!v->by_text)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for an index of %u tokens", v->count);
    for (uint32_t id = 0; id < v->size; id++)
        if (v->tokens[id].kind == LODE_TOKEN_WORD)
            *find_text(v, v->arena + v->tokens[id].at, v->tokens[id].bytes) = id + 1;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t id = *find_text(v, &(char){(char)byte}, 1);
        if (id == 0)
            return lode_fail(LODE_ERR_UNSUPPORTED,
                             "the vocabulary has no token for the byte 0x%02x, so not every text could be written",
                             byte);
        v->of_byte[byte] = id - 1;
    }
    return LODE_OK;
}

static lode_status_t read_words(const json_t *vocab, lode_vocabulary_t *v)
{
    const char *text;
    json_t *value;
    if (!json_is_object(vocab))
        return lode_fail(LODE_ERR_FORMAT, "its \"vocab\" is not an object");
    json_object_foreach((json_t *)vocab, text, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > LODE_TOKEN_ID_MAX)
            return lode_fail(LODE_ERR_FORMAT, "the id of \"%.40s\" is not a whole number from 0 to %d", text,
                             LODE_TOKEN_ID_MAX);
        LODE_TRY(put(v, (uint32_t)id, text, LODE_TOKEN_WORD));
    }
    return index_words(v);
}

/* Where the left and the right text of a merge are: "a b" or ["a", "b"]. */
static bool read_sides(const json_t *merge, const char *side[2], size_t length[2])
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            side[i] = json_string_value(json_array_get(merge, i));
            length[i] = json_string_length(json_array_get(merge, i));
        }
        return side[0] && side[1];
    }
    const char *text = json_string_value(merge), *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    side[0] = text;
    length[0] = (size_t)(space - text);
    side[1] = space + 1;
    length[1] = strlen(space + 1);
    return true;
}

/* Id of the word that a merge's text stands for; NOBODY if there is none. */
static uint32_t id_of(const lode_vocabulary_t *v, const char *bytes, size_t count)
{
    uint32_t id = *find_text(v, bytes, count);
    return id ? id - 1 : NOBODY;
}

static lode_status_t read_merge(const json_t *merge, size_t line, char *scratch, lode_vocabulary_t *v)
{
    const char *side[2];
    size_t length[2], bytes[2];
    if (!read_sides(merge, side, length))
        return lode_fail(LODE_ERR_FORMAT, "merge %zu is not two texts", line);
    if (length[0] + length[1] > v->arena_bytes || !to_bytes(side[0], length[0], scratch, &bytes[0]) ||
        !to_bytes(side[1], length[1], scratch + bytes[0], &bytes[1]) || bytes[0] == 0 || bytes[1] == 0)
        return lode_fail(LODE_ERR_FORMAT, "merge %zu, \"%.40s\", names what is no token", line, side[0]);
    uint32_t left = id_of(v, scratch, bytes[0]), right = id_of(v, scratch + bytes[0], bytes[1]);
    uint32_t made = id_of(v, scratch, bytes[0] + bytes[1]);
    if (left == NOBODY || right == NOBODY || made == NOBODY)
        return lode_fail(LODE_ERR_FORMAT, "merge %zu, of \"%.*s\" and \"%.*s\": %s is no token", line,
                         (int)(length[0] < 40 ? length[0] : 40), side[0], (int)(length[1] < 40 ? length[1] : 40),
                         side[1],
                         left == NOBODY    ? "the first"
                         : right == NOBODY ? "the second"
                                           : "what they make");
    /* one that is there twice counts at its last place, as elsewhere */
    *find_merge(v, left, right) = (lode_merge_t){left, right, made, (uint32_t)line};
    return LODE_OK;
}

static lode_status_t read_merges(const json_t *merges, lode_vocabulary_t *v)
{
    size_t line, count = json_array_size(merges);
    const json_t *merge;
    if (!json_is_array(merges))
        return lode_fail(LODE_ERR_FORMAT, "its \"merges\" are not a list");
    if (count > 4 * (size_t)LODE_VOCABULARY_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "there are %zu merges; the most is %d", count, 4 * LODE_VOCABULARY_MAX);
    v->merge_places = power_of_2(count * 2);
    v->merges = malloc(v->merge_places * sizeof *v->merges);
    char *scratch = malloc(v->arena_bytes + 1);
    if (!v->merges || !scratch) {
        free(scratch);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu merges", count);
    }
    memset(v->merges, 0xff, v->merge_places * sizeof *v->merges);
    lode_status_t status = LODE_OK;
    json_array_foreach(merges, line, merge)
    {
        if (status == LODE_OK)
            status = read_merge(merge, line, scratch, v);
    }
    free(scratch);
    return status;
}

/* Whether a setting is left out, null, false, empty or zero. */
static bool is_off(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_number(value) && json_number_value(value) == 0);
}

lode_status_t lode_vocabulary_read(const json_t *model, lode_vocabulary_t *v)
{
    static const char *const unknown[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                          "byte_fallback"};
    const char *type = lode_json_text(model, "type");
    memset(v, 0, sizeof *v);
    if (!json_is_object(model))
        return lode_fail(LODE_ERR_FORMAT, "it has no \"model\"");
    if (*type && strcmp(type, "BPE") != 0) /* old files do not name it */
        return lode_fail(LODE_ERR_UNSUPPORTED, "its model is \"%.40s\"; only BPE over bytes can be read", type);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (!is_off(json_object_get(model, unknown[i])))
            return lode_fail(LODE_ERR_UNSUPPORTED, "its model has \"%s\", which is not known here", unknown[i]);
    v->whole_words_first = json_is_true(json_object_get(model, "ignore_merges"));
    v->kept = calloc(LODE_KEPT_WORDS, sizeof *v->kept);
    if (!v->kept)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a tokenizer");
    LODE_TRY(read_words(json_object_get(model, "vocab"), v));
    return read_merges(json_object_get(model, "merges"), v);
}

void lode_vocabulary_free(lode_vocabulary_t *v)
{
    free(v->tokens);
    free(v->arena);
    free(v->by_text);
    free(v->merges);
    free(v->kept);
    free(v->symbols);
    free(v->chances);
    memset(v, 0, sizeof *v);
}

/* -------------------------------------------------------------------- merging */

/* Lower ranks first, then further left. */
static bool is_sooner(const lode_chance_t *a, const lode_chance_t *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(lode_chance_t *heap, size_t *count, lode_chance_t chance)
{
    size_t at = (*count)++;
    for (; at && is_sooner(&chance, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = chance;
}

static lode_chance_t heap_pop(lode_chance_t *heap, size_t *count)
{
    lode_chance_t top = heap[0], last = heap[--*count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < *count; at = child) {
        if (child + 1 < *count && is_sooner(&heap[child + 1], &heap[child]))
            child++;
        if (!is_sooner(&heap[child], &last))
            break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

static void consider(lode_vocabulary_t *v, uint32_t at, size_t *count)
{
    const lode_symbol_t *left = &v->symbols[at];
    if (left->after == NOBODY)
        return;
    const lode_symbol_t *right = &v->symbols[left->after];
    const lode_merge_t *merge = find_merge(v, left->id, right->id);
    if (merge->rank != UINT32_MAX)
        heap_push(v->chances, count, (lode_chance_t){merge->rank, at, left->id, right->id, merge->made});
}

/* Room for all chances at once: each pair at the start, and two for each of bytes − 1 merges. */
static lode_status_t make_work_space(lode_vocabulary_t *v, size_t bytes)
{
    if (bytes <= v->symbol_room)
        return LODE_OK;
    size_t room = bytes * 2;
    lode_symbol_t *symbols = realloc(v->symbols, room * sizeof *symbols);
    if (symbols)
        v->symbols = symbols;
    lode_chance_t *chances = realloc(v->chances, 3 * room * sizeof *chances);
    if (chances)
        v->chances = chances;
    if (!symbols || !chances)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a word of %zu bytes", bytes);
    v->symbol_room = room;
    return LODE_OK;
}

static lode_status_t merge_word(lode_vocabulary_t *v, const char *word, size_t bytes, lode_tokens_t *tokens)
{
    LODE_TRY(make_work_space(v, bytes));
    size_t chances = 0;
    for (uint32_t i = 0; i < bytes; i++)
        v->symbols[i] = (lode_symbol_t){v->of_byte[(uint8_t)word[i]], i - 1, i + 1 < bytes ? i + 1 : NOBODY};
    for (uint32_t i = 0; i + 1 < bytes; i++)
        consider(v, i, &chances);
    while (chances) {
        lode_chance_t next = heap_pop(v->chances, &chances);
        lode_symbol_t *left = &v->symbols[next.at];
        if (left->id != next.left || left->after == NOBODY || v->symbols[left->after].id != next.right)
            continue; /* one of the two is in another token by now */
        v->symbols[left->after].id = NOBODY;
        left->id = next.made;
        left->after = v->symbols[left->after].after;
        if (left->after != NOBODY)
            v->symbols[left->after].before = next.at;
        if (left->before != NOBODY)
            consider(v, left->before, &chances);
        consider(v, next.at, &chances);
    }
    for (uint32_t i = 0; i != NOBODY; i = v->symbols[i].after)
        LODE_TRY(lode_tokens_append(tokens, &v->symbols[i].id, 1));
    return LODE_OK;
}

lode_status_t lode_vocabulary_encode(lode_vocabulary_t *v, const char *word, size_t bytes, lode_tokens_t *tokens)
{
    if (v->whole_words_first) {
        uint32_t id = id_of(v, word, bytes);
        if (id != NOBODY)
            return lode_tokens_append(tokens, &id, 1);
    }
    if (bytes > LODE_KEPT_BYTES)
        return merge_word(v, word, bytes, tokens);
    lode_kept_word_t *kept = &v->kept[hash_bytes(word, bytes) % LODE_KEPT_WORDS];
    if (kept->bytes == bytes && memcmp(kept->text, word, bytes) == 0)
        return lode_tokens_append(tokens, kept->ids, kept->count);
    size_t before = tokens->count;
    LODE_TRY(merge_word(v, word, bytes, tokens));
    size_t count = tokens->count - before;
    if (count <= LODE_KEPT_IDS) {
        kept->bytes = (uint8_t)bytes;
        kept->count = (uint8_t)count;
        memcpy(kept->text, word, bytes);
        memcpy(kept->ids, tokens->ids + before, count * sizeof *kept->ids);
    }
    return LODE_OK;
}
