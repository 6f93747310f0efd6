/* SPDX-License-Identifier: Apache-2.0 */
/* Multi-needle: sentences that have nothing to do with their document; all of one kind are asked for. */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

enum { OTHERS = 2 }; /* needles that are not asked for, for each that is */

typedef struct needle {
    char place[64], word[64], sentence[256];
    const char *at; /* in the finished problem */
} needle_t;

static const char *const things[] = {"archive",  "boat house",  "clock tower", "greenhouse",
                                     "map room", "wine cellar", "observatory", "bell foundry"};
enum { THINGS = sizeof things / sizeof *things };

/* Thing, place and word, in this order or not. */
static void word_needle(needle_t *n, const char *thing, lode_random_t *random)
{
    switch (lode_random_below(random, 4)) {
    case 0:
        snprintf(n->sentence, sizeof n->sentence, "The word that opens the %s of %s is %s.", thing, n->place, n->word);
        break;
    case 1:
        snprintf(n->sentence, sizeof n->sentence, "To enter the %s of %s, say %s.", thing, n->place, n->word);
        break;
    case 2:
        snprintf(n->sentence, sizeof n->sentence, "In %s, the %s opens to whoever says %s.", n->place, thing, n->word);
        break;
    default:
        snprintf(n->sentence, sizeof n->sentence, "Say %s to be let into the %s of %s.", n->word, thing, n->place);
    }
}

static lode_status_t draw_needle(lode_making_t *m, const char *thing, const char *place, needle_t *n)
{
    const char *word = lode_words_pick(&lode_words_key_word, m->params->split, &m->random);
    if (place)
        snprintf(n->place, sizeof n->place, "%s", place);
    else
        LODE_TRY(lode_making_new_place(m, n->place));
    snprintf(n->word, sizeof n->word, "%s-%u", word, lode_random_between(&m->random, 100, 999));
    word_needle(n, thing, &m->random);
    return LODE_OK;
}

/* The first are asked for. Of the others every second is of a place that has one of these as well. */
static lode_status_t draw_needles(lode_making_t *m, uint32_t thing, needle_t *needles)
{
    uint32_t n = m->item_count;
    for (uint32_t i = 0; i < n * (1 + OTHERS); i++) {
        uint32_t other = (thing + 1 + lode_random_below(&m->random, THINGS - 1)) % THINGS;
        const char *place = i >= n && i % 2 ? needles[i % n].place : NULL;
        LODE_TRY(draw_needle(m, things[i < n ? thing : other], place, &needles[i]));
    }
    return LODE_OK;
}

/* The start of the next sentence, NULL if there is none. The stops of "Dr." and of initials end no sentence. */
static char *next_sentence(char *at)
{
    for (char *stop = at; (stop = strstr(stop, ". ")); stop++) {
        bool word = stop - at >= 2 && strchr("0123456789abcdefghijklmnopqrstuvwxyz", stop[-1]) &&
                    strchr("0123456789abcdefghijklmnopqrstuvwxyz", stop[-2]);
        if (word)
            return stop + 2;
    }
    return NULL;
}

/* Behind one of the document's sentences; behind its last line if it has but one. */
static void plant(lode_making_t *m, const needle_t *needle)
{
    lode_piece_t *piece = &m->pieces.list[lode_random_below(&m->random, m->pieces.count)];
    uint32_t sentences = 0;
    for (char *at = piece->text; (at = next_sentence(at));)
        sentences++;
    char *at = piece->text + (sentences ? 0 : strlen(piece->text));
    for (uint32_t chosen = sentences ? 1 + lode_random_below(&m->random, sentences) : 0; chosen > 0; chosen--)
        at = next_sentence(at);
    char kept = *at;
    lode_prose_clear(&m->room);
    *at = 0;
    lode_prose_add(&m->room, piece->text);
    *at = kept;
    lode_prose_add(&m->room, needle->sentence);
    lode_prose_add(&m->room, sentences ? " " : "\n");
    lode_prose_add(&m->room, at);
    char *text = m->room.failed ? NULL : strdup(m->room.text);
    if (text) {
        free(piece->text);
        piece->text = text;
    } else {
        m->pieces.failed = true;
    }
}

static int by_place_in_text(const void *a, const void *b)
{
    const needle_t *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

static char *rows_of(const lode_making_t *m, needle_t *needles, const char *problem)
{
    lode_prose_t rows = {0};
    for (uint32_t i = 0; i < m->item_count; i++)
        needles[i].at = strstr(problem, needles[i].sentence);
    qsort(needles, m->item_count, sizeof *needles, by_place_in_text);
    lode_prose_add(&rows, "place\tword\n");
    for (uint32_t i = 0; i < m->item_count; i++)
        lode_prose_format(&rows, "%s\t%s\n", needles[i].place, needles[i].word);
    if (!rows.failed)
        return rows.text;
    lode_prose_free(&rows);
    return NULL;
}

/* Needles with documents around them. */
static lode_status_t plant_all(lode_making_t *m, const needle_t *needles, uint32_t around)
{
    uint32_t count = m->item_count * (1 + OTHERS);
    for (uint32_t i = 0; i < count; i++)
        around += lode_text2json_tokens(needles[i].sentence);
    LODE_TRY(lode_making_fill(m, around));
    lode_pieces_shuffle(&m->pieces, &m->random);
    for (uint32_t i = 0; i < count && !m->pieces.failed; i++)
        plant(m, &needles[i]);
    return LODE_OK;
}

static lode_status_t make(lode_making_t *m, needle_t *needles, lode_text2json_sample_t *sample)
{
    lode_prose_t problem = {0}, request = {0};
    uint32_t thing = lode_random_below(&m->random, THINGS);
    LODE_TRY(draw_needles(m, thing, needles));
    lode_prose_format(&problem, "Read these documents about %s. A request follows the last one.\n\n", m->domain->name);
    lode_prose_format(
        &request,
        "Request: some documents mention in passing which word lets one into the %s of a place. Give every "
        "such place with its word, for this kind of building only. Answer with tab-separated rows and "
        "nothing else; the first row is the header: place\tword\n",
        things[thing]);
    lode_status_t status = plant_all(m, needles, lode_prose_tokens(&problem) + lode_prose_tokens(&request));
    lode_pieces_write(&m->pieces, &problem);
    bool whole = status == LODE_OK && !problem.failed && !m->pieces.failed;
    return lode_making_finish(m, status, &problem, &request, whole ? rows_of(m, needles, problem.text) : NULL, sample);
}

lode_status_t lode_make_multi_needle(lode_making_t *m, lode_text2json_sample_t *sample)
{
    needle_t *needles = calloc((size_t)m->item_count * (1 + OTHERS), sizeof *needles);
    lode_status_t status = needles ? make(m, needles, sample) : lode_fail(LODE_ERR_NO_MEMORY, "no memory for needles");
    free(needles);
    return status;
}
