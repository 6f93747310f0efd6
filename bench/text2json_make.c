/* SPDX-License-Identifier: Apache-2.0 */
/* Samples: who is asked for, who is not but looks like it, in how many words, in which order. */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

enum {
    SENTENCE_TOKENS = 15, /* about */
    EXTRA_MAX = 10,       /* sentences beside those that are needed */
    NAME_DRAWS = 1000
};

/* Tokens of what is around the documents and of a document with nothing but what is asked for: not exceeded (a test).
 */
static const struct {
    uint32_t request, item, first;
} most_tokens[] = {[LODE_TASK_TEXT2JSON] = {130, 130, 0},
                   [LODE_TASK_MULTI_NEEDLE] = {130, 130, 130},
                   [LODE_TASK_HTML_TO_TSV] = {600, 300, 0}};

/* ------------------------------------------------------------------ pieces */

void lode_pieces_add(lode_pieces_t *pieces, const lode_prose_t *text, int32_t item)
{
    if (pieces->count == pieces->room) {
        uint32_t room = pieces->room ? 2 * pieces->room : 64;
        lode_piece_t *grown = realloc(pieces->list, room * sizeof *grown);
        if (!grown) {
            pieces->failed = true;
            return;
        }
        pieces->list = grown;
        pieces->room = room;
    }
    char *copy = text->text && !text->failed ? strdup(text->text) : NULL;
    if (!copy) {
        pieces->failed = true;
        return;
    }
    lode_piece_t *piece = &pieces->list[pieces->count++];
    *piece = (lode_piece_t){copy, lode_text2json_tokens(copy), item};
    if (pieces->numbered)
        piece->tokens += 4 + (pieces->count > 999) + (pieces->count > 999999);
    pieces->tokens += piece->tokens;
}

void lode_pieces_cut(lode_pieces_t *pieces, uint32_t count)
{
    while (pieces->count > count) {
        lode_piece_t *last = &pieces->list[--pieces->count];
        pieces->tokens -= last->tokens;
        free(last->text);
    }
}

void lode_pieces_shuffle(lode_pieces_t *pieces, lode_random_t *random)
{
    for (uint32_t i = pieces->count; i > 1; i--) {
        uint32_t j = lode_random_below(random, i);
        lode_piece_t swapped = pieces->list[i - 1];
        pieces->list[i - 1] = pieces->list[j];
        pieces->list[j] = swapped;
    }
}

void lode_pieces_write(const lode_pieces_t *pieces, lode_prose_t *out)
{
    for (uint32_t i = 0; i < pieces->count; i++) {
        lode_prose_format(out, "Document %u\n", i + 1);
        lode_prose_add(out, pieces->list[i].text);
        lode_prose_add(out, "\n");
    }
}

void lode_pieces_free(lode_pieces_t *pieces)
{
    lode_pieces_cut(pieces, 0);
    free(pieces->list);
    *pieces = (lode_pieces_t){0};
}

/* ----------------------------------------------------------------- entities */

static lode_status_t no_memory(void)
{
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory to make a sample");
}

/* Whether the name is new; if so it is used now. */
static lode_status_t use_name(lode_making_t *m, const char *name, bool *fresh)
{
    uint64_t hash = lode_hash_text(name);
    *fresh = false;
    for (uint32_t i = 0; i < m->name_count; i++)
        if (m->names[i] == hash)
            return LODE_OK;
    if (m->name_count == m->name_room) {
        uint32_t room = m->name_room ? 2 * m->name_room : 256;
        uint64_t *grown = realloc(m->names, room * sizeof *grown);
        if (!grown)
            return no_memory();
        m->names = grown;
        m->name_room = room;
    }
    m->names[m->name_count++] = hash;
    *fresh = true;
    return LODE_OK;
}

/* A name that is new; like that of @p near, if given, as long as such names last. */
static lode_status_t draw_name(lode_making_t *m, const lode_entity_t *near, lode_entity_t *e)
{
    bool fresh = false;
    for (uint32_t i = 0; i < NAME_DRAWS && !fresh; i++) {
        if (near && i < 20)
            lode_entity_vary_name(e, near, &m->random, m->params->split);
        else
            lode_entity_draw_name(e, &m->random, m->params->split);
        LODE_TRY(use_name(m, e->name, &fresh));
    }
    return fresh ? LODE_OK : lode_fail(LODE_ERR_INVALID, "names run out; ask for fewer tokens");
}

static const char *place_of_sample(lode_making_t *m)
{
    return m->places[lode_random_below(&m->random, sizeof m->places / sizeof *m->places)];
}

lode_status_t lode_making_new_place(lode_making_t *m, char place[64])
{
    static const lode_domain_t *const with_places = &lode_domains[1]; /* doctors practise in invented places */
    bool fresh = false;
    for (uint32_t i = 0; i < NAME_DRAWS && !fresh; i++) {
        lode_entity_draw_value(with_places, 0, &m->random, m->params->split, place);
        LODE_TRY(use_name(m, place, &fresh));
    }
    return fresh ? LODE_OK : lode_fail(LODE_ERR_INVALID, "places run out; ask for fewer items");
}

static void set_kind(lode_entity_t *e, const char *kind)
{
    snprintf(e->kind, sizeof e->kind, "%s", kind);
}

static void set_place(lode_entity_t *e, const char *place)
{
    snprintf(e->values[0], sizeof e->values[0], "%s", place);
}

static const char *other_kind(lode_making_t *m, const char *than)
{
    const char *kind;
    do
        kind = lode_words_pick(m->domain->kinds, m->params->split, &m->random);
    while (strcmp(kind, than) == 0);
    return kind;
}

static const char *other_place(lode_making_t *m, const char *than)
{
    const char *place;
    do
        place = place_of_sample(m);
    while (strcmp(place, than) == 0);
    return place;
}

static lode_status_t make_item(lode_making_t *m, lode_entity_t *e)
{
    *e = (lode_entity_t){.domain = m->domain};
    LODE_TRY(draw_name(m, NULL, e));
    lode_entity_draw_values(e, &m->random, m->params->split);
    set_kind(e, m->kind);
    set_place(e, m->place ? m->place : place_of_sample(m));
    return LODE_OK;
}

/* Of another kind or from another place; it may have nearly the name of an item, or be said not to be of the kind. */
static lode_status_t make_other(lode_making_t *m, lode_entity_t *e, lode_telling_t *telling)
{
    uint32_t nearness = lode_random_below(&m->random, 8);
    const lode_entity_t *near =
        nearness < 3 && m->items ? &m->items[lode_random_below(&m->random, m->item_count)] : NULL;
    *e = (lode_entity_t){.domain = m->domain};
    *telling = (lode_telling_t){.introduced = true, .before = -1};
    LODE_TRY(draw_name(m, near, e));
    lode_entity_draw_values(e, &m->random, m->params->split);
    set_kind(e, other_kind(m, m->kind));
    set_place(e, place_of_sample(m));
    if (nearness % 4 == 1)
        telling->mistaken = m->kind;
    if (m->place && nearness % 4 == 2) { /* the right kind in the wrong place */
        set_kind(e, m->kind);
        set_place(e, other_place(m, m->place));
        telling->facts = 1;
    } else if (m->place && nearness % 4 == 3) { /* the right place, the wrong kind */
        set_place(e, m->place);
        telling->facts = 1;
    }
    return LODE_OK;
}

/* ------------------------------------------------------------------- begin */

/* Most are short: the least of four draws, whose mean lies a fifth of the way up. */
static uint32_t draw_tokens(const lode_text2json_params_t *p, lode_random_t *random)
{
    uint32_t least = p->tokens_max;
    for (int i = 0; i < 4; i++) {
        uint32_t drawn = lode_random_between(random, p->tokens_min, p->tokens_max);
        least = drawn < least ? drawn : least;
    }
    return least;
}

static const lode_domain_t *draw_domain(uint32_t domains, lode_random_t *random)
{
    uint32_t nth = lode_random_below(random, (uint32_t)__builtin_popcount(domains));
    for (uint32_t i = 0;; i++)
        if (domains >> i & 1 && nth-- == 0)
            return &lode_domains[i];
}

/* Items that surely fit, of those wanted. */
static uint32_t fitting_items(const lode_text2json_params_t *p, uint32_t tokens)
{
    uint32_t around = most_tokens[p->task].request + most_tokens[p->task].first;
    uint32_t wanted = p->items_max, fit = tokens > around ? (tokens - around) / most_tokens[p->task].item : 0;
    wanted = wanted < fit ? wanted : fit;
    return wanted > p->items_min ? wanted : p->items_min;
}

static bool drawn_before(const lode_making_t *m, uint32_t place)
{
    for (uint32_t i = 0; i < place; i++)
        if (strcmp(m->places[i], m->places[place]) == 0)
            return true;
    return false;
}

static void draw_places(lode_making_t *m)
{
    for (uint32_t i = 0; i < sizeof m->places / sizeof *m->places; i++)
        do
            lode_entity_draw_value(m->domain, 0, &m->random, m->params->split, m->places[i]);
        while (drawn_before(m, i));
}

static void draw_asked(lode_making_t *m)
{
    uint32_t first = m->place ? 1 : 0; /* what is given is not asked for */
    m->asked[0] = lode_random_between(&m->random, first, LODE_ATTRIBUTES - 1);
    do
        m->asked[1] = lode_random_between(&m->random, first, LODE_ATTRIBUTES - 1);
    while (m->asked[1] == m->asked[0]);
}

void lode_making_begin(const lode_text2json_params_t *params, uint64_t index, lode_making_t *m)
{
    uint64_t seed = lode_mix(lode_mix(params->seed, 0x74657874u + (uint64_t)params->task), index);
    *m = (lode_making_t){.params = params, .random = {.seed = seed}};
    m->pieces.numbered = params->task != LODE_TASK_HTML_TO_TSV;
    m->domain = draw_domain(params->domains, &m->random);
    m->tokens = draw_tokens(params, &m->random);
    m->kind = lode_words_pick(m->domain->kinds, params->split, &m->random);
    draw_places(m);
    m->place = lode_random_once_in(&m->random, 2) ? place_of_sample(m) : NULL;
    draw_asked(m);
    m->layout = lode_random_below(&m->random, 3);
    m->item_count = lode_random_between(&m->random, params->items_min, fitting_items(params, m->tokens));
    uint32_t each = m->tokens / (3 * m->item_count), needed = 4 * SENTENCE_TOKENS;
    m->extra = each > needed ? (each - needed) / SENTENCE_TOKENS : 0;
    m->extra = m->extra < EXTRA_MAX ? m->extra : EXTRA_MAX;
}

void lode_making_end(lode_making_t *m)
{
    free(m->items);
    free(m->names);
    lode_pieces_free(&m->pieces);
    lode_prose_free(&m->room);
}

void lode_making_request(const lode_making_t *m, lode_prose_t *out)
{
    lode_prose_format(out, "every %s", m->kind);
    if (m->place)
        lode_prose_format(out, " %s %s", m->domain->request_place, m->place);
}

/* -------------------------------------------------------------- paragraphs */

/* Some of the extra sentences tell other facts, the rest nothing. */
static void draw_extra(lode_making_t *m, lode_telling_t *telling)
{
    uint32_t extra = m->extra ? lode_random_between(&m->random, m->extra / 3, m->extra) : 0;
    uint32_t facts = extra / 2;
    for (uint32_t i = 0; i < facts; i++)
        telling->facts |= (uint8_t)(1u << lode_random_below(&m->random, LODE_ATTRIBUTES));
    telling->colour = (uint8_t)(extra - facts);
    if (extra && lode_random_once_in(&m->random, 3))
        telling->before = (int)m->asked[lode_random_below(&m->random, 2)];
    lode_text2json_style_t style = m->params->style;
    telling->card =
        style == LODE_TEXT2JSON_CARDS || (style == LODE_TEXT2JSON_MIXED && lode_random_once_in(&m->random, 3));
}

static void add_piece(lode_making_t *m, const lode_entity_t *e, const lode_telling_t *telling, int32_t item)
{
    lode_prose_clear(&m->room);
    if (m->params->task == LODE_TASK_HTML_TO_TSV)
        lode_html_tell(m, e, &m->random, &m->room);
    else
        lode_entity_tell(e, telling, &m->random, m->params->split, &m->room);
    lode_pieces_add(&m->pieces, &m->room, item);
}

/* One document, or two far apart: what kind it is and where in the first, some of the rest in the second. */
static void tell(lode_making_t *m, const lode_entity_t *e, lode_telling_t telling, int32_t item)
{
    bool whole = m->params->task == LODE_TASK_HTML_TO_TSV;
    bool apart = !whole && m->extra >= EXTRA_MAX / 2 && lode_random_once_in(&m->random, 4);
    if (!apart) {
        add_piece(m, e, &telling, item);
        return;
    }
    lode_telling_t second = telling;
    second.facts = telling.facts & (uint8_t)(1u << m->asked[1] | 1u << (1 + lode_random_below(&m->random, 5)));
    second.facts &= 0xfe;
    second.introduced = false;
    second.mistaken = NULL;
    second.colour = telling.colour / 2;
    telling.facts &= (uint8_t)~second.facts;
    telling.colour = (uint8_t)(telling.colour - second.colour);
    add_piece(m, e, &telling, item);
    if (second.facts)
        add_piece(m, e, &second, -1);
}

/* A page does not say everything. */
static void leave_out(lode_making_t *m, lode_entity_t *e)
{
    for (int i = 0; i < 2; i++)
        if (lode_random_once_in(&m->random, 12))
            *e->values[m->asked[i]] = 0;
}

lode_status_t lode_making_items(lode_making_t *m)
{
    m->items = calloc(m->item_count, sizeof *m->items);
    if (!m->items)
        return no_memory();
    for (uint32_t i = 0; i < m->item_count; i++) {
        lode_telling_t telling = {.introduced = true, .before = -1};
        LODE_TRY(make_item(m, &m->items[i]));
        telling.facts = (uint8_t)(1u << m->asked[0] | 1u << m->asked[1] | (m->place != NULL));
        draw_extra(m, &telling);
        if (m->params->task == LODE_TASK_HTML_TO_TSV)
            leave_out(m, &m->items[i]);
        if (m->extra && lode_random_once_in(&m->random, 8))
            telling.mistaken = other_kind(m, m->kind);
        tell(m, &m->items[i], telling, (int32_t)i);
    }
    return LODE_OK;
}

lode_status_t lode_making_fill(lode_making_t *m, uint32_t around)
{
    uint32_t refused = 0;
    while ((!m->pieces.count || m->pieces.tokens + around < m->tokens) && refused < 8 && !m->pieces.failed) {
        lode_entity_t other;
        lode_telling_t telling;
        uint32_t before = m->pieces.count;
        LODE_TRY(make_other(m, &other, &telling));
        telling.facts |= (uint8_t)(1u << m->asked[lode_random_below(&m->random, 2)]);
        if (m->extra)
            telling.facts |= (uint8_t)(1u << m->asked[0] | 1u << m->asked[1]);
        draw_extra(m, &telling);
        tell(m, &other, telling, -1);
        if (m->pieces.tokens + around <= m->params->tokens_max)
            continue;
        lode_pieces_cut(&m->pieces, before); /* too much: another may be shorter */
        refused++;
    }
    return LODE_OK;
}

/* ------------------------------------------------------------------- sample */

lode_status_t lode_making_finish(lode_making_t *m, lode_status_t status, lode_prose_t *problem, lode_prose_t *request,
                                 char *answer, lode_text2json_sample_t *sample)
{
    lode_prose_add(problem, request->text ? request->text : "");
    if (status == LODE_OK && (m->pieces.failed || m->room.failed || problem->failed || request->failed || !answer))
        status = no_memory();
    lode_prose_free(request);
    if (status != LODE_OK) {
        lode_prose_free(problem);
        free(answer);
        return status;
    }
    *sample = (lode_text2json_sample_t){problem->text, answer,          lode_prose_tokens(problem),
                                        m->item_count, m->pieces.count, m->domain->name};
    return LODE_OK;
}

static char *answer_of(const lode_making_t *m)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->pieces.count; i++) {
        if (m->pieces.list[i].item < 0)
            continue;
        const lode_entity_t *e = &m->items[m->pieces.list[i].item];
        const lode_attribute_t *attributes = m->domain->attributes;
        json_array_append_new(list,
                              json_pack("{s:s s:s s:s}", "name", e->name, attributes[m->asked[0]].key,
                                        e->values[m->asked[0]], attributes[m->asked[1]].key, e->values[m->asked[1]]));
    }
    char *text = json_dumps(list, 0);
    json_decref(list);
    return text;
}

lode_status_t lode_make_text2json(lode_making_t *m, lode_text2json_sample_t *sample)
{
    lode_prose_t problem = {0}, request = {0};
    const lode_attribute_t *first = &m->domain->attributes[m->asked[0]], *second = &m->domain->attributes[m->asked[1]];
    lode_prose_format(&problem, "Read these documents about %s. A request follows the last one.\n\n", m->domain->name);
    lode_prose_add(&request, "Request: list ");
    lode_making_request(m, &request);
    lode_prose_format(&request,
                      " that the documents describe. Answer with a JSON list and nothing else. For each give an object "
                      "of three keys, all values strings: \"name\", \"%s\" (%s), \"%s\" (%s). Copy names and values as "
                      "they are written.\n",
                      first->key, first->asked, second->key, second->asked);
    lode_status_t status = lode_making_items(m);
    if (status == LODE_OK)
        status = lode_making_fill(m, lode_prose_tokens(&problem) + lode_prose_tokens(&request));
    lode_pieces_shuffle(&m->pieces, &m->random);
    lode_pieces_write(&m->pieces, &problem);
    return lode_making_finish(m, status, &problem, &request, status == LODE_OK ? answer_of(m) : NULL, sample);
}

lode_status_t lode_text2json_check(const lode_text2json_params_t *p)
{
    uint64_t least =
        most_tokens[p->task].request + most_tokens[p->task].first + (uint64_t)p->items_min * most_tokens[p->task].item;
    if (!p->items_min || p->items_min > p->items_max || p->tokens_min > p->tokens_max)
        return lode_fail(LODE_ERR_INVALID, "a range goes from 1 or more up, as in 3:20");
    if (!p->domains || p->domains >> LODE_TEXT2JSON_DOMAINS)
        return lode_fail(LODE_ERR_INVALID, "no domain to make samples of");
    if (p->tokens_max < least)
        return lode_fail(
            LODE_ERR_INVALID,
            "%u tokens have no room for %u items, which can need %llu; raise the tokens or lower the items",
            p->tokens_max, p->items_min, (unsigned long long)least);
    return LODE_OK;
}

lode_status_t lode_text2json_make(const lode_text2json_params_t *params, uint64_t index,
                                  lode_text2json_sample_t *sample)
{
    lode_making_t making;
    LODE_TRY(lode_text2json_check(params));
    lode_making_begin(params, index, &making);
    lode_status_t status = params->task == LODE_TASK_MULTI_NEEDLE  ? lode_make_multi_needle(&making, sample)
                           : params->task == LODE_TASK_HTML_TO_TSV ? lode_make_html_to_tsv(&making, sample)
                                                                   : lode_make_text2json(&making, sample);
    lode_making_end(&making);
    return status;
}

void lode_text2json_sample_free(lode_text2json_sample_t *sample)
{
    free(sample->problem);
    free(sample->answer);
    *sample = (lode_text2json_sample_t){0};
}
