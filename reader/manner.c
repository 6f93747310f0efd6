/* SPDX-License-Identifier: Apache-2.0 */
/* How a model wants to be asked: reader.json, templates, and long documents cut into pieces. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader/manner_inside.h"

enum { FILE_MAX = 64 << 10, STOPS_MAX = 16, STOP_BYTES_MAX = 256, TEXT_TOKENS_MIN = 16 };

/* ------------------------------------------------------------------------ texts */

static lode_status_t copy_text(const char *text, size_t bytes, char **copy)
{
    *copy = strndup(text, bytes);
    return *copy ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a text of %zu bytes", bytes);
}

/* Cut a template at its place for the text. */
static lode_status_t cut_template(const char *key, const char *whole, char *sides[2])
{
    char place[32];
    size_t width = (size_t)snprintf(place, sizeof place, "{%s}", strcmp(key, "document") == 0 ? "text" : key);
    const char *at = strstr(whole, place);
    if (!at || strstr(at + width, place))
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" does not have %s once", key, place);
    LODE_TRY(copy_text(whole, (size_t)(at - whole), &sides[0]));
    return copy_text(at + width, strlen(at + width), &sides[1]);
}

/* A name like <|end|> that the tokenizer has not is a slip: it would be many tokens that no model was trained on. */
lode_status_t lode_manner_check_names(const char *key, const char *text, lode_tokenizer_h tokenizer)
{
    char name[64];
    for (const char *begin = text, *end; (begin = strstr(begin, "<|")) && (end = strstr(begin, "|>")); begin = end) {
        if ((size_t)(end + 2 - begin) >= sizeof name)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(end + 2 - begin), begin);
        if (lode_tokenizer_special(tokenizer, name) < 0)
            return lode_fail(LODE_ERR_FORMAT, "\"%s\" has \"%s\", which is no token of the tokenizer", key, name);
    }
    return LODE_OK;
}

static lode_status_t add_stop(lode_manner_t *manner, const char *text, size_t bytes)
{
    if (manner->stop_count == STOPS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "there are more than %d stop texts", STOPS_MAX);
    if (bytes == 0 || bytes > STOP_BYTES_MAX)
        return lode_fail(LODE_ERR_FORMAT, "a stop text has %zu bytes; it takes 1 to %d", bytes, STOP_BYTES_MAX);
    if (memchr(text, 0, bytes)) /* of a tokenizer: JSON's texts have none */
        return lode_fail(LODE_ERR_UNSUPPORTED, "a stop text has a zero byte");
    for (uint32_t i = 0; i < manner->stop_count; i++)
        if (strcmp(manner->stops[i], text) == 0)
            return LODE_OK;
    char **larger = realloc(manner->stops, (manner->stop_count + 1) * sizeof *larger);
    if (!larger)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u stop texts", manner->stop_count + 1);
    manner->stops = larger;
    LODE_TRY(copy_text(text, bytes, &manner->stops[manner->stop_count]));
    manner->stop_count++;
    return LODE_OK;
}

/* --------------------------------------------------------------------- reader.json */

lode_status_t lode_manner_check_keys(const json_t *object, const lode_option_t *known)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        bool is_known = false;
        for (size_t i = 0; known[i].name; i++)
            is_known = is_known || strcmp(known[i].name, key) == 0;
        if (is_known)
            continue;
        const char *nearest = lode_options_nearest(known, key);
        return lode_fail(LODE_ERR_FORMAT, "it has \"%.40s\", which is not known here%s%s%s", key,
                         nearest ? "; is \"" : "", nearest ? nearest : "", nearest ? "\" meant?" : "");
    }
    return LODE_OK;
}

static lode_status_t read_template(const json_t *file, const char *key, lode_tokenizer_h tokenizer, char *sides[2])
{
    const json_t *value = json_object_get(file, key);
    if (!value)
        return LODE_OK;
    if (!json_is_string(value))
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" is not a text", key);
    LODE_TRY(lode_manner_check_names(key, json_string_value(value), tokenizer));
    return cut_template(key, json_string_value(value), sides);
}

static lode_status_t read_stops(const json_t *stops, lode_tokenizer_h tokenizer, lode_manner_t *manner)
{
    size_t i;
    const json_t *stop;
    if (stops && !json_is_array(stops))
        return lode_fail(LODE_ERR_FORMAT, "\"stop\" is not a list of texts");
    json_array_foreach(stops, i, stop)
    {
        if (!json_is_string(stop))
            return lode_fail(LODE_ERR_FORMAT, "\"stop\" is not a list of texts");
        LODE_TRY(lode_manner_check_names("stop", json_string_value(stop), tokenizer));
        LODE_TRY(add_stop(manner, json_string_value(stop), json_string_length(stop)));
    }
    return LODE_OK;
}

static lode_status_t read_positions(const json_t *file, lode_manner_t *manner)
{
    const json_t *positions = json_object_get(file, "positions"), *range = json_object_get(file, "range");
    const char *text = positions ? lode_json_text(file, "positions") : "cumulative";
    manner->shared_positions = strcmp(text, "shared") == 0;
    if (!manner->shared_positions && strcmp(text, "cumulative") != 0)
        return lode_fail(LODE_ERR_FORMAT, "\"positions\" is neither \"shared\" nor \"cumulative\"");
    if (!range)
        return LODE_OK;
    if (!json_is_integer(range) || json_integer_value(range) < 1 || json_integer_value(range) > manner->range)
        return lode_fail(LODE_ERR_FORMAT, "\"range\" is not a whole number from 1 to %u, the model's context",
                         manner->range);
    manner->range = (uint32_t)json_integer_value(range);
    return LODE_OK;
}

static bool is_number(const json_t *value)
{
    return json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) <= UINT16_MAX;
}

/* Pairs of layer and KV head; whether the model has them is for who knows the model. */
static lode_status_t read_heads(const json_t *file, lode_manner_t *manner)
{
    const json_t *heads = json_object_get(file, "heads");
    if (!heads)
        return LODE_OK;
    size_t count = json_array_size(heads);
    manner->heads = calloc(count + 1, sizeof *manner->heads);
    if (!manner->heads)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %zu heads", count);
    for (size_t i = 0; i < count; i++) {
        const json_t *head = json_array_get(heads, i);
        if (json_array_size(head) != 2 || !is_number(json_array_get(head, 0)) || !is_number(json_array_get(head, 1)))
            break;
        for (size_t j = 0; j < 2; j++)
            manner->heads[i][j] = (uint32_t)json_integer_value(json_array_get(head, j));
        manner->head_count++;
    }
    if (!json_is_array(heads) || manner->head_count < count)
        return lode_fail(LODE_ERR_FORMAT, "\"heads\" is not a list of pairs [layer, KV head]");
    return LODE_OK;
}

static lode_status_t read_file(const json_t *file, lode_tokenizer_h tokenizer, lode_manner_t *manner)
{
    static const lode_option_t known[] = {{"version"},   {"document"}, {"question"}, {"stop"},
                                          {"positions"}, {"range"},    {"heads"},    {NULL}};
    const json_t *version = json_object_get(file, "version");
    if (!json_is_object(file))
        return lode_fail(LODE_ERR_FORMAT, "it is not a JSON object");
    if (!json_is_integer(version) || json_integer_value(version) != 1)
        return lode_fail(LODE_ERR_UNSUPPORTED, "its \"version\" is not 1");
    LODE_TRY(lode_manner_check_keys(file, known));
    LODE_TRY(read_template(file, "document", tokenizer, manner->document));
    LODE_TRY(read_template(file, "question", tokenizer, manner->question));
    LODE_TRY(read_stops(json_object_get(file, "stop"), tokenizer, manner));
    LODE_TRY(read_positions(file, manner));
    return read_heads(file, manner);
}

/* -------------------------------------------------------------- any other checkpoint */

/* The texts of "eos_token_id", a number or a list, of one of the folder's files. */
static lode_status_t add_ends(const char *folder, const char *name, lode_tokenizer_h tokenizer, lode_manner_t *manner)
{
    char path[4096];
    json_t *file;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path || access(path, F_OK) != 0)
        return LODE_OK;
    LODE_TRY(lode_read_json(path, LODE_TOKENIZER_FILE_MAX, &file));
    json_t *ids = json_object_get(file, "eos_token_id");
    lode_status_t status = LODE_OK;
    for (size_t i = 0; status == LODE_OK && i < (json_is_array(ids) ? json_array_size(ids) : 1); i++) {
        json_t *id = json_is_array(ids) ? json_array_get(ids, i) : ids;
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        size_t bytes = 0;
        const char *text =
            value >= 0 && value <= LODE_TOKEN_ID_MAX ? lode_tokenizer_bytes(tokenizer, (uint32_t)value, &bytes) : NULL;
        if (text && bytes)
            status = add_stop(manner, text, bytes);
    }
    json_decref(file);
    return status;
}

lode_status_t lode_manner_add_ends(const char *folder, lode_tokenizer_h tokenizer, lode_manner_t *manner)
{
    LODE_TRY(add_ends(folder, "config.json", tokenizer, manner));
    return add_ends(folder, "generation_config.json", tokenizer, manner);
}

/* What reader.json did not say. */
static lode_status_t fill_in(const char *folder, lode_tokenizer_h tokenizer, lode_manner_t *manner)
{
    int64_t begin = lode_tokenizer_begin(tokenizer);
    size_t bytes = 0;
    const char *before = begin < 0 ? "" : lode_tokenizer_bytes(tokenizer, (uint32_t)begin, &bytes);
    if (!manner->document[0]) {
        LODE_TRY(copy_text(before, bytes, &manner->document[0]));
        LODE_TRY(copy_text("\n\n", 2, &manner->document[1]));
    }
    if (!manner->question[0])
        LODE_TRY(cut_template("question", "{question}\nAnswer:", manner->question));
    if (manner->stop_count)
        return LODE_OK;
    LODE_TRY(add_stop(manner, "\n", 1));
    return lode_manner_add_ends(folder, tokenizer, manner);
}

static lode_status_t count_template(char *const sides[2], lode_tokenizer_h tokenizer, size_t *count)
{
    lode_tokens_t tokens = {0};
    lode_status_t status = LODE_OK;
    for (int i = 0; i < 2 && status == LODE_OK; i++)
        status = lode_tokenizer_encode(tokenizer, sides[i], strlen(sides[i]), true, &tokens);
    *count = tokens.count;
    lode_tokens_free(&tokens);
    return status;
}

static lode_status_t check_room(const lode_manner_t *manner, lode_tokenizer_h tokenizer)
{
    size_t document, question;
    LODE_TRY(count_template(manner->document, tokenizer, &document));
    LODE_TRY(count_template(manner->question, tokenizer, &question));
    size_t larger = document > question ? document : question;
    if (larger + TEXT_TOKENS_MIN > manner->range)
        return lode_fail(LODE_ERR_FORMAT, "a template takes %zu tokens of a range of %u: too few are left for a text",
                         larger, manner->range);
    return LODE_OK;
}

lode_status_t lode_manner_read(const json_t *file, const char *folder, lode_tokenizer_h tokenizer, uint32_t context,
                               lode_manner_t *manner)
{
    lode_manner_t made = {.range = context};
    lode_status_t status = file ? read_file(file, tokenizer, &made) : LODE_OK;
    if (status == LODE_OK)
        status = fill_in(folder, tokenizer, &made);
    if (status == LODE_OK)
        status = check_room(&made, tokenizer);
    if (status != LODE_OK)
        lode_manner_free(&made);
    else
        *manner = made;
    return status;
}

lode_status_t lode_manner_open(const char *folder, lode_tokenizer_h tokenizer, uint32_t context, lode_manner_t *manner)
{
    char path[4096];
    json_t *file = NULL;
    if (snprintf(path, sizeof path, "%s/reader.json", folder) >= (int)sizeof path)
        return lode_fail(LODE_ERR_INVALID, "a path of %zu bytes is too long", strlen(folder));
    if (access(path, F_OK) == 0 || errno != ENOENT)
        LODE_TRY(lode_read_json(path, FILE_MAX, &file));
    lode_status_t status = lode_manner_read(file, folder, tokenizer, context, manner);
    if (status != LODE_OK)
        lode_fail_within(status, "%s: ", file ? path : folder);
    json_decref(file);
    return status;
}

void lode_manner_free(lode_manner_t *manner)
{
    for (int i = 0; i < 2; i++) {
        free(manner->document[i]);
        free(manner->question[i]);
    }
    for (uint32_t i = 0; i < manner->stop_count; i++)
        free(manner->stops[i]);
    free(manner->stops);
    free(manner->heads);
    *manner = (lode_manner_t){0};
}

/* ------------------------------------------------------------------------- cutting */

typedef struct cutter {
    char *text;    /**< what the tokens say, normalized */
    size_t *bytes; /**< (count + 1) where each token begins in it */
    size_t count;
} cutter_t;

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* Whether the last line that ends before @p at is empty. */
static bool follows_empty_line(const char *text, size_t at)
{
    size_t i = at - 1; /* the newline */
    while (i && is_blank(text[i - 1]))
        i--;
    return i == 0 || text[i - 1] == '\n';
}

/* "Yes.", "yes?)", and what ends a sentence in Chinese and Japanese, where no space follows. */
static bool ends_sentence(const char *text, size_t at, bool space_follows)
{
    while (at && space_follows && text[at - 1] && strchr("\"')]}", text[at - 1]))
        at--;
    if (at >= 3 && (memcmp(text + at - 3, "\xe3\x80\x82", 3) == 0 || memcmp(text + at - 3, "\xef\xbc\x81", 3) == 0 ||
                    memcmp(text + at - 3, "\xef\xbc\x9f", 3) == 0))
        return true;
    return at && space_follows && text[at - 1] && strchr(".!?", text[at - 1]);
}

/* How good it is to cut before a byte of the text: 0 not at all, 5 a paragraph ends. */
static int worth(const char *text, size_t at)
{
    uint8_t next = (uint8_t)text[at];
    bool space_follows = next == '\n' || is_blank((char)next);
    if ((next & 0xc0) == 0x80)
        return 0;
    if (text[at - 1] == '\n' && next != '\n')
        return follows_empty_line(text, at) ? 5 : 4;
    if (ends_sentence(text, at, space_follows))
        return 3;
    return space_follows ? 2 : 1; /* not behind the space: it belongs to the next word's token */
}

/* Tokens of the piece that begins at token @p first: all that are left, or at most @p room. */
static size_t piece_end(const cutter_t *cutter, size_t first, size_t room)
{
    if (cutter->count - first <= room)
        return cutter->count;
    size_t best = first + room, least = first + room - room / 4;
    int most = 0;
    for (size_t end = first + room; end > first && (end > least || most == 0); end--) {
        int value = cutter->bytes[end] > cutter->bytes[first] ? worth(cutter->text, cutter->bytes[end]) : 0;
        if (value > most) {
            most = value;
            best = end;
        }
    }
    return best;
}

static lode_status_t open_cutter(lode_tokenizer_h tokenizer, const lode_tokens_t *tokens, cutter_t *cutter)
{
    size_t at = 0, bytes = 0;
    cutter->count = tokens->count;
    cutter->bytes = malloc((tokens->count + 1) * sizeof *cutter->bytes);
    for (size_t i = 0; cutter->bytes && i < tokens->count; i++, at += bytes) {
        cutter->bytes[i] = at;
        lode_tokenizer_bytes(tokenizer, tokens->ids[i], &bytes);
    }
    cutter->text = cutter->bytes ? malloc(at + 1) : NULL;
    if (!cutter->text)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to cut a document of %zu tokens", tokens->count);
    cutter->bytes[tokens->count] = at;
    for (size_t i = 0; i < tokens->count; i++) {
        const char *text = lode_tokenizer_bytes(tokenizer, tokens->ids[i], &bytes);
        memcpy(cutter->text + cutter->bytes[i], text, bytes);
    }
    cutter->text[at] = 0;
    return LODE_OK;
}

/* ------------------------------------------------------------------------ documents */

typedef struct document {
    lode_tokens_t before, text, after, whole;
    cutter_t cutter;
    size_t *ends, pieces, room_for;
} document_t;

static void free_document(document_t *d)
{
    lode_tokens_free(&d->before);
    lode_tokens_free(&d->text);
    lode_tokens_free(&d->after);
    lode_tokens_free(&d->whole);
    free(d->cutter.text);
    free(d->cutter.bytes);
    free(d->ends);
}

static lode_status_t add_piece(document_t *d, size_t first, size_t end)
{
    if (d->pieces == d->room_for) {
        size_t room_for = d->room_for ? 2 * d->room_for : 4;
        size_t *larger = realloc(d->ends, room_for * sizeof *larger);
        if (!larger)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu pieces of a document", room_for);
        d->ends = larger;
        d->room_for = room_for;
    }
    LODE_TRY(lode_tokens_append(&d->whole, d->before.ids, d->before.count));
    if (end > first) /* else there may be no ids at all */
        LODE_TRY(lode_tokens_append(&d->whole, d->text.ids + first, end - first));
    LODE_TRY(lode_tokens_append(&d->whole, d->after.ids, d->after.count));
    d->ends[d->pieces++] = d->whole.count;
    return LODE_OK;
}

static lode_status_t cut_document(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                  size_t bytes, document_t *d)
{
    LODE_TRY(lode_tokenizer_encode(tokenizer, manner->document[0], strlen(manner->document[0]), true, &d->before));
    LODE_TRY(lode_tokenizer_encode(tokenizer, manner->document[1], strlen(manner->document[1]), true, &d->after));
    LODE_TRY(lode_tokenizer_encode(tokenizer, text, bytes, false, &d->text));
    size_t room = manner->range - d->before.count - d->after.count;
    if (d->text.count <= room)
        return add_piece(d, 0, d->text.count);
    LODE_TRY(open_cutter(tokenizer, &d->text, &d->cutter));
    for (size_t first = 0, end; first < d->text.count; first = end) {
        end = piece_end(&d->cutter, first, room);
        LODE_TRY(add_piece(d, first, end));
    }
    return LODE_OK;
}

lode_status_t lode_manner_document(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                   size_t bytes, lode_tokens_t *tokens, size_t **ends, size_t *piece_count)
{
    document_t d = {0};
    lode_status_t status = cut_document(manner, tokenizer, text, bytes, &d);
    for (size_t i = 0; i < d.pieces; i++)
        d.ends[i] += tokens->count;
    if (status == LODE_OK)
        status = lode_tokens_append(tokens, d.whole.ids, d.whole.count);
    if (status == LODE_OK) {
        *ends = d.ends;
        *piece_count = d.pieces;
        d.ends = NULL;
    }
    free_document(&d);
    return status;
}

static lode_status_t append_question(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                     size_t bytes, lode_tokens_t *tokens)
{
    size_t before = tokens->count;
    LODE_TRY(lode_tokenizer_encode(tokenizer, manner->question[0], strlen(manner->question[0]), true, tokens));
    LODE_TRY(lode_tokenizer_encode(tokenizer, text, bytes, false, tokens));
    LODE_TRY(lode_tokenizer_encode(tokenizer, manner->question[1], strlen(manner->question[1]), true, tokens));
    if (tokens->count - before > manner->range)
        return lode_fail(LODE_ERR_INVALID, "the question has %zu tokens with its template; the most is %u",
                         tokens->count - before, manner->range);
    return LODE_OK;
}

lode_status_t lode_manner_question(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                   size_t bytes, lode_tokens_t *tokens)
{
    size_t before = tokens->count;
    lode_status_t status = append_question(manner, tokenizer, text, bytes, tokens);
    if (status != LODE_OK)
        tokens->count = before;
    return status;
}
