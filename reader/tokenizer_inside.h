/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file tokenizer_inside.h
 * @brief Parts of a tokenizer: the vocabulary with its merges, and what cuts a text into words before.
 *
 * A text goes through: added tokens are cut out (those of raw text) → normalized → added tokens are cut out (those of
 * normalized text) → stages of splitting, each cuts what the one before left → words, which are merged byte by byte.
 */
#ifndef LODE_READER_TOKENIZER_INSIDE_H
#define LODE_READER_TOKENIZER_INSIDE_H

#include <jansson.h>

#include "reader/reader.h"

/** Bounds of what is read. */
enum {
    LODE_VOCABULARY_MAX = 1 << 20,
    LODE_TOKEN_ID_MAX = (1 << 24) - 1,
    LODE_TOKENIZER_FILE_MAX = 256 << 20,
    LODE_CUTS_MAX = 8,
    LODE_TEXT_MAX = INT32_MAX /**< bytes of one text */
};

/* --------------------------------------------------------------- vocabulary */

typedef enum lode_token_kind {
    LODE_TOKEN_NONE,
    LODE_TOKEN_WORD, /**< what merges can lead to */
    LODE_TOKEN_ODD,  /**< its text is not in the alphabet of bytes, so no word becomes it */
    LODE_TOKEN_ADDED
} lode_token_kind_t;

typedef struct lode_token {
    uint32_t at, bytes; /**< in the arena, zero-terminated there */
    lode_token_kind_t kind;
} lode_token_t;

/** A pair of neighbours that becomes one token. */
typedef struct lode_merge {
    uint32_t left, right, made;
    uint32_t rank; /**< its line; UINT32_MAX: an empty place of the table */
} lode_merge_t;

/** What a word became last time; direct-mapped by the word's hash. */
enum { LODE_KEPT_BYTES = 22, LODE_KEPT_IDS = 10, LODE_KEPT_WORDS = 1 << 14 };
typedef struct lode_kept_word {
    uint8_t bytes, count;
    char text[LODE_KEPT_BYTES];
    uint32_t ids[LODE_KEPT_IDS];
} lode_kept_word_t;

typedef struct lode_symbol lode_symbol_t; /* of a word that is being merged */
typedef struct lode_chance lode_chance_t; /* a merge that may be next */

typedef struct lode_vocabulary {
    lode_token_t *tokens; /**< (size) by id */
    uint32_t size, room, count;
    char *arena; /**< (arena_bytes) */
    size_t arena_bytes, arena_room;
    uint32_t *by_text; /**< (text_places, power of 2) ids + 1 of words */
    uint32_t text_places;
    lode_merge_t *merges; /**< (merge_places, power of 2) */
    uint32_t merge_places;
    uint32_t of_byte[256];
    bool whole_words_first; /**< "ignore_merges": a word that is a token is not merged */
    lode_kept_word_t *kept; /**< (LODE_KEPT_WORDS) */
    lode_symbol_t *symbols; /**< (symbol_room) work space, and that of the heap */
    lode_chance_t *chances;
    size_t symbol_room, chance_room;
} lode_vocabulary_t;

/** Read "model" of tokenizer.json. Call lode_vocabulary_free() whatever it returns. */
lode_status_t lode_vocabulary_read(const json_t *model, lode_vocabulary_t *vocabulary);
void lode_vocabulary_free(lode_vocabulary_t *vocabulary);
/** Put an added token where its id says, or check that it is the one there. */
lode_status_t lode_vocabulary_add(lode_vocabulary_t *vocabulary, uint32_t id, const char *text);
/** Append the tokens of a word. */
lode_status_t lode_vocabulary_encode(lode_vocabulary_t *vocabulary, const char *word, size_t bytes,
                                     lode_tokens_t *tokens);
lode_status_t lode_tokens_append(lode_tokens_t *tokens, const uint32_t *ids, size_t count);

/* ------------------------------------------------------------------- splitting */

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

/** One cut of a text into pieces by a pattern. */
typedef struct lode_cut {
    struct pcre2_real_code_8 *code;
    struct pcre2_real_match_data_8 *match;
    bool removes;  /**< matches are left out; else they are pieces like what is between them */
    bool inverted; /**< what is between matches counts as the match */
} lode_cut_t;

typedef struct lode_splitter {
    lode_cut_t stages[LODE_CUTS_MAX];
    uint32_t count;
    bool bytes_reached; /**< a ByteLevel was read: nothing may follow */
} lode_splitter_t;

/** Read "pre_tokenizer". Call lode_splitter_free() whatever it returns. */
lode_status_t lode_splitter_read(const json_t *pre_tokenizer, lode_splitter_t *splitter);
void lode_splitter_free(lode_splitter_t *splitter);
typedef lode_status_t (*lode_piece_f)(void *self, const char *piece, size_t bytes);
/** Call @p piece with each piece of the text, in order, from stage @p stage on (0: all). */
lode_status_t lode_splitter_run(const lode_splitter_t *splitter, uint32_t stage, const char *text, size_t bytes,
                                lode_piece_f piece, void *self);

/* --------------------------------------------------------------------- whole */

/** An added token, to be looked for in texts. */
typedef struct lode_added {
    const char *text; /**< (bytes) owned */
    size_t bytes;
    uint32_t id;
} lode_added_t;

/** Sorted by text; the longest at the leftmost place wins. */
typedef struct lode_added_list {
    lode_added_t *items;
    size_t count;
    bool begins[256]; /**< whether one begins with this byte */
} lode_added_list_t;

struct lode_tokenizer {
    lode_vocabulary_t vocabulary;
    lode_splitter_t splitter;
    lode_added_list_t raw, normal; /**< looked for before and after normalizing */
    bool composes;                 /**< the normalizer is NFC */
    int64_t begin;
};

/** Read all of tokenizer.json. */
lode_status_t lode_tokenizer_read(const json_t *file, lode_tokenizer_h *tokenizer);
/** Load a JSON file of at most @p most bytes. */
lode_status_t lode_read_json(const char *path, size_t most, json_t **json);

/** "Sequence" of what may be a text; "" if there is none. Borrowed. */
static inline const char *lode_json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

#endif
