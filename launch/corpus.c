/* SPDX-License-Identifier: Apache-2.0 */
/* Files and folders to documents. */
#include <errno.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "launch/corpus.h"
#include "launch/client.h"
#include "reader/utf8.h"

/* More than this is no text that anybody wants to have read to a model in one go. */
#define FILE_BYTES_MAX (UINT64_C(4) << 30)

/* --------------------------------------------------------------------- memory */

/* The corpus takes the memory, whether it succeeds or not. */
static lode_status_t keep(lode_corpus_t *corpus, char *memory)
{
    if (memory && corpus->kept_count == corpus->kept_room) {
        size_t room = corpus->kept_room ? 2 * corpus->kept_room : 64;
        char **more = realloc(corpus->kept, room * sizeof *more);
        if (more) {
            corpus->kept = more;
            corpus->kept_room = room;
        } else {
            free(memory);
            memory = NULL;
        }
    }
    if (!memory)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the documents");
    corpus->kept[corpus->kept_count++] = memory;
    return LODE_OK;
}

/* @p name, @p text: kept by the corpus already */
static lode_status_t add_document(lode_corpus_t *corpus, const char *name, const char *text, size_t bytes)
{
    if (corpus->count == corpus->room) {
        uint32_t room = corpus->room ? 2 * corpus->room : 64;
        lode_document_t *more = realloc(corpus->documents, room * sizeof *more);
        if (!more)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u documents", room);
        corpus->documents = more;
        corpus->room = room;
    }
    corpus->documents[corpus->count++] = (lode_document_t){name, text, bytes};
    corpus->bytes += bytes;
    return LODE_OK;
}

void lode_corpus_free(lode_corpus_t *corpus)
{
    for (size_t i = 0; i < corpus->kept_count; i++)
        free(corpus->kept[i]);
    free(corpus->kept);
    free(corpus->documents);
    *corpus = (lode_corpus_t){.warn = corpus->warn};
}

/* ----------------------------------------------------------------------- text */

static lode_status_t read_file(const char *path, char **text, size_t *bytes)
{
    struct stat about;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &about) != 0) {
        lode_status_t status = lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
        if (file)
            fclose(file);
        return status;
    }
    lode_status_t status = LODE_OK;
    size_t size = (size_t)about.st_size, got = 0;
    char *made = NULL;
    if (!S_ISREG(about.st_mode))
        status = lode_fail(LODE_ERR_FORMAT, "%s is no file of text", path);
    else if ((uint64_t)size > FILE_BYTES_MAX)
        status = lode_fail(LODE_ERR_FORMAT, "%s has %zu bytes: more than a document may have", path, size);
    else if (!(made = malloc(size + 1)))
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for the %zu bytes of %s", size, path);
    else
        got = fread(made, 1, size, file);
    if (made && ferror(file))
        status = lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    fclose(file);
    if (status != LODE_OK) {
        free(made);
        return status;
    }
    made[got] = 0;
    *text = made;
    *bytes = got;
    return LODE_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
}

static bool is_blank(const char *text, size_t bytes)
{
    while (bytes && is_space(text[bytes - 1]))
        bytes--;
    return bytes == 0;
}

static lode_status_t check_text(const char *path, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        int length = lode_utf8_length(text + at, bytes - at);
        if (length <= 0)
            return lode_fail(LODE_ERR_FORMAT, "%s is no UTF-8 at byte %zu", path, at);
        if (!text[at])
            return lode_fail(LODE_ERR_FORMAT, "%s is binary: it has a zero at byte %zu", path, at);
        at += (size_t)length;
    }
    return is_blank(text, bytes) ? lode_fail(LODE_ERR_INVALID, "%s is empty", path) : LODE_OK;
}

/* ---------------------------------------------------------------------- split */

/* Bytes of the line that the text begins with, its end included. */
static size_t line_of(const char *text, size_t bytes)
{
    const char *end = memchr(text, '\n', bytes);
    return end ? (size_t)(end - text) + 1 : bytes;
}

static lode_status_t add_record(lode_corpus_t *corpus, const char *path, size_t line, const char *text, size_t bytes)
{
    char *name = NULL;
    while (bytes && is_space(text[bytes - 1]))
        bytes--;
    if (asprintf(&name, "%s:%zu", path, line) < 0)
        name = NULL;
    LODE_TRY(keep(corpus, name));
    return add_document(corpus, name, text, bytes);
}

/* Records end at a blank line, or at every line's end; each is named by the line that it begins at. */
static lode_status_t add_records(lode_corpus_t *corpus, const char *path, const char *text, size_t bytes,
                                 lode_split_t split)
{
    size_t begin = 0, begin_line = 0;
    bool open = false;
    for (size_t at = 0, line = 1; at < bytes; line++) {
        size_t length = line_of(text + at, bytes - at);
        bool blank = is_blank(text + at, length);
        if (open && (blank || split == LODE_SPLIT_LINE)) {
            LODE_TRY(add_record(corpus, path, begin_line, text + begin, at - begin));
            open = false;
        }
        if (!open && !blank) {
            open = true;
            begin = at;
            begin_line = line;
        }
        at += length;
    }
    return open ? add_record(corpus, path, begin_line, text + begin, bytes - begin) : LODE_OK;
}

static lode_status_t add_file(lode_corpus_t *corpus, const char *path, lode_split_t split)
{
    static const char mark[] = "\xef\xbb\xbf";
    char *text = NULL;
    size_t bytes = 0;
    LODE_TRY(read_file(path, &text, &bytes));
    lode_status_t status = check_text(path, text, bytes);
    if (status != LODE_OK) {
        free(text);
        return status;
    }
    LODE_TRY(keep(corpus, text));
    size_t skip = bytes >= 3 && memcmp(text, mark, 3) == 0 ? 3 : 0;
    corpus->files++;
    if (split != LODE_SPLIT_FILE)
        return add_records(corpus, path, text + skip, bytes - skip, split);
    char *name = strdup(path);
    LODE_TRY(keep(corpus, name));
    return add_document(corpus, name, text + skip, bytes - skip);
}

/* ---------------------------------------------------------------------- walk */

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static void leave_out(lode_corpus_t *corpus)
{
    corpus->skipped++;
    if (corpus->warn)
        corpus->warn(lode_error_message());
}

static lode_status_t visit(lode_corpus_t *corpus, FTS *walk, FTSENT *entry, lode_split_t split)
{
    if (entry->fts_level > 0 && entry->fts_name[0] == '.') {
        fts_set(walk, entry, FTS_SKIP);
        return LODE_OK;
    }
    lode_status_t status = LODE_OK;
    switch (entry->fts_info) {
    case FTS_F:
        status = add_file(corpus, entry->fts_path, split);
        break;
    case FTS_DEFAULT:
    case FTS_SLNONE:
        status = lode_fail(LODE_ERR_FORMAT, "%s is no file of text", entry->fts_path);
        break;
    case FTS_DNR:
    case FTS_NS:
    case FTS_ERR:
        status = lode_fail(LODE_ERR_IO, "%s cannot be read: %s", entry->fts_path, strerror(entry->fts_errno));
        break;
    default: /* folders, and links that lead back to one of them */
        break;
    }
    if (status == LODE_OK || status == LODE_ERR_NO_MEMORY || entry->fts_level == 0)
        return status;
    leave_out(corpus);
    return LODE_OK;
}

lode_status_t lode_corpus_add(lode_corpus_t *corpus, const char *path, lode_split_t split)
{
    char *paths[] = {(char *)(uintptr_t)path, NULL};
    uint32_t before = corpus->count;
    FTS *walk = *path ? fts_open(paths, FTS_LOGICAL | FTS_NOCHDIR, by_name) : NULL;
    if (!walk)
        return lode_fail(LODE_ERR_IO, "\"%s\" cannot be read: %s", path, *path ? strerror(errno) : "it is no path");
    lode_status_t status = LODE_OK;
    FTSENT *entry;
    while (status == LODE_OK && (errno = 0, entry = fts_read(walk)) != NULL)
        status = visit(corpus, walk, entry, split);
    if (status == LODE_OK && errno)
        status = lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    fts_close(walk);
    if (status == LODE_OK && corpus->count == before)
        return lode_fail(LODE_ERR_INVALID, "%s holds no documents", path);
    return status;
}

/* ---------------------------------------------------------------------- ranks */

uint64_t lode_corpus_digest(const lode_corpus_t *corpus)
{
    uint64_t digest = corpus->count;
    for (uint32_t i = 0; i < corpus->count; i++) {
        const lode_document_t *document = &corpus->documents[i];
        uint64_t word;
        size_t at = 0;
        digest = lode_mix(digest, document->bytes);
        for (; at + sizeof word <= document->bytes; at += sizeof word) {
            memcpy(&word, document->text + at, sizeof word);
            digest = lode_mix(digest, word);
        }
        for (; at < document->bytes; at++)
            digest = lode_mix(digest, (unsigned char)document->text[at]);
    }
    return digest;
}

typedef struct weight {
    uint64_t bytes;
    uint32_t index;
} weight_t;

static int heaviest_first(const void *a, const void *b)
{
    const weight_t *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

lode_status_t lode_corpus_share(const lode_document_t *documents, uint32_t count, uint32_t ranks, uint32_t *ranks_of)
{
    weight_t *order = malloc((count + 1) * sizeof *order);
    uint64_t *loads = calloc(ranks, sizeof *loads);
    if (!order || !loads) {
        free(order);
        free(loads);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to divide %u documents", count);
    }
    for (uint32_t i = 0; i < count; i++)
        order[i] = (weight_t){documents[i].bytes, i};
    qsort(order, count, sizeof *order, heaviest_first);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t least = 0;
        for (uint32_t r = 1; r < ranks; r++)
            least = loads[r] < loads[least] ? r : least;
        loads[least] += order[i].bytes;
        ranks_of[order[i].index] = least;
    }
    free(order);
    free(loads);
    return LODE_OK;
}

/* ------------------------------------------------------------------------ words */

lode_split_t lode_split_of(const char *text)
{
    return *text == 'f' ? LODE_SPLIT_FILE : *text == 'p' ? LODE_SPLIT_PARAGRAPH : LODE_SPLIT_LINE;
}

lode_status_t lode_corpus_words(const char *command, int argc, char **argv, lode_paths_t *paths, char **rest,
                                int *rest_count)
{
    bool docs = false;
    *rest_count = 0;
    *paths = (lode_paths_t){.at = calloc((size_t)argc + 1, sizeof *paths->at)};
    if (!paths->at)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for options");
    for (int i = 0; i < argc; i++) {
        bool option = strncmp(argv[i], "--", 2) == 0;
        if (strcmp(argv[i], "--docs") == 0) {
            if (i + 1 == argc || strncmp(argv[i + 1], "--", 2) == 0)
                return lode_fail(LODE_ERR_INVALID, "--docs: no path follows it; see lodemark %s --help", command);
            docs = true;
        } else if (strncmp(argv[i], "--docs=", 7) == 0) {
            paths->at[paths->count++] = argv[i] + 7;
            docs = true;
        } else if (!option && docs) {
            paths->at[paths->count++] = argv[i];
        } else if (option) {
            docs = false;
            rest[(*rest_count)++] = argv[i];
            if (!strchr(argv[i], '=') && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0)
                rest[(*rest_count)++] = argv[++i];
        } else {
            return lode_fail(LODE_ERR_INVALID, "\"%s\": a document? They follow --docs; see lodemark %s --help",
                             argv[i], command);
        }
    }
    return LODE_OK;
}
