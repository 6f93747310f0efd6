/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pre-tokenizers: a text is cut into words by patterns. They are written for Oniguruma and run by PCRE2; what the two
 * read differently is rewritten or refused.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "reader/tokenizer_inside.h"
#include "reader/utf8.h"

enum { PATTERN_MAX = 4096, DEPTH_MAX = 4 };

/* How far a match may go back: patterns in use do so a few times for each byte of a run of spaces. */
enum { STEPS = 10000, STEPS_A_BYTE = 32 };

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* -------------------------------------------------------------------- patterns */

typedef struct rewriting {
    const char *from;
    char to[4 * PATTERN_MAX + 1];
    size_t count;
    bool in_class;
} rewriting_t;

static lode_status_t refuse(const rewriting_t *r, const char *what)
{
    return lode_fail(LODE_ERR_UNSUPPORTED, "the pattern has %s at \"%.20s\", which is not known here", what, r->from);
}

static void copy(rewriting_t *r, const char *text, size_t count)
{
    memcpy(r->to + r->count, text, count);
    r->count += count;
}

/* \p{..} of a general category: one or two letters. Scripts and other properties mean different sets in the two. */
static lode_status_t rewrite_property(rewriting_t *r)
{
    const char *name = r->from[2] == '{' ? r->from + 3 : "", *end = strchr(name, '}');
    size_t length = end ? (size_t)(end - name) : 0;
    size_t letters = length && *name == '^' ? length - 1 : length;
    if (letters < 1 || letters > 2 || !strchr("LMNPSZC", end[-(ptrdiff_t)letters]))
        return refuse(r, "a property other than a general category");
    copy(r, r->from, 3 + length + 1);
    r->from += 3 + length + 1;
    return LODE_OK;
}

/* PCRE2 counts U+180E as space; Unicode, and Oniguruma with it, do not. */
static lode_status_t rewrite_escape(rewriting_t *r)
{
    char letter = r->from[1];
    if (letter == 'p' || letter == 'P')
        return rewrite_property(r);
    if (letter == 's')
        copy(r, "\\p{White_Space}", 15);
    else if (letter == 'S')
        copy(r, "\\P{White_Space}", 15);
    else if (letter == 'd' || letter == 'D')
        copy(r, letter == 'd' ? "\\p{Nd}" : "\\P{Nd}", 6);
    else if (strchr("rntf", letter) && letter)
        copy(r, r->from, 2);
    else if (letter > ' ' && letter < 0x7f && !((letter | 0x20) >= 'a' && (letter | 0x20) <= 'z') &&
             !(letter >= '0' && letter <= '9'))
        copy(r, r->from, 2);
    else
        return refuse(r, "an escape");
    r->from += 2;
    return LODE_OK;
}

/* A character of a class: Oniguruma knows classes within classes and && between them. */
static lode_status_t rewrite_in_class(rewriting_t *r)
{
    if (*r->from == '[' || (r->from[0] == '&' && r->from[1] == '&'))
        return refuse(r, "a class within a class");
    if (*r->from == ']')
        r->in_class = false;
    copy(r, r->from++, 1);
    return LODE_OK;
}

static lode_status_t rewrite_plain(rewriting_t *r)
{
    static const char *const groups[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    bool known = r->from[0] != '(' || (r->from[1] != '?' && r->from[1] != '*');
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        known = known || strncmp(r->from, groups[i], strlen(groups[i])) == 0;
    if (!known)
        return refuse(r, "a group");
    if (*r->from == '^' || *r->from == '$')
        return refuse(r, "an anchor");
    if ((r->from[0] == '}' && r->from[1] && strchr("+?", r->from[1])) ||
        (r->from[0] == '{' && !(r->from[1] >= '0' && r->from[1] <= '9')))
        return refuse(r, "a repetition");
    if (*r->from == '[') {
        r->in_class = true;
        size_t opening = r->from[1] == '^' ? 2 : 1;
        if (r->from[opening] == ']')
            return refuse(r, "an empty class");
        copy(r, r->from, opening);
        r->from += opening;
        return LODE_OK;
    }
    copy(r, r->from++, 1);
    return LODE_OK;
}

static lode_status_t rewrite(rewriting_t *r)
{
    if (strlen(r->from) > PATTERN_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a pattern of %zu bytes is refused; the most is %d", strlen(r->from),
                         PATTERN_MAX);
    while (*r->from)
        LODE_TRY(*r->from == '\\' ? rewrite_escape(r) : r->in_class ? rewrite_in_class(r) : rewrite_plain(r));
    return LODE_OK;
}

static lode_status_t add_stage(lode_splitter_t *splitter, const char *pattern, size_t bytes, uint32_t options,
                               bool removes, bool inverted)
{
    int error;
    PCRE2_SIZE at;
    if (splitter->count == LODE_CUTS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "it splits more than %d times", LODE_CUTS_MAX);
    lode_cut_t *stage = &splitter->stages[splitter->count++];
    *stage = (lode_cut_t){.removes = removes, .inverted = inverted};
    stage->code = pcre2_compile((PCRE2_SPTR)pattern, bytes, options, &error, &at, NULL);
    if (!stage->code) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(error, message, sizeof message);
        return lode_fail(LODE_ERR_FORMAT, "the pattern \"%.60s\" cannot be read at byte %zu: %s", pattern, (size_t)at,
                         (char *)message);
    }
    pcre2_jit_compile(stage->code, PCRE2_JIT_COMPLETE); /* without it the same, but slower */
    stage->match = pcre2_match_data_create(1, NULL);
    if (!stage->match)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a pattern");
    return LODE_OK;
}

/* -------------------------------------------------------------------- reading */

static lode_status_t read_split(const json_t *entry, lode_splitter_t *splitter)
{
    const json_t *pattern = json_object_get(entry, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *text = json_object_get(pattern, "String");
    const char *behavior = lode_json_text(entry, "behavior");
    bool removes = strcmp(behavior, "Removed") == 0, inverted = json_is_true(json_object_get(entry, "invert"));
    if (!removes && strcmp(behavior, "Isolated") != 0)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "its pre-tokenizer \"Split\" has the behavior \"%.40s\"; known are "
                         "\"Isolated\" and \"Removed\"",
                         behavior);
    if (json_is_string(text) && json_string_length(text))
        return add_stage(splitter, json_string_value(text), json_string_length(text), PCRE2_UTF | PCRE2_LITERAL,
                         removes, inverted);
    if (!json_is_string(regex))
        return lode_fail(LODE_ERR_FORMAT, "its pre-tokenizer \"Split\" has no pattern");
    rewriting_t *r = malloc(sizeof *r);
    if (!r)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a pattern");
    *r = (rewriting_t){.from = json_string_value(regex)};
    lode_status_t status = rewrite(r);
    if (status == LODE_OK)
        status = add_stage(splitter, r->to, r->count, PCRE2_UTF | PCRE2_UCP, removes, inverted);
    free(r);
    return status;
}

static lode_status_t read_byte_level(const json_t *entry, lode_splitter_t *splitter)
{
    rewriting_t r = {.from = gpt2_pattern};
    splitter->bytes_reached = true;
    if (json_is_true(json_object_get(entry, "add_prefix_space")))
        return lode_fail(LODE_ERR_UNSUPPORTED, "its pre-tokenizer puts a space before texts (\"add_prefix_space\"), "
                                               "which is not known here");
    if (json_is_false(json_object_get(entry, "use_regex")))
        return LODE_OK;
    LODE_TRY(rewrite(&r));
    return add_stage(splitter, r.to, r.count, PCRE2_UTF | PCRE2_UCP, false, false);
}

static lode_status_t read_entry(const json_t *entry, lode_splitter_t *splitter, int depth)
{
    const char *type = lode_json_text(entry, "type");
    if (splitter->bytes_reached)
        return lode_fail(LODE_ERR_UNSUPPORTED, "its pre-tokenizer goes on after \"ByteLevel\"");
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(entry, splitter);
    if (strcmp(type, "Split") == 0)
        return read_split(entry, splitter);
    if (strcmp(type, "Sequence") != 0 || depth == DEPTH_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "its pre-tokenizer is \"%.40s\"; known are \"ByteLevel\", \"Split\" and "
                         "a \"Sequence\" of them",
                         type);
    size_t i;
    const json_t *each;
    json_array_foreach(json_object_get(entry, "pretokenizers"), i, each)
    {
        LODE_TRY(read_entry(each, splitter, depth + 1));
    }
    return LODE_OK;
}

lode_status_t lode_splitter_read(const json_t *pre_tokenizer, lode_splitter_t *splitter)
{
    memset(splitter, 0, sizeof *splitter);
    if (json_is_object(pre_tokenizer))
        LODE_TRY(read_entry(pre_tokenizer, splitter, 0));
    if (!splitter->bytes_reached)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "it has no pre-tokenizer \"ByteLevel\"; only BPE over bytes can be read");
    return LODE_OK;
}

void lode_splitter_free(lode_splitter_t *splitter)
{
    for (uint32_t i = 0; i < splitter->count; i++) {
        pcre2_match_data_free(splitter->stages[i].match);
        pcre2_code_free(splitter->stages[i].code);
    }
    memset(splitter, 0, sizeof *splitter);
}

/* --------------------------------------------------------------------- running */

typedef struct running {
    const lode_splitter_t *splitter;
    pcre2_match_context *limits;
    lode_piece_f piece;
    void *self;
} running_t;

static lode_status_t run_stage(const running_t *run, uint32_t number, const char *text, size_t bytes);

/* A piece of a stage, which is a match or lies between two. */
static lode_status_t pass_on(const running_t *run, uint32_t number, const char *text, size_t bytes, bool matched)
{
    const lode_cut_t *stage = &run->splitter->stages[number];
    if (bytes == 0 || (stage->removes && matched != stage->inverted))
        return LODE_OK;
    return run_stage(run, number + 1, text, bytes);
}

static lode_status_t find_next(const running_t *run, const lode_cut_t *stage, const char *text, size_t bytes,
                               size_t from, bool *found)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    size_t steps = STEPS + STEPS_A_BYTE * (bytes - from);
    pcre2_set_match_limit(run->limits, steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX);
    int rc = pcre2_match(stage->code, subject, bytes, from, PCRE2_NO_UTF_CHECK, stage->match, run->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(stage->code, subject, bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, stage->match,
                         run->limits);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return LODE_OK;
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(rc, message, sizeof message);
    return lode_fail(rc == PCRE2_ERROR_NOMEMORY ? LODE_ERR_NO_MEMORY : LODE_ERR_UNSUPPORTED,
                     "the tokenizer's pattern gives up at byte %zu of a piece of %zu: %s", from, bytes,
                     (char *)message);
}

/* All matches from left to right; an empty one does not count right behind another. */
static lode_status_t run_stage(const running_t *run, uint32_t number, const char *text, size_t bytes)
{
    if (number == run->splitter->count)
        return run->piece(run->self, text, bytes);
    const lode_cut_t *stage = &run->splitter->stages[number];
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= bytes) {
        bool found;
        LODE_TRY(find_next(run, stage, text, bytes, from, &found));
        if (!found)
            break;
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(stage->match);
        size_t begin = ends[0], end = ends[1];
        if (begin == end && end == last_end) {
            int width = from < bytes ? lode_utf8_length(text + from, bytes - from) : 1;
            from += width > 0 ? (size_t)width : 1;
            continue;
        }
        LODE_TRY(pass_on(run, number, text + done, begin - done, false));
        LODE_TRY(pass_on(run, number, text + begin, end - begin, true));
        done = from = last_end = end;
    }
    return pass_on(run, number, text + done, bytes - done, false);
}

lode_status_t lode_splitter_run(const lode_splitter_t *splitter, uint32_t stage, const char *text, size_t bytes,
                                lode_piece_f piece, void *self)
{
    running_t run = {splitter, pcre2_match_context_create(NULL), piece, self};
    if (!run.limits)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a pattern");
    lode_status_t status = run_stage(&run, stage, text, bytes);
    pcre2_match_context_free(run.limits);
    return status;
}
