/* SPDX-License-Identifier: Apache-2.0 */
/* Text that grows, what it weighs in tokens, and paragraphs about an entity. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

/* -------------------------------------------------------------------- prose */

static bool make_room(lode_prose_t *prose, size_t bytes)
{
    if (prose->failed)
        return false;
    if (prose->bytes + bytes < prose->room)
        return true;
    size_t room = (prose->bytes + bytes + 1) * 2;
    char *grown = realloc(prose->text, room);
    if (!grown) {
        prose->failed = true;
        return false;
    }
    prose->text = grown;
    prose->room = room;
    return true;
}

void lode_prose_bytes(lode_prose_t *prose, const char *text, size_t bytes)
{
    if (!make_room(prose, bytes))
        return;
    memcpy(prose->text + prose->bytes, text, bytes);
    prose->bytes += bytes;
    prose->text[prose->bytes] = 0;
}

void lode_prose_add(lode_prose_t *prose, const char *text)
{
    lode_prose_bytes(prose, text, strlen(text));
}

void lode_prose_format(lode_prose_t *prose, const char *format, ...)
{
    va_list arguments;
    char text[512];
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n < 0 || n >= (int)sizeof text)
        prose->failed = true;
    else
        lode_prose_bytes(prose, text, (size_t)n);
}

void lode_prose_free(lode_prose_t *prose)
{
    free(prose->text);
    *prose = (lode_prose_t){0};
}

void lode_prose_clear(lode_prose_t *prose)
{
    prose->bytes = 0;
    if (prose->text)
        *prose->text = 0;
}

/* ------------------------------------------------------------------- tokens */

/* ctype.h asks the caller's locale. */
static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

uint32_t lode_text2json_tokens(const char *text)
{
    enum { LETTERS = 6, DIGITS = 3 };
    uint32_t tokens = 0;
    for (const char *at = text; *at;) {
        uint32_t run = 0;
        if (is_letter(*at)) {
            while (is_letter(at[run]))
                run++;
            tokens += run <= LETTERS ? 1 : 1 + (run - 1) / LETTERS;
        } else if (is_digit(*at)) {
            while (is_digit(at[run]))
                run++;
            tokens += (run + DIGITS - 1) / DIGITS;
        } else {
            tokens += *at != ' ';
            run = 1;
        }
        at += run;
    }
    return tokens;
}

uint32_t lode_prose_tokens(const lode_prose_t *prose)
{
    return prose->text ? lode_text2json_tokens(prose->text) : 0;
}

/* ---------------------------------------------------------------- sentences */

/* Forms in which a sentence may speak of its entity. */
enum { SAY_NAME, SAY_SHORT, SAY_PRONOUN };

typedef struct sentence {
    const lode_entity_t *entity;
    const char *value, *other, *kind;
    bool name_first; /**< nothing was said of the entity yet */
} sentence_t;

static int draw_form(const sentence_t *s, bool pronoun, lode_random_t *random)
{
    if (s->name_first || lode_random_once_in(random, 3))
        return SAY_NAME;
    return pronoun && s->entity->domain->pronoun && lode_random_once_in(random, 2) ? SAY_PRONOUN : SAY_SHORT;
}

static void say_entity(lode_prose_t *out, sentence_t *s, bool pronoun, bool possessive, lode_random_t *random)
{
    int form = draw_form(s, pronoun, random);
    s->name_first = false;
    if (form == SAY_PRONOUN) {
        lode_prose_add(out, possessive ? "its" : "it");
        return;
    }
    if (form == SAY_NAME)
        lode_prose_add(out, s->entity->name);
    else
        s->entity->domain->write_short(out, s->entity->kind, s->entity->name);
    if (possessive)
        lode_prose_add(out, "'s");
}

static void say_kind(lode_prose_t *out, const char *kind)
{
    lode_prose_format(out, "%s %s", strchr("aeiou", *kind) ? "an" : "a", kind);
}

static void expand(lode_prose_t *out, const char *pattern, sentence_t *s, lode_random_t *random)
{
    while (*pattern) {
        size_t plain = strcspn(pattern, "{");
        lode_prose_bytes(out, pattern, plain);
        pattern += plain;
        if (!*pattern)
            break;
        switch (pattern[1]) {
        case 's':
            say_entity(out, s, true, false, random);
            break;
        case 'n':
            say_entity(out, s, false, false, random);
            break;
        case 'p':
            say_entity(out, s, true, true, random);
            break;
        case 'v':
            lode_prose_add(out, s->value);
            break;
        case 'o':
            lode_prose_add(out, s->other);
            break;
        case 'k':
            say_kind(out, s->kind);
            break;
        }
        pattern += 3;
    }
}

static const char *const openers[] = {
    "according to the latest listing, ",
    "as far as the records show, ",
    "on paper, ",
    "for the record, ",
    "as the notes put it, ",
    "by all accounts, ",
    "readers often ask, and the answer is simple: ",
    "checked again this month: ",
    "one detail stands out: ",
    "in short, ",
    "it is worth knowing that ",
    "the register states that ",
};

/** Add a sentence, sometimes with something before it, beginning with a capital, ending with a full stop. */
static void add_sentence(lode_prose_t *out, const char *pattern, sentence_t *s, lode_random_t *random)
{
    if (out->bytes && out->text[out->bytes - 1] != '\n')
        lode_prose_add(out, " ");
    size_t begin = out->bytes;
    if (!s->name_first && lode_random_once_in(random, 6))
        lode_prose_add(out, openers[lode_random_below(random, sizeof openers / sizeof *openers)]);
    expand(out, pattern, s, random);
    lode_prose_add(out, ".");
    if (out->bytes > begin && out->text[begin] >= 'a' && out->text[begin] <= 'z')
        out->text[begin] = (char)(out->text[begin] - 'a' + 'A');
}

static const char *pick(const char *const *list, uint32_t room, lode_random_t *random)
{
    uint32_t n = 0;
    while (n < room && list[n])
        n++;
    return list[lode_random_below(random, n)];
}

/* -------------------------------------------------------------- paragraphs */

static void tell_card(const lode_entity_t *e, const lode_telling_t *telling, const uint32_t *order, uint32_t facts,
                      lode_prose_t *out)
{
    lode_prose_format(out, "Name: %s\n", e->name);
    if (telling->introduced)
        lode_prose_format(out, "%s: %s\n", e->domain->kind_label, e->kind);
    for (uint32_t i = 0; i < facts; i++)
        lode_prose_format(out, "%s: %s\n", e->domain->attributes[order[i]].label, e->values[order[i]]);
}

static void tell_fact(const lode_entity_t *e, uint32_t which, bool before, sentence_t *s, lode_random_t *random,
                      lode_text2json_split_t split, lode_prose_t *out)
{
    const lode_attribute_t *a = &e->domain->attributes[which];
    char other[64];
    s->value = e->values[which];
    if (!before) {
        add_sentence(out, pick(a->sentences, LODE_TEMPLATES, random), s, random);
        return;
    }
    do
        lode_entity_draw_value(e->domain, which, random, split, other);
    while (strcmp(other, s->value) == 0);
    s->other = other;
    add_sentence(out, a->before[lode_random_below(random, 2)], s, random);
}

/* Facts and sentences that tell nothing, in one order that is drawn: numbers from LODE_ATTRIBUTES on are the latter. */
static uint32_t draw_order(const lode_telling_t *telling, lode_random_t *random, uint32_t *order)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
        if (telling->facts >> i & 1)
            order[n++] = i;
    for (uint32_t i = 0; i < telling->colour && !telling->card; i++)
        order[n++] = LODE_ATTRIBUTES;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = lode_random_below(random, i), swapped = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swapped;
    }
    return n;
}

/* Something that holds of any entity of the domain, no two the same in a paragraph while there are others. */
static void tell_colour(sentence_t *s, uint32_t *said, lode_random_t *random, lode_prose_t *out)
{
    static const char *const endings[] = {
        ", or so one hears",
        ", as it happens",
        ", and few would have it otherwise",
        ", for what it is worth",
        ", which not everybody knows",
        ", much to the relief of some",
        ", as a reader wrote",
        ", and nobody minds",
    };
    const char *const *colour = s->entity->domain->colour;
    uint32_t count = 0, drawn;
    char pattern[256];
    while (colour[count])
        count++;
    if (__builtin_popcount(*said) == (int)count)
        *said = 0;
    do
        drawn = lode_random_below(random, count);
    while (*said >> drawn & 1);
    *said |= 1u << drawn;
    const char *ending = endings[lode_random_below(random, sizeof endings / sizeof *endings)];
    snprintf(pattern, sizeof pattern, "%s%s", colour[drawn], lode_random_once_in(random, 4) ? ending : "");
    add_sentence(out, pattern, s, random);
}

void lode_entity_tell(const lode_entity_t *entity, const lode_telling_t *telling, lode_random_t *random,
                      lode_text2json_split_t split, lode_prose_t *out)
{
    uint32_t order[LODE_ATTRIBUTES + UINT8_MAX], n = draw_order(telling, random, order), said = 0;
    const lode_domain_t *domain = entity->domain;
    if (telling->card) {
        tell_card(entity, telling, order, n, out);
        return;
    }
    sentence_t s = {.entity = entity, .kind = entity->kind, .name_first = true};
    if (telling->introduced)
        add_sentence(out, pick(domain->intro, LODE_TEMPLATES, random), &s, random);
    if (telling->mistaken) {
        s.kind = telling->mistaken;
        add_sentence(out, domain->mistaken[lode_random_below(random, 2)], &s, random);
    }
    for (uint32_t i = 0; i < n; i++)
        if (order[i] < LODE_ATTRIBUTES)
            tell_fact(entity, order[i], (int)order[i] == telling->before, &s, random, split, out);
        else
            tell_colour(&s, &said, random, out);
    lode_prose_add(out, "\n");
}
