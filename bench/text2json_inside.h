/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file text2json_inside.h
 * @brief What the makers of long-text tasks share: numbers drawn from a seed, growing text, word lists, invented
 * entities and sentences about them.
 *
 * Whole numbers only, so that a seed gives the same bytes on every machine.
 */
#ifndef LODE_BENCH_TEXT2JSON_INSIDE_H
#define LODE_BENCH_TEXT2JSON_INSIDE_H

#include "bench/text2json.h"

/* ------------------------------------------------------------------- random */

typedef struct lode_random {
    uint64_t seed, drawn;
} lode_random_t;

static inline uint32_t lode_random_bits(lode_random_t *random)
{
    return (uint32_t)(lode_mix(random->seed, ++random->drawn) >> 32);
}

/** Uniform in [0, n), n >= 1. */
static inline uint32_t lode_random_below(lode_random_t *random, uint32_t n)
{
    return (uint32_t)((uint64_t)lode_random_bits(random) * n >> 32);
}

/** Uniform in [least, most]. */
static inline uint32_t lode_random_between(lode_random_t *random, uint32_t least, uint32_t most)
{
    return least + lode_random_below(random, most - least + 1);
}

/** True once in @p n times. */
static inline bool lode_random_once_in(lode_random_t *random, uint32_t n)
{
    return lode_random_below(random, n) == 0;
}

/* -------------------------------------------------------------------- prose */

/** Text that grows. Once memory ran out it stays as it is and says so at the end. */
typedef struct lode_prose {
    char *text; /**< ends with 0; NULL while empty */
    size_t bytes, room;
    bool failed;
} lode_prose_t;

void lode_prose_add(lode_prose_t *prose, const char *text);
void lode_prose_bytes(lode_prose_t *prose, const char *text, size_t bytes);
void lode_prose_format(lode_prose_t *prose, const char *format, ...) __attribute__((format(printf, 2, 3)));
void lode_prose_free(lode_prose_t *prose);
uint32_t lode_prose_tokens(const lode_prose_t *prose);
/** Back to no text, with the room kept. */
void lode_prose_clear(lode_prose_t *prose);

/* -------------------------------------------------------------------- words */

/** A list of which every fourth word is held out for tests. */
typedef struct lode_words {
    const char *const *list;
    uint32_t count; /**< a multiple of four */
} lode_words_t;

static inline uint32_t lode_words_count(const lode_words_t *words, lode_text2json_split_t split)
{
    return split == LODE_TEXT2JSON_TEST ? words->count / 4 : words->count - words->count / 4;
}

/** The @p i-th word of a split. */
static inline const char *lode_words_at(const lode_words_t *words, lode_text2json_split_t split, uint32_t i)
{
    return words->list[split == LODE_TEXT2JSON_TEST ? 4 * i + 3 : i + i / 3];
}

static inline const char *lode_words_pick(const lode_words_t *words, lode_text2json_split_t split,
                                          lode_random_t *random)
{
    return lode_words_at(words, split, lode_random_below(random, lode_words_count(words, split)));
}

/* Beginnings are split, endings are shared: what is made of both is of one split only. */
extern const lode_words_t lode_words_brand, lode_words_surname, lode_words_place, lode_words_first_name;
extern const lode_words_t lode_words_brand_end, lode_words_surname_end, lode_words_place_end;
extern const lode_words_t lode_words_product, lode_words_speciality, lode_words_organisation, lode_words_genre;
extern const lode_words_t lode_words_country, lode_words_colour, lode_words_material, lode_words_language;
extern const lode_words_t lode_words_film_noun, lode_words_adjective, lode_words_aim, lode_words_key_word;

/* ----------------------------------------------------------------- entities */

enum { LODE_ATTRIBUTES = 6, LODE_TEMPLATES = 6, LODE_NAME_PARTS = 6 };

/** How a value is made. */
typedef enum lode_value_kind {
    LODE_VALUE_WORD,
    LODE_VALUE_NUMBER,
    LODE_VALUE_PRICE,
    LODE_VALUE_PHONE,
    LODE_VALUE_ROOM,
    LODE_VALUE_PERSON,
    LODE_VALUE_PLACE
} lode_value_kind_t;

/**
 * Something that every entity of a domain has. In sentences {s} is the entity in any form, {n} never a pronoun, {p} its
 * possessive, {v} the value, {o} another value of the kind.
 */
typedef struct lode_attribute {
    const char *key;   /**< in the answer */
    const char *asked; /**< in the request */
    const char *label; /**< on a card */
    struct {
        lode_value_kind_t kind;
        const lode_words_t *words;  /**< WORD */
        uint32_t least, most, step; /**< NUMBER; PRICE in whole units */
        const char *before, *after; /**< around any, or NULL */
    } value;
    const char *sentences[LODE_TEMPLATES];
    const char *before[2]; /**< with {v}, which holds, and {o}, which held before */
} lode_attribute_t;

/** One of the four. Attribute 0 is a place that a request may ask for. */
typedef struct lode_domain {
    const char *name;
    const lode_words_t *kinds;              /**< noun phrases, singular */
    const char *kind_label, *request_place; /**< "made in": before a place in the request */
    const char *intro[LODE_TEMPLATES];      /**< with {k}: a kind with its article */
    const char *mistaken[2];                /**< with {k}: a kind that it is not */
    const char *const *colour;              /**< what can be said of any; ends with NULL */
    lode_attribute_t attributes[LODE_ATTRIBUTES];
    void (*draw_name)(lode_random_t *random, lode_text2json_split_t split, uint32_t parts[LODE_NAME_PARTS]);
    /** Change one part, so that the name is nearly the same. */
    void (*vary_name)(lode_random_t *random, lode_text2json_split_t split, uint32_t parts[LODE_NAME_PARTS]);
    void (*write_name)(lode_prose_t *out, lode_text2json_split_t split, const uint32_t parts[LODE_NAME_PARTS]);
    /** "the drill", "Dr. Holm": the entity once its name was said. */
    void (*write_short)(lode_prose_t *out, const char *kind, const char *name);
    bool pronoun; /**< whether "it" will do */
} lode_domain_t;

extern const lode_domain_t lode_domains[LODE_TEXT2JSON_DOMAINS];

typedef struct lode_entity {
    const lode_domain_t *domain;
    uint32_t parts[LODE_NAME_PARTS];
    char name[96], kind[64];
    char values[LODE_ATTRIBUTES][64];
} lode_entity_t;

void lode_entity_draw_name(lode_entity_t *entity, lode_random_t *random, lode_text2json_split_t split);
void lode_entity_vary_name(lode_entity_t *entity, const lode_entity_t *of, lode_random_t *random,
                           lode_text2json_split_t split);
/** All values; not the kind. */
void lode_entity_draw_values(lode_entity_t *entity, lode_random_t *random, lode_text2json_split_t split);
/** Another value of attribute @p which. */
void lode_entity_draw_value(const lode_domain_t *domain, uint32_t which, lode_random_t *random,
                            lode_text2json_split_t split, char value[64]);

/** What is written about an entity. */
typedef struct lode_telling {
    uint8_t facts;        /**< bit i: attribute i is told */
    uint8_t colour;       /**< sentences that tell nothing */
    bool introduced;      /**< begins with what kind it is */
    const char *mistaken; /**< a kind that it is said not to be, or NULL */
    int before;           /**< attribute that is told with an earlier value, or -1 */
    bool card;            /**< "label: value" lines, not sentences */
} lode_telling_t;

/** Add a paragraph. Every fact told is in it letter by letter, and the name. */
void lode_entity_tell(const lode_entity_t *entity, const lode_telling_t *telling, lode_random_t *random,
                      lode_text2json_split_t split, lode_prose_t *out);

/* --------------------------------------------------------------- documents */

typedef struct lode_piece {
    char *text;
    uint32_t tokens;
    int32_t item; /**< the item of the answer that it introduces, -1 for none */
} lode_piece_t;

/** The documents of a problem, until they are put in order. */
typedef struct lode_pieces {
    lode_piece_t *list;
    uint32_t count, room, tokens;
    bool numbered; /**< each gets a line with its number */
    bool failed;   /**< memory ran out */
} lode_pieces_t;

/** Takes a copy of the text. */
void lode_pieces_add(lode_pieces_t *pieces, const lode_prose_t *text, int32_t item);
/** Drop all pieces from the @p count-th on. */
void lode_pieces_cut(lode_pieces_t *pieces, uint32_t count);
void lode_pieces_shuffle(lode_pieces_t *pieces, lode_random_t *random);
/** Each under a line "Document 1", "Document 2" …, with an empty line behind it. */
void lode_pieces_write(const lode_pieces_t *pieces, lode_prose_t *out);
void lode_pieces_free(lode_pieces_t *pieces);

/** One sample in the making: entities of a domain, some of which are asked for. */
typedef struct lode_making {
    const lode_text2json_params_t *params;
    lode_random_t random;
    const lode_domain_t *domain;
    const char *kind;     /**< asked for */
    char places[8][64];   /**< of this sample */
    const char *place;    /**< asked for, or NULL */
    uint32_t asked[2];    /**< attributes that the answer gives */
    uint32_t tokens;      /**< to come near */
    uint32_t extra;       /**< sentences at most, beside those that are needed */
    lode_entity_t *items; /**< of the answer */
    uint32_t item_count;
    uint64_t *names; /**< hashes of those used */
    uint32_t name_count, name_room;
    uint32_t layout; /**< of a page */
    lode_pieces_t pieces;
    lode_prose_t room; /**< the piece being written */
} lode_making_t;

/** Draw what sample @p index is about. */
void lode_making_begin(const lode_text2json_params_t *params, uint64_t index, lode_making_t *making);
void lode_making_end(lode_making_t *making);
/** Make the items of the answer and tell of them. */
lode_status_t lode_making_items(lode_making_t *making);
/**
 * Tell of others, some of which come near to what is asked for, until there is as much text as was drawn, @p around
 * tokens of other text included; at least of one if there is nothing yet.
 */
lode_status_t lode_making_fill(lode_making_t *making, uint32_t around);
/** A place that this sample did not give out yet. */
lode_status_t lode_making_new_place(lode_making_t *making, char place[64]);
/**
 * The finished sample: the problem, then the request. Takes all three texts, also on failure.
 * @param status  of what was done so far, given back if it is a failure
 * @param answer  NULL for no memory
 */
lode_status_t lode_making_finish(lode_making_t *making, lode_status_t status, lode_prose_t *problem,
                                 lode_prose_t *request, char *answer, lode_text2json_sample_t *sample);
/** "every cordless drill made in Portugal" */
void lode_making_request(const lode_making_t *making, lode_prose_t *out);

/** An entity as part of a page, in the sample's layout. */
void lode_html_tell(const lode_making_t *making, const lode_entity_t *entity, lode_random_t *random, lode_prose_t *out);

lode_status_t lode_make_text2json(lode_making_t *making, lode_text2json_sample_t *sample);
lode_status_t lode_make_multi_needle(lode_making_t *making, lode_text2json_sample_t *sample);
lode_status_t lode_make_html_to_tsv(lode_making_t *making, lode_text2json_sample_t *sample);

#endif
