/* SPDX-License-Identifier: Apache-2.0 */
/* A problem of a long-text task to documents and a request. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_bench.h"

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
