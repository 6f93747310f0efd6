/* SPDX-License-Identifier: Apache-2.0 */
/* What the generator's knobs are called, how far they turn, and where they stand. docs/generator.md says why. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench/generate.h"

const char *const lode_head_kind_names[LODE_HEAD_KINDS] = {"broad", "facts", "needle"};

typedef struct knob {
    const char *name;
    size_t at; /* of a double in the parameters */
    double plain, model, least, most;
    bool whole;
    const char *doc;
} knob_t;

#define KNOB(field) offsetof(lode_generator_params_t, field)

static const knob_t knobs[] = {
    {"facts", KNOB(facts), 0, 0, 0, LODE_FACTS_MAX, true, "tokens that a query of a facts head looks up; 0: D/32"},
    {"needles", KNOB(needles), 0, 0.25, 0, 1, false, "share of the sharp heads that look up one thing"},
    {"noise", KNOB(query_noise), 0.3, 0.5, 0, 100, false, "standard deviation of a query channel's noise"},
    {"outliers", KNOB(outliers), 4, 4, 0, 16, true, "large channels of a head's mean key"},
    {"rank", KNOB(rank), 0, 0, 0, LODE_MAX_DIM, true, "plain: dimensions of a head's topics; 0: D/4"},
    {"hold", KNOB(hold), 1, 4, 1, 1e6, true, "queries in a row that look up the same fact"},
    {"neighbour", KNOB(neighbour), 0, 0.5, 0, 1, false, "model: share of content in common with the neighbours"},
    {"residual", KNOB(residual), 0, 0.25, 0, 1, false, "model: share of a key outside the latent that heads share"},
    {"decay", KNOB(decay), 0, 0.7, 0, 2, false, "model: variances of the latent fall as i^-decay"},
    {"uneven", KNOB(uneven), 0, 0.5, 0, 2, false, "model: spread of the logarithm of channels' deviations"},
    {"slow", KNOB(slow), 0, 0.7, -2, 4, false, "model: log of what the slowest rotary pair has over the fastest"},
    {"rings", KNOB(rings), 0, 4, 0, 16, true, "model: rotary pairs of middling speed with a mean of their own"},
    {"match", KNOB(match), 0, 0, -1, 1, false, "model: metric of queries: 1 that of keys, 0 flat, -1 whitening"},
    {"query-mean", KNOB(query_mean), 0, 1, 0, 100, false, "model: deviation over channels of a query head's mean"},
    {"salient", KNOB(salient), 0, 32, 0, 65536, true,
     "model: one token in so many stands out; facts are such; 0: none"},
    {"spikes", KNOB(spikes), 0, 0.7, 0, 1, false, "model: share of a salient token's content in few channels"},
    {"sinks", KNOB(sinks), 0, 4, 0, 6, true, "model: first tokens of a block that are sinks"},
    {"sink-share", KNOB(sink_share), 0, 0.3, 0.001, 0.999, false, "model: of a broad head's mass in the first sink"},
    {"tail", KNOB(tail), 0, 2, 0.01, 10, false, "model: standard deviation of a broad head's logits"},
    {"drift", KNOB(drift), 0, 0.5, 0, 10, false, "model: how far queries and written keys wander from their mean"},
    {NULL},
};

static void set_all(lode_generator_kind_t kind, lode_generator_params_t *params)
{
    params->kind = kind;
    params->sharp_share = 0.5;
    for (const knob_t *knob = knobs; knob->name; knob++)
        *(double *)((char *)params + knob->at) = kind == LODE_GENERATOR_MODEL ? knob->model : knob->plain;
}

void lode_generator_defaults(lode_generator_params_t *params)
{
    set_all(LODE_GENERATOR_PLAIN, params);
}

static lode_status_t unknown(const char *word)
{
    lode_option_t names[sizeof knobs / sizeof *knobs] = {{NULL}};
    for (size_t i = 0; knobs[i].name; i++)
        names[i].name = knobs[i].name;
    const char *nearest = lode_options_nearest(names, word);
    if (nearest)
        return lode_fail(LODE_ERR_INVALID, "generator: no knob is called \"%s\"; did you mean \"%s\"?", word, nearest);
    return lode_fail(LODE_ERR_INVALID, "generator: no knob is called \"%s\"; docs/generator.md has them", word);
}

/* "name=value" of the given length. */
static lode_status_t set_one(const char *text, size_t length, lode_generator_params_t *params)
{
    char word[64], *end;
    if (length >= sizeof word)
        return lode_fail(LODE_ERR_INVALID, "generator: \"%.*s\" is too long", (int)length, text);
    memcpy(word, text, length);
    word[length] = 0;
    char *equal = strchr(word, '=');
    if (!equal)
        return lode_fail(LODE_ERR_INVALID, "generator: \"%s\" is no knob=value", word);
    *equal = 0;
    const knob_t *knob = knobs;
    while (knob->name && strcmp(knob->name, word) != 0)
        knob++;
    if (!knob->name)
        return unknown(word);
    double value = strtod(equal + 1, &end);
    if (end == equal + 1 || *end || !(value >= knob->least && value <= knob->most) ||
        (knob->whole && value != floor(value)))
        return lode_fail(LODE_ERR_INVALID, "generator: %s=%s; it is %s from %g to %g", knob->name, equal + 1,
                         knob->whole ? "a whole number" : "a number", knob->least, knob->most);
    *(double *)((char *)params + knob->at) = value;
    return LODE_OK;
}

lode_status_t lode_generator_parse(const char *text, lode_generator_params_t *params)
{
    size_t length = strcspn(text, ",");
    lode_generator_params_t made = *params;
    if (length == 5 && memcmp(text, "plain", length) == 0)
        set_all(LODE_GENERATOR_PLAIN, &made);
    else if (length == 5 && memcmp(text, "model", length) == 0)
        set_all(LODE_GENERATOR_MODEL, &made);
    else
        return lode_fail(LODE_ERR_INVALID, "generator \"%.*s\": it is plain or model, then any of ,knob=value",
                         (int)length, text);
    for (const char *rest = text + length; *rest == ','; rest += length) {
        rest++;
        length = strcspn(rest, ",");
        LODE_TRY(set_one(rest, length, &made));
    }
    *params = made;
    return LODE_OK;
}

void lode_generator_help(FILE *out)
{
    fprintf(out, "\nKnobs of --generator (its value with plain, with model)\n");
    for (const knob_t *knob = knobs; knob->name; knob++)
        fprintf(out, "  %-10s  %s [%g, %g]\n", knob->name, knob->doc, knob->plain, knob->model);
}
