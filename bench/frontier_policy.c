/* SPDX-License-Identifier: Apache-2.0 */
/* Names of policies, budgets, and what a policy costs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/frontier.h"

enum { TWILIGHT_BITS = 4, FREEKV_PAGE = 32, BF16 = 2, RESIDUAL_BITS = 1, RESIDUAL_MEAN_BITS = 2 };

#define PLAIN ":plain"

typedef struct fixed {
    const char *name;
    lode_chooser_kind_t kind;
    lode_form_t form;
    uint32_t chunk;
} fixed_t;

static const fixed_t fixed[] = {
    {"dense", LODE_CHOOSER_DENSE, LODE_FORM_EXACT, 1},
    {"oracle", LODE_CHOOSER_ORACLE, LODE_FORM_EXACT, 1},
    {"shadowkv", LODE_CHOOSER_SHADOW, LODE_FORM_EXACT, 1},
    {"quest16", LODE_CHOOSER_DIGEST, LODE_FORM_BOX, 16},
    {"quest32", LODE_CHOOSER_DIGEST, LODE_FORM_BOX, 32},
    {"arkvale32", LODE_CHOOSER_DIGEST, LODE_FORM_CUBOID, 32},
    {"freekv", LODE_CHOOSER_BEFORE, LODE_FORM_BOX, FREEKV_PAGE},
    {"topp", LODE_CHOOSER_TOP_P, LODE_FORM_UNIFORM, 1},
    {"random", LODE_CHOOSER_RANDOM, LODE_FORM_EXACT, 1},
};
enum { FIXED = sizeof fixed / sizeof *fixed };

static const char *const landmarks[] = {"landmark1", "landmark1.5", "landmark2",
                                        "landmark4", "landmark8",   "landmark16"};
enum { LANDMARKS = sizeof landmarks / sizeof *landmarks };

static lode_status_t unknown(const char *text)
{
    lode_option_t names[FIXED + LANDMARKS + 1] = {{NULL}};
    for (uint32_t i = 0; i < FIXED + LANDMARKS; i++)
        names[i].name = i < FIXED ? fixed[i].name : landmarks[i - FIXED];
    const char *nearest = lode_options_nearest(names, text);
    if (nearest)
        return lode_fail(LODE_ERR_INVALID, "no policy is called \"%s\"; did you mean \"%s\"?", text, nearest);
    return lode_fail(
        LODE_ERR_INVALID,
        "no policy is called \"%s\"; there are dense, oracle, landmark1, 1.5, 2, 4, 8, 16, shadowkv, quest16, "
        "quest32, arkvale32, freekv, topp, random",
        text);
}

static bool known_landmark(const char *text)
{
    size_t length = strcspn(text, ":");
    for (uint32_t i = 0; i < LANDMARKS; i++)
        if (strlen(landmarks[i]) == length && memcmp(landmarks[i], text, length) == 0)
            return true;
    return false;
}

/* One bit of each key, and two of the mean of four. */
static void take_residual(bool plain, lode_chooser_t *policy)
{
    policy->kind = LODE_CHOOSER_LANDMARK;
    policy->spec = (lode_landmark_spec_t){LODE_LANDMARK_UNIFORM, RESIDUAL_BITS, 1, true};
    policy->chunk = 1;
    policy->ours = true;
    policy->landmark = (lode_contestant_t){.name = policy->name,
                                           .form = LODE_FORM_RESIDUAL,
                                           .centre = LODE_CENTRE_BLOCK,
                                           .turn = plain ? LODE_TURN_HADAMARD : LODE_TURN_BALANCE,
                                           .bits = RESIDUAL_BITS,
                                           .chunk = 1,
                                           .second = RESIDUAL_MEAN_BITS};
}

/* HIGGS codes are the paper's, uncentred and with no balance, unless they are told to be centred: then they are ours.
 */
static lode_status_t parse_landmark(const char *text, bool plain, lode_chooser_t *policy)
{
    lode_landmark_spec_t spec;
    LODE_TRY(lode_landmark_parse(text, &spec));
    bool higgs = spec.codec == LODE_LANDMARK_HIGGS, mean = spec.codec == LODE_LANDMARK_MEAN;
    bool paper = higgs && !strstr(text, ":centre");
    if (plain && (paper || mean))
        return lode_fail(LODE_ERR_INVALID,
                         "policy \"%s" PLAIN "\": the paper's codes and means have no balance to leave out", text);
    spec.centre = spec.centre && !paper;
    policy->kind = LODE_CHOOSER_LANDMARK;
    policy->spec = spec;
    policy->chunk = spec.chunk;
    policy->ours = !paper && !mean;
    policy->landmark =
        (lode_contestant_t){.name = policy->name,
                            .form = mean ? LODE_FORM_MEANS : (higgs ? LODE_FORM_HIGGS : LODE_FORM_UNIFORM),
                            .centre = spec.centre ? LODE_CENTRE_BLOCK : LODE_CENTRE_NONE,
                            .turn = policy->ours && !plain ? LODE_TURN_BALANCE : LODE_TURN_HADAMARD,
                            .bits = spec.bits,
                            .chunk = mean ? spec.chunk : 1};
    return LODE_OK;
}

static void take_fixed(const fixed_t *row, lode_chooser_t *policy)
{
    bool codes = row->form == LODE_FORM_UNIFORM;
    policy->kind = row->kind;
    policy->chunk = row->chunk;
    policy->spec = (lode_landmark_spec_t){LODE_LANDMARK_UNIFORM, TWILIGHT_BITS, 1, true};
    policy->landmark = (lode_contestant_t){.name = row->name,
                                           .form = row->form,
                                           .centre = codes ? LODE_CENTRE_BLOCK : LODE_CENTRE_NONE,
                                           .turn = LODE_TURN_HADAMARD,
                                           .bits = codes ? TWILIGHT_BITS : 16,
                                           .chunk = row->chunk};
}

lode_status_t lode_chooser_parse(const char *text, lode_chooser_t *policy)
{
    lode_chooser_t made = {.ours = false};
    size_t length = strlen(text), end = sizeof PLAIN - 1;
    bool plain = length > end && strcmp(text + length - end, PLAIN) == 0, found = false;
    if (!length || length >= sizeof made.name)
        return unknown(text);
    memcpy(made.name, text, length + 1);
    for (uint32_t i = 0; i < FIXED && !found; i++)
        if ((found = strcmp(text, fixed[i].name) == 0))
            take_fixed(&fixed[i], &made);
    if (!found && !known_landmark(text))
        return unknown(text);
    if (!found) {
        char spec[LODE_CHOOSER_NAME];
        snprintf(spec, sizeof spec, "%.*s", (int)(plain ? length - end : length), text);
        if (strcmp(spec, "landmark1.5") == 0)
            take_residual(plain, &made);
        else
            LODE_TRY(parse_landmark(spec, plain, &made));
    }
    *policy = made;
    policy->landmark.name = policy->name;
    return LODE_OK;
}

/* A word of a list: up to the comma. @return where the next begins, NULL at the end */
static const char *next_word(const char *text, char *word, size_t room)
{
    size_t length = strcspn(text, ",");
    snprintf(word, room, "%.*s", (int)length, text);
    return text[length] ? text + length + 1 : NULL;
}

lode_status_t lode_choosers_parse(const char *text, lode_chooser_t policies[LODE_CHOOSERS_MAX], uint32_t *count)
{
    char word[64];
    uint32_t n = 1;
    LODE_TRY(lode_chooser_parse("oracle", &policies[0]));
    for (const char *rest = text; rest;) {
        rest = next_word(rest, word, sizeof word);
        if (n == LODE_CHOOSERS_MAX)
            return lode_fail(LODE_ERR_INVALID, "more than %d policies", LODE_CHOOSERS_MAX - 1);
        LODE_TRY(lode_chooser_parse(word, &policies[n]));
        for (uint32_t i = 1; i < n; i++)
            if (strcmp(policies[i].name, word) == 0)
                return lode_fail(LODE_ERR_INVALID, "policy \"%s\" is named twice", word);
        n += policies[n].kind != LODE_CHOOSER_ORACLE;
    }
    for (uint32_t i = 0; i < n; i++)
        policies[i].landmark.name = policies[i].name;
    *count = n;
    return LODE_OK;
}

lode_chooser_bytes_t lode_chooser_count_bytes(const lode_chooser_t *policy, const lode_shadow_params_t *shadow,
                                              uint32_t kv_heads, uint32_t dim, uint64_t tokens)
{
    lode_chooser_bytes_t bytes = {.fetched = (double)lode_record_bytes(LODE_FORMAT_BF16, dim)};
    double heads = kv_heads;
    switch (policy->kind) {
    case LODE_CHOOSER_ORACLE: /* the keys themselves */
        bytes.landmarks = heads * dim * BF16;
        break;
    case LODE_CHOOSER_LANDMARK:
    case LODE_CHOOSER_TOP_P:
        bytes.landmarks = heads * (double)lode_landmark_tile_bytes(&policy->spec, dim) / LODE_TILE / policy->chunk;
        if (policy->landmark.form == LODE_FORM_RESIDUAL)
            bytes.landmarks = heads * lode_contestant_bytes(&policy->landmark, dim);
        break;
    case LODE_CHOOSER_DIGEST:
    case LODE_CHOOSER_BEFORE: /* least and greatest */
        bytes.landmarks = heads * dim * 2 * BF16 / policy->chunk;
        break;
    case LODE_CHOOSER_SHADOW: {
        lode_shadow_bytes_t parts = lode_shadow_count_bytes(shadow, kv_heads, dim, tokens);
        bytes.landmarks = parts.means;
        bytes.residents = parts.low_rank + parts.residents;
        bytes.fetched = (double)parts.fetched;
        break;
    }
    case LODE_CHOOSER_DENSE:
    case LODE_CHOOSER_RANDOM:
        break;
    }
    return bytes;
}
