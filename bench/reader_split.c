/* SPDX-License-Identifier: Apache-2.0 */
/* A problem of a long-text task to documents and a request. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_bench.h"
#include "bench/text2json_inside.h"

#define HEADER "Document "
#define REQUEST "Request:"

typedef struct span {
    const char *at;
    size_t bytes;
} span_t;

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\v' || c == '\f';
}

static span_t strip(const char *begin, const char *end)
{
    while (begin < end && is_space(*begin))
        begin++;
    while (begin < end && is_space(end[-1]))
        end--;
    return (span_t){begin, (size_t)(end - begin)};
}

static const char *line_end(const char *line, const char *end)
{
    const char *newline = memchr(line, '\n', (size_t)(end - line));
    return newline ? newline : end;
}

static bool is_header(const char *line, const char *end)
{
    const char *digits = line + sizeof HEADER - 1, *last = line_end(line, end);
    if (last - line < (ptrdiff_t)sizeof HEADER || memcmp(line, HEADER, sizeof HEADER - 1) != 0)
        return false;
    while (digits < last && *digits >= '0' && *digits <= '9')
        digits++;
    return digits == last;
}

static bool is_request(const char *line, const char *end)
{
    return end - line >= (ptrdiff_t)sizeof REQUEST - 1 && memcmp(line, REQUEST, sizeof REQUEST - 1) == 0;
}

static const char *next_line(const char *line, const char *end)
{
    const char *last = line_end(line, end);
    return last < end ? last + 1 : end;
}

/* Headers, and the first line behind the last of them that begins a request. */
static uint32_t count_headers(const char *text, const char *end, const char **request)
{
    uint32_t count = 0;
    *request = NULL;
    for (const char *line = text; line < end; line = next_line(line, end)) {
        if (is_header(line, end)) {
            count++;
            *request = NULL;
        } else if (count && !*request && is_request(line, end)) {
            *request = line;
        }
    }
    return count;
}

static lode_status_t take_document(lode_problem_t *problem, const char *begin, const char *end)
{
    span_t text = strip(begin, end);
    const char *header = line_end(text.at, text.at + text.bytes);
    char *name = problem->names[problem->count];
    snprintf(name, sizeof problem->names[0], "%.*s", (int)(header - text.at), text.at);
    if (header == text.at + text.bytes)
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" has no text below its number", name);
    problem->documents[problem->count++] = (lode_document_t){.name = name, .text = text.at, .bytes = text.bytes};
    return LODE_OK;
}

static lode_status_t take_documents(lode_problem_t *problem, const char *text, const char *request)
{
    const char *begin = NULL;
    for (const char *line = text; line < request; line = next_line(line, request)) {
        if (!is_header(line, request))
            continue;
        if (begin)
            LODE_TRY(take_document(problem, begin, line));
        begin = line;
    }
    return take_document(problem, begin, request);
}

lode_status_t lode_problem_split(const char *text, size_t bytes, lode_problem_t *problem)
{
    const char *end = text + bytes, *request;
    lode_problem_t made = {0};
    uint32_t count = count_headers(text, end, &request);
    if (!count)
        return lode_fail(LODE_ERR_FORMAT, "the problem has no line \"" HEADER "N\": it holds no documents");
    if (!request)
        return lode_fail(LODE_ERR_FORMAT,
                         "the problem has no line that begins with \"" REQUEST "\" after its %" PRIu32 " documents",
                         count);
    made.documents = calloc(count, sizeof *made.documents);
    made.names = calloc(count, sizeof *made.names);
    lode_status_t status = made.documents && made.names
                               ? take_documents(&made, text, request)
                               : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %" PRIu32 " documents", count);
    span_t asked = strip(request, end);
    made.request = asked.at;
    made.request_bytes = asked.bytes;
    if (status == LODE_OK)
        *problem = made;
    else
        lode_problem_free(&made);
    return status;
}

void lode_problem_free(lode_problem_t *problem)
{
    free(problem->documents);
    free(problem->names);
    *problem = (lode_problem_t){0};
}

/* --------------------------------------------------------------------- keeping */

static bool names_an_item(const lode_document_t *document, const json_t *gold)
{
    const json_t *item;
    size_t i;
    json_array_foreach(gold, i, item)
    {
        const json_t *name = json_object_get(item, "name");
        if (memmem(document->text, document->bytes, json_string_value(name), json_string_length(name)))
            return true;
    }
    return false;
}

void lode_problem_keep(lode_problem_t *problem, const json_t *gold, uint32_t most, uint64_t seed)
{
    lode_random_t random = {.seed = lode_mix(seed, most)};
    uint32_t kept = 0, needed = 0, others = 0;
    if (!most || most >= problem->count)
        return;
    for (uint32_t i = 0; i < problem->count; i++)
        needed += names_an_item(&problem->documents[i], gold);
    uint32_t wanted = most > needed ? most - needed : 0, left = problem->count - needed;
    for (uint32_t i = 0; i < problem->count; i++) {
        bool keep = names_an_item(&problem->documents[i], gold);
        if (!keep) { /* every set of the others is equally likely */
            keep = lode_random_below(&random, left--) < wanted - others;
            others += keep;
        }
        if (keep)
            problem->documents[kept++] = problem->documents[i];
    }
    problem->count = kept;
}

/* -------------------------------------------------------------------- look-ups */

/* How people call what a key stands for; of a domain that has all keys of the item. */
static const char *label_of(const char *key, const json_t *item)
{
    const char *found = key, *other;
    json_t *value;
    for (uint32_t d = 0; d < LODE_TEXT2JSON_DOMAINS; d++) {
        uint32_t matched = 0;
        const char *label = NULL;
        json_object_foreach((json_t *)(uintptr_t)item, other, value) for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
        {
            bool same = strcmp(lode_domains[d].attributes[i].key, other) == 0;
            matched += same;
            if (same && strcmp(other, key) == 0)
                label = lode_domains[d].attributes[i].label;
        }
        if (label && matched + 1 == json_object_size(item))
            found = label;
    }
    return found;
}

static lode_status_t add_question(const char *key, const json_t *item, const json_t *value, lode_question_t *question)
{
    char label[64];
    snprintf(label, sizeof label, "%s", label_of(key, item));
    for (char *c = label; *c; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + 'a' - 'A' : *c);
    int bytes =
        asprintf(&question->own, "What is the %s of %s?", label, json_string_value(json_object_get(item, "name")));
    if (bytes < 0) {
        question->own = NULL;
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a question");
    }
    question->text = question->own;
    question->bytes = (size_t)bytes;
    question->value = json_string_value(value);
    return LODE_OK;
}

lode_status_t lode_questions_look_up(const json_t *gold, lode_question_t **out, uint32_t *out_count)
{
    lode_question_t *questions = calloc(2 * json_array_size(gold) + 1, sizeof *questions);
    lode_status_t status = questions ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for questions");
    uint32_t count = 0;
    const json_t *item;
    size_t i;
    for (i = 0; status == LODE_OK && i < json_array_size(gold); i++) {
        const char *key;
        json_t *value;
        item = json_array_get(gold, i);
        json_object_foreach((json_t *)(uintptr_t)item, key, value)
        {
            if (strcmp(key, "name") == 0 || status != LODE_OK)
                continue;
            status = add_question(key, item, value, &questions[count]);
            count += status == LODE_OK;
        }
    }
    if (status != LODE_OK) {
        lode_questions_free(questions, count);
        return status;
    }
    *out = questions;
    *out_count = count;
    return LODE_OK;
}

void lode_questions_free(lode_question_t *questions, uint32_t count)
{
    for (uint32_t i = 0; questions && i < count; i++)
        free(questions[i].own);
    free(questions);
}
