/* SPDX-License-Identifier: Apache-2.0 */
/* How a model is made to think and speak at once: talk.json, or what suits most checkpoints. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "reader/manner_inside.h"
#include "reader/talk_inside.h"

enum { FILE_MAX = 64 << 10, TEXTS_MAX = 64, PROBE_EVERY = 20, PROBE_EVERY_MAX = 1 << 20 };

/* -------------------------------------------------------------------- texts */

static lode_status_t copy(const char *text, char **out)
{
    free(*out);
    *out = strdup(text);
    return *out ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a text of %zu bytes", strlen(text));
}

static lode_status_t add_text(const char *key, const char *text, lode_texts_t *texts)
{
    size_t bytes = strlen(text);
    if (texts->count == TEXTS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "\"%s\" has more than %d texts", key, TEXTS_MAX);
    if (bytes == 0 || bytes > LODE_TALK_TEXT_MAX)
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" has a text of %zu bytes; it takes 1 to %d", key, bytes,
                         LODE_TALK_TEXT_MAX);
    char **larger = realloc(texts->texts, (texts->count + 1) * sizeof *larger);
    if (!larger)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u texts", texts->count + 1);
    texts->texts = larger;
    texts->texts[texts->count] = NULL;
    LODE_TRY(copy(text, &texts->texts[texts->count]));
    texts->count++;
    return LODE_OK;
}

static void free_texts(lode_texts_t *texts)
{
    for (uint32_t i = 0; i < texts->count; i++)
        free(texts->texts[i]);
    free(texts->texts);
    *texts = (lode_texts_t){0};
}

void lode_prompts_free(lode_prompts_t *prompts)
{
    free(prompts->prompt);
    free(prompts->input_first);
    free(prompts->input_next);
    free(prompts->input_end);
    free(prompts->thinker_begin);
    free(prompts->writer_begin);
    free(prompts->writer_alone);
    free(prompts->control_question);
    free_texts(&prompts->thinker_stops);
    free_texts(&prompts->writer_stops);
    free_texts(&prompts->thinker_paragraphs);
    free_texts(&prompts->writer_paragraphs);
    free_texts(&prompts->sentences);
    free_texts(&prompts->yes);
    free_texts(&prompts->no);
    *prompts = (lode_prompts_t){0};
}

/* ---------------------------------------------------------------- talk.json */

/* A file that is being read; all of its texts are checked for names that are no tokens. */
typedef struct source {
    const json_t *part; /* an object of the file */
    const char *name;   /* of the part; NULL: the file itself */
    lode_tokenizer_h tokenizer;
} source_t;

/* "thinker.begin" */
static const char *full_key(const source_t *from, const char *key, char room[64])
{
    snprintf(room, 64, "%s%s%s", from->name ? from->name : "", from->name ? "." : "", key);
    return room;
}

static lode_status_t read_text(const source_t *from, const char *key, char **text)
{
    char room[64];
    const json_t *value = json_object_get(from->part, key);
    const char *full = full_key(from, key, room);
    if (value && !json_is_string(value))
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" is not a text", full);
    LODE_TRY(lode_manner_check_names(full, value ? json_string_value(value) : "", from->tokenizer));
    return copy(value ? json_string_value(value) : "", text);
}

static lode_status_t read_texts(const source_t *from, const char *key, bool needed, lode_texts_t *texts)
{
    char room[64];
    size_t i;
    const json_t *value = json_object_get(from->part, key), *text;
    const char *full = full_key(from, key, room);
    if (value && !json_is_array(value))
        return lode_fail(LODE_ERR_FORMAT, "\"%s\" is not a list of texts", full);
    json_array_foreach(value, i, text)
    {
        if (!json_is_string(text))
            return lode_fail(LODE_ERR_FORMAT, "\"%s\" is not a list of texts", full);
        LODE_TRY(lode_manner_check_names(full, json_string_value(text), from->tokenizer));
        LODE_TRY(add_text(full, json_string_value(text), texts));
    }
    return needed && !texts->count ? lode_fail(LODE_ERR_FORMAT, "\"%s\" has no text: it takes one at least", full)
                                   : LODE_OK;
}

static lode_status_t open_part(const json_t *file, const char *name, const lode_option_t *known, source_t *part)
{
    part->part = json_object_get(file, name);
    part->name = name;
    if (!json_is_object(part->part))
        return lode_fail(LODE_ERR_FORMAT, "its \"%s\" is missing or not an object", name);
    lode_status_t status = lode_manner_check_keys(part->part, known);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "\"%s\": ", name);
}

static lode_status_t read_input(const json_t *file, source_t part, lode_prompts_t *prompts)
{
    static const lode_option_t known[] = {{"first"}, {"next"}, {"end"}, {NULL}};
    LODE_TRY(open_part(file, "input", known, &part));
    LODE_TRY(read_text(&part, "first", &prompts->input_first));
    LODE_TRY(read_text(&part, "next", &prompts->input_next));
    return read_text(&part, "end", &prompts->input_end);
}

static lode_status_t read_thinker(const json_t *file, source_t part, lode_prompts_t *prompts)
{
    static const lode_option_t known[] = {{"begin"}, {"stop"}, {"paragraph"}, {"sentence"}, {NULL}};
    LODE_TRY(open_part(file, "thinker", known, &part));
    LODE_TRY(read_text(&part, "begin", &prompts->thinker_begin));
    LODE_TRY(read_texts(&part, "stop", true, &prompts->thinker_stops));
    LODE_TRY(read_texts(&part, "paragraph", false, &prompts->thinker_paragraphs));
    return read_texts(&part, "sentence", false, &prompts->sentences);
}

static lode_status_t read_writer(const json_t *file, source_t part, lode_prompts_t *prompts)
{
    static const lode_option_t known[] = {{"begin"}, {"alone"}, {"stop"}, {"paragraph"}, {NULL}};
    LODE_TRY(open_part(file, "writer", known, &part));
    LODE_TRY(read_text(&part, "begin", &prompts->writer_begin));
    LODE_TRY(read_text(&part, "alone", &prompts->writer_alone));
    LODE_TRY(read_texts(&part, "stop", true, &prompts->writer_stops));
    return read_texts(&part, "paragraph", false, &prompts->writer_paragraphs);
}

static lode_status_t read_control(const json_t *file, source_t part, lode_prompts_t *prompts)
{
    static const lode_option_t known[] = {{"question"}, {"yes"}, {"no"}, {"every"}, {NULL}};
    LODE_TRY(open_part(file, "control", known, &part));
    LODE_TRY(read_text(&part, "question", &prompts->control_question));
    LODE_TRY(read_texts(&part, "yes", true, &prompts->yes));
    LODE_TRY(read_texts(&part, "no", true, &prompts->no));
    const json_t *every = json_object_get(part.part, "every");
    json_int_t value = every ? json_integer_value(every) : PROBE_EVERY;
    if (value < 1 || value > PROBE_EVERY_MAX)
        return lode_fail(LODE_ERR_FORMAT, "\"control.every\" is not a whole number from 1 to %d", PROBE_EVERY_MAX);
    prompts->probe_every = (uint32_t)value;
    return LODE_OK;
}

static lode_status_t read_file(const json_t *file, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    static const lode_option_t known[] = {{"version"}, {"prompt"},  {"input"}, {"thinker"},
                                          {"writer"},  {"control"}, {NULL}};
    source_t whole = {.part = file, .tokenizer = tokenizer};
    const json_t *version = json_object_get(file, "version");
    if (!json_is_object(file))
        return lode_fail(LODE_ERR_FORMAT, "it is not a JSON object");
    if (!json_is_integer(version) || json_integer_value(version) != 1)
        return lode_fail(LODE_ERR_UNSUPPORTED, "its \"version\" is not 1");
    LODE_TRY(lode_manner_check_keys(file, known));
    LODE_TRY(read_text(&whole, "prompt", &prompts->prompt));
    LODE_TRY(read_input(file, whole, prompts));
    LODE_TRY(read_thinker(file, whole, prompts));
    LODE_TRY(read_writer(file, whole, prompts));
    return read_control(file, whole, prompts);
}

lode_status_t lode_prompts_read(const json_t *file, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    lode_prompts_t made = {0};
    lode_status_t status = read_file(file, tokenizer, &made);
    if (status != LODE_OK)
        lode_prompts_free(&made);
    else
        *prompts = made;
    return status;
}

/* ------------------------------------------------------ any other checkpoint */

/* Texts of one manner, as talk.json would have them. */
typedef struct plain_prompts {
    const char *prompt, *first, *next, *end, *thinker_begin, *writer_begin, *writer_alone, *question;
    const char *thinker_stops[3], *writer_stops[3], *thinker_paragraphs[3], *writer_paragraphs[3], *sentences[8],
        *yes[5], *no[5]; /* each ends with a NULL */
} plain_prompts_t;

#define SENTENCES                                     \
    {                                                 \
        ". ", "? ", "! ", ".\n", "\n", "\xe3\x80\x82" \
    }

/* Checkpoints of chats that write their thoughts between <think> and </think>. */
static const plain_prompts_t chat = {
    .prompt =
        "<|im_start|>system\n"
        "You think and speak at the same time: your thoughts go on while your answer is being spoken, and both can "
        "see each other. Think in short paragraphs, with a blank line after each. Speak in short paragraphs too, "
        "only of what the thoughts have settled so far, and never say a thing twice. What you are told may be "
        "added to while you think; then the thoughts take it in.<|im_end|>\n",
    .first = "<|im_start|>user\n",
    .next = "<|im_start|>user\n",
    .end = "<|im_end|>\n",
    .thinker_begin = "<|im_start|>assistant\n<think>\n",
    .writer_begin = "</think>\n\n",
    .writer_alone = "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    .question = "\n\n[Do the thoughts so far settle what to say next, beyond what was said? yes or no:",
    .thinker_stops = {"</think>", "<|im_end|>"},
    .writer_stops = {"<|im_end|>"},
    .thinker_paragraphs = {"\n\n"},
    .writer_paragraphs = {"\n\n"},
    .sentences = SENTENCES,
    .yes = {" yes", "yes", " Yes", "Yes"},
    .no = {" no", "no", " No", "No"}};

/* Everybody else. */
static const plain_prompts_t plain = {.prompt = "",
                                      .first = "Request: ",
                                      .next = "Also: ",
                                      .end = "\n",
                                      .thinker_begin = "Thoughts:",
                                      .writer_begin = "\nAnswer:",
                                      .writer_alone = "Answer:",
                                      .question = "\n(Can more of the answer be said now? yes or no:",
                                      .thinker_stops = {"\nAnswer", "\n\n"},
                                      .writer_stops = {"\n\n", "\nRequest"},
                                      .thinker_paragraphs = {"\n"},
                                      .writer_paragraphs = {"\n"},
                                      .sentences = SENTENCES,
                                      .yes = {" yes", "yes", " Yes", "Yes"},
                                      .no = {" no", "no", " No", "No"}};

static lode_status_t copy_texts(const char *key, const char *const *from, lode_texts_t *texts)
{
    for (; *from; from++)
        LODE_TRY(add_text(key, *from, texts));
    return LODE_OK;
}

static lode_status_t fill_in(const plain_prompts_t *from, lode_prompts_t *prompts)
{
    prompts->probe_every = PROBE_EVERY;
    LODE_TRY(copy(from->prompt, &prompts->prompt));
    LODE_TRY(copy(from->first, &prompts->input_first));
    LODE_TRY(copy(from->next, &prompts->input_next));
    LODE_TRY(copy(from->end, &prompts->input_end));
    LODE_TRY(copy(from->thinker_begin, &prompts->thinker_begin));
    LODE_TRY(copy(from->writer_begin, &prompts->writer_begin));
    LODE_TRY(copy(from->writer_alone, &prompts->writer_alone));
    LODE_TRY(copy(from->question, &prompts->control_question));
    LODE_TRY(copy_texts("thinker.stop", from->thinker_stops, &prompts->thinker_stops));
    LODE_TRY(copy_texts("writer.stop", from->writer_stops, &prompts->writer_stops));
    LODE_TRY(copy_texts("thinker.paragraph", from->thinker_paragraphs, &prompts->thinker_paragraphs));
    LODE_TRY(copy_texts("writer.paragraph", from->writer_paragraphs, &prompts->writer_paragraphs));
    LODE_TRY(copy_texts("thinker.sentence", from->sentences, &prompts->sentences));
    LODE_TRY(copy_texts("control.yes", from->yes, &prompts->yes));
    return copy_texts("control.no", from->no, &prompts->no);
}

/* A text ends, whoever writes it, with what the folder's files say. */
static lode_status_t add_ends(const char *folder, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    lode_manner_t ends = {0};
    lode_status_t status = lode_manner_add_ends(folder, tokenizer, &ends);
    for (uint32_t i = 0; status == LODE_OK && i < ends.stop_count; i++) {
        status = add_text("thinker.stop", ends.stops[i], &prompts->thinker_stops);
        if (status == LODE_OK)
            status = add_text("writer.stop", ends.stops[i], &prompts->writer_stops);
    }
    lode_manner_free(&ends);
    return status;
}

static lode_status_t use_default(const char *folder, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    static const char *const names[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"};
    bool chats = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        chats = chats && lode_tokenizer_special(tokenizer, names[i]) >= 0;
    LODE_TRY(fill_in(chats ? &chat : &plain, prompts));
    return folder ? add_ends(folder, tokenizer, prompts) : LODE_OK;
}

/* --------------------------------------------------------------------- open */

static lode_status_t open_file(const char *path, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    json_t *file;
    LODE_TRY(lode_read_json(path, FILE_MAX, &file));
    lode_status_t status = lode_prompts_read(file, tokenizer, prompts);
    if (status != LODE_OK)
        lode_fail_within(status, "%s: ", path);
    json_decref(file);
    return status;
}

static lode_status_t open_path(const char *path, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    char inside[4096];
    struct stat about;
    if (!path)
        return use_default(NULL, tokenizer, prompts);
    if (stat(path, &about) != 0)
        return lode_fail(LODE_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(about.st_mode))
        return open_file(path, tokenizer, prompts);
    if (snprintf(inside, sizeof inside, "%s/talk.json", path) >= (int)sizeof inside)
        return lode_fail(LODE_ERR_INVALID, "a path of %zu bytes is too long", strlen(path));
    if (stat(inside, &about) != 0 && errno == ENOENT)
        return use_default(path, tokenizer, prompts);
    return open_file(inside, tokenizer, prompts);
}

lode_status_t lode_prompts_open(const char *path, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    lode_prompts_t made = {0};
    lode_status_t status = open_path(path, tokenizer, &made);
    if (status != LODE_OK)
        lode_prompts_free(&made);
    else
        *prompts = made;
    return status;
}
