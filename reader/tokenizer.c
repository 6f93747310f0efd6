/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.json of a model's folder, and texts through it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <utf8proc.h>

#include "reader/tokenizer_inside.h"
#include "reader/utf8.h"

/* ------------------------------------------------------------------ added tokens */

static int by_text(const void *a, const void *b)
{
    const lode_added_t *x = a, *y = b;
    size_t shorter = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->text, y->text, shorter);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static lode_status_t add_to_list(lode_added_list_t *list, const char *text, size_t bytes, uint32_t id)
{
    lode_added_t *larger = realloc(list->items, (list->count + 1) * sizeof *larger);
    char *copy = larger ? malloc(bytes + 1) : NULL;
    if (larger)
        list->items = larger;
    if (!copy)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu added tokens", list->count + 1);
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    list->items[list->count++] = (lode_added_t){copy, bytes, id};
    list->begins[(uint8_t)*copy] = true;
    return LODE_OK;
}

static void free_list(lode_added_list_t *list)
{
    for (size_t i = 0; i < list->count; i++)
        free((char *)list->items[i].text);
    free(list->items);
}

/* The longest added token that the text begins with. */
static const lode_added_t *longest(const lode_added_list_t *list, const char *text, size_t bytes)
{
    const lode_added_t *found = NULL;
    size_t low = 0, high = list->count; /* those that begin with text[0 .. length) */
    for (size_t length = 0; low < high; length++) {
        if (list->items[low].bytes == length)
            found = &list->items[low++];
        if (length == bytes)
            break;
        uint8_t next = (uint8_t)text[length];
        size_t first = low, end = high;
        for (size_t to = high; first < to;) {
            size_t middle = (first + to) / 2;
            if ((uint8_t)list->items[middle].text[length] < next)
                first = middle + 1;
            else
                to = middle;
        }
        for (size_t at = first; at < end;) {
            size_t middle = (at + end) / 2;
            if ((uint8_t)list->items[middle].text[length] <= next)
                at = middle + 1;
            else
                end = middle;
        }
        low = first;
        high = end;
    }
    return found;
}

/* ----------------------------------------------------------------------- reading */

lode_status_t lode_read_json(const char *path, size_t most, json_t **json)
{
    struct stat about;
    json_error_t error;
    if (stat(path, &about) != 0)
        return lode_fail(LODE_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode))
        return lode_fail(LODE_ERR_IO, "%s is not a file", path);
    if ((uint64_t)about.st_size > most)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s has %llu bytes; the most that is read is %zu", path,
                         (unsigned long long)about.st_size, most);
    json_t *loaded = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!loaded && json_error_code(&error) == json_error_cannot_open_file)
        return lode_fail(LODE_ERR_IO, "%s: %s", path, strerror(errno));
    if (!loaded)
        return lode_fail(LODE_ERR_FORMAT, "%s is not valid JSON at line %d, column %d: %s", path, error.line,
                         error.column, error.text);
    *json = loaded;
    return LODE_OK;
}

static lode_status_t read_normalizer(const json_t *normalizer, lode_tokenizer_h t, int depth)
{
    const char *type = lode_json_text(normalizer, "type");
    const json_t *each;
    size_t i;
    if (!normalizer || json_is_null(normalizer))
        return LODE_OK;
    if (strcmp(type, "NFC") == 0) {
        t->composes = true;
        return LODE_OK;
    }
    if (strcmp(type, "Sequence") != 0 || depth > 1)
        return lode_fail(LODE_ERR_UNSUPPORTED, "its normalizer is \"%.40s\"; only \"NFC\" is known", type);
    json_array_foreach(json_object_get(normalizer, "normalizers"), i, each)
    {
        LODE_TRY(read_normalizer(each, t, depth + 1));
    }
    return LODE_OK;
}

/* NFC of a text; owned by the caller. Its input is valid UTF-8. */
static lode_status_t compose(const char *text, size_t bytes, char **composed, size_t *count)
{
    utf8proc_uint8_t *out = NULL;
    utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &out, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "composing %zu bytes of text: %s", bytes, utf8proc_errmsg(n));
    *composed = (char *)out;
    *count = (size_t)n;
    return LODE_OK;
}

static lode_status_t list_added(lode_tokenizer_h t, const char *text, uint32_t id, bool normalized)
{
    if (!normalized || !t->composes)
        return add_to_list(normalized ? &t->normal : &t->raw, text, strlen(text), id);
    char *composed = NULL;
    size_t count = 0;
    LODE_TRY(compose(text, strlen(text), &composed, &count));
    lode_status_t status = add_to_list(&t->normal, composed, count, id);
    free(composed);
    return status;
}

static lode_status_t read_added_token(const json_t *entry, lode_tokenizer_h t)
{
    static const char *const unknown[] = {"single_word", "lstrip", "rstrip"};
    const json_t *id = json_object_get(entry, "id");
    const char *text = lode_json_text(entry, "content");
    if (!*text)
        return lode_fail(LODE_ERR_FORMAT, "an added token has no text");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > LODE_TOKEN_ID_MAX)
        return lode_fail(LODE_ERR_FORMAT, "the id of the added token \"%.40s\" is not a whole number from 0 to %d",
                         text, LODE_TOKEN_ID_MAX);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (json_is_true(json_object_get(entry, unknown[i])))
            return lode_fail(LODE_ERR_UNSUPPORTED, "the added token \"%.40s\" has \"%s\", which is not known here",
                             text, unknown[i]);
    LODE_TRY(lode_vocabulary_add(&t->vocabulary, (uint32_t)json_integer_value(id), text));
    return list_added(t, text, (uint32_t)json_integer_value(id), json_is_true(json_object_get(entry, "normalized")));
}

static lode_status_t sort_list(lode_added_list_t *list)
{
    if (list->count)
        qsort(list->items, list->count, sizeof *list->items, by_text);
    for (size_t i = 1; i < list->count; i++)
        if (by_text(&list->items[i - 1], &list->items[i]) == 0)
            return lode_fail(LODE_ERR_FORMAT, "the added token \"%.40s\" has two ids, %u and %u", list->items[i].text,
                             list->items[i - 1].id, list->items[i].id);
    return LODE_OK;
}

static lode_status_t read_added(const json_t *added, lode_tokenizer_h t)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(added, i, entry)
    {
        LODE_TRY(read_added_token(entry, t));
    }
    LODE_TRY(sort_list(&t->raw));
    return sort_list(&t->normal);
}

/* What a template puts before a text. What it puts behind is left away: a document or an answer goes on there. */
static lode_status_t read_template(const json_t *single, lode_tokenizer_h t)
{
    size_t i;
    const json_t *part;
    json_array_foreach(single, i, part)
    {
        const json_t *special = json_object_get(part, "SpecialToken");
        if (json_object_get(part, "Sequence"))
            break;
        int64_t id = lode_tokenizer_special(t, lode_json_text(special, "id"));
        if (id < 0)
            return lode_fail(LODE_ERR_FORMAT, "its template names \"%.40s\", which is no added token",
                             lode_json_text(special, "id"));
        if (t->begin >= 0)
            return lode_fail(LODE_ERR_UNSUPPORTED, "its template puts more than one token before a text");
        t->begin = id;
    }
    return LODE_OK;
}

static lode_status_t read_post_processor(const json_t *processor, lode_tokenizer_h t, int depth)
{
    const char *type = lode_json_text(processor, "type");
    const json_t *each;
    size_t i;
    if (!processor || json_is_null(processor) || strcmp(type, "ByteLevel") == 0)
        return LODE_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(json_object_get(processor, "single"), t);
    if (strcmp(type, "Sequence") != 0 || depth > 1)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "its post-processor is \"%.40s\"; known are \"TemplateProcessing\" and "
                         "\"ByteLevel\"",
                         type);
    json_array_foreach(json_object_get(processor, "processors"), i, each)
    {
        LODE_TRY(read_post_processor(each, t, depth + 1));
    }
    return LODE_OK;
}

static lode_status_t read_parts(const json_t *file, lode_tokenizer_h t)
{
    const json_t *decoder = json_object_get(file, "decoder");
    if (!json_is_object(file))
        return lode_fail(LODE_ERR_FORMAT, "it is not a JSON object");
    if (decoder && !json_is_null(decoder) && strcmp(lode_json_text(decoder, "type"), "ByteLevel") != 0)
        return lode_fail(LODE_ERR_UNSUPPORTED, "its decoder is \"%.40s\"; only \"ByteLevel\" is known",
                         lode_json_text(decoder, "type"));
    LODE_TRY(read_normalizer(json_object_get(file, "normalizer"), t, 0));
    LODE_TRY(lode_splitter_read(json_object_get(file, "pre_tokenizer"), &t->splitter));
    LODE_TRY(lode_vocabulary_read(json_object_get(file, "model"), &t->vocabulary));
    LODE_TRY(read_added(json_object_get(file, "added_tokens"), t));
    return read_post_processor(json_object_get(file, "post_processor"), t, 0);
}

lode_status_t lode_tokenizer_read(const json_t *file, lode_tokenizer_h *tokenizer)
{
    lode_tokenizer_h t = calloc(1, sizeof *t);
    if (!t)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a tokenizer");
    t->begin = -1;
    lode_status_t status = read_parts(file, t);
    if (status != LODE_OK)
        lode_tokenizer_close(&t);
    else
        *tokenizer = t;
    return status;
}

lode_status_t lode_tokenizer_open(const char *folder, lode_tokenizer_h *tokenizer)
{
    char path[4096];
    json_t *file;
    if (snprintf(path, sizeof path, "%s/tokenizer.json", folder) >= (int)sizeof path)
        return lode_fail(LODE_ERR_INVALID, "a path of %zu bytes is too long", strlen(folder));
    LODE_TRY(lode_read_json(path, LODE_TOKENIZER_FILE_MAX, &file));
    lode_status_t status = lode_tokenizer_read(file, tokenizer);
    json_decref(file);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "%s: ", path);
}

void lode_tokenizer_close(lode_tokenizer_h *tokenizer)
{
    lode_tokenizer_h t = *tokenizer;
    if (!t)
        return;
    lode_vocabulary_free(&t->vocabulary);
    lode_splitter_free(&t->splitter);
    free_list(&t->raw);
    free_list(&t->normal);
    free(t);
    *tokenizer = NULL;
}

/* ----------------------------------------------------------------------- encoding */

typedef struct encoding {
    lode_tokenizer_h tokenizer;
    bool special;
    lode_tokens_t *tokens;
} encoding_t;

static lode_status_t encode_word(void *self, const char *word, size_t bytes)
{
    encoding_t *e = self;
    return lode_vocabulary_encode(&e->tokenizer->vocabulary, word, bytes, e->tokens);
}

static lode_status_t encode_words(encoding_t *e, const char *text, size_t bytes)
{
    return lode_splitter_run(&e->tokenizer->splitter, 0, text, bytes, encode_word, e);
}

/* Cut added tokens out; what is between them goes on to @p rest. */
static lode_status_t cut_added(encoding_t *e, const lode_added_list_t *list, const char *text, size_t bytes,
                               lode_status_t (*rest)(encoding_t *, const char *, size_t))
{
    size_t done = 0;
    for (size_t at = 0; e->special && list->count && at < bytes;) {
        const lode_added_t *added = list->begins[(uint8_t)text[at]] ? longest(list, text + at, bytes - at) : NULL;
        if (!added) {
            at++;
            continue;
        }
        if (at > done)
            LODE_TRY(rest(e, text + done, at - done));
        LODE_TRY(lode_tokens_append(e->tokens, &added->id, 1));
        done = at += added->bytes;
    }
    return done < bytes ? rest(e, text + done, bytes - done) : LODE_OK;
}

/* No character below U+0300 changes when composed. */
static bool may_change(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if ((uint8_t)text[i] >= 0xcc)
            return true;
    return false;
}

static lode_status_t encode_raw(encoding_t *e, const char *text, size_t bytes)
{
    const lode_added_list_t *list = &e->tokenizer->normal;
    if (!e->tokenizer->composes || !may_change(text, bytes))
        return cut_added(e, list, text, bytes, encode_words);
    char *composed = NULL;
    size_t count = 0;
    LODE_TRY(compose(text, bytes, &composed, &count));
    lode_status_t status = cut_added(e, list, composed, count, encode_words);
    free(composed);
    return status;
}

lode_status_t lode_tokenizer_encode(lode_tokenizer_h t, const char *text, size_t bytes, bool special,
                                    lode_tokens_t *tokens)
{
    size_t before = tokens->count;
    size_t valid = lode_utf8_valid(text, bytes);
    if (bytes > LODE_TEXT_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a text of %zu bytes is refused; the most is %d", bytes, LODE_TEXT_MAX);
    if (valid < bytes)
        return lode_fail(LODE_ERR_FORMAT, "byte %zu, 0x%02x, is no UTF-8", valid, (uint8_t)text[valid]);
    encoding_t e = {t, special, tokens};
    lode_status_t status = cut_added(&e, &t->raw, text, bytes, encode_raw);
    if (status != LODE_OK)
        tokens->count = before;
    return status;
}

/* ----------------------------------------------------------------------- asking */

void lode_tokens_free(lode_tokens_t *tokens)
{
    free(tokens->ids);
    *tokens = (lode_tokens_t){0};
}

uint32_t lode_tokenizer_size(lode_tokenizer_h tokenizer)
{
    return tokenizer->vocabulary.size;
}

const char *lode_tokenizer_bytes(lode_tokenizer_h tokenizer, uint32_t id, size_t *bytes)
{
    const lode_vocabulary_t *v = &tokenizer->vocabulary;
    if (id >= v->size || v->tokens[id].kind == LODE_TOKEN_NONE)
        return NULL;
    *bytes = v->tokens[id].bytes;
    return v->arena + v->tokens[id].at;
}

int64_t lode_tokenizer_special(lode_tokenizer_h tokenizer, const char *text)
{
    const lode_added_list_t *lists[] = {&tokenizer->raw, &tokenizer->normal};
    lode_added_t key = {.text = text, .bytes = strlen(text)};
    for (size_t i = 0; i < 2; i++) {
        const lode_added_t *found =
            lists[i]->count ? bsearch(&key, lists[i]->items, lists[i]->count, sizeof key, by_text) : NULL;
        if (found)
            return found->id;
    }
    return -1;
}

int64_t lode_tokenizer_begin(lode_tokenizer_h tokenizer)
{
    return tokenizer->begin;
}
