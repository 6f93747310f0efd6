/* SPDX-License-Identifier: Apache-2.0 */
/* talk.json, what stands in for it, ends of paragraphs, and what a probe answers. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader/talk_inside.h"
#include "tests/unit/reader_family.h"

TestSuite(talk_prompts, .timeout = 60);
TestSuite(talk_words, .timeout = 60);

/* -------------------------------------------------------------------- files */

static char folder[] = "/tmp/lode-prompts-XXXXXX";
static const char *const names[] = {"talk.json", "tokenizer.json", "generation_config.json"};

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void make_folder(void)
{
    cr_assert(mkdtemp(folder) != NULL);
}

static void remove_folder(void)
{
    for (int i = 0; i < 3; i++)
        unlink(path_of(names[i]));
    rmdir(folder);
}

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(path_of(name), "wb");
    cr_assert(file && fwrite(text, 1, strlen(text), file) == strlen(text) && fclose(file) == 0);
}

/* A file that is fine. */
static json_t *good(void)
{
    json_error_t error;
    json_t *file = json_loads(
        "{\"version\": 1, \"prompt\": \"Think.\", \"input\": {\"first\": \"<|begin|>\", \"next\": \"+\", \"end\": "
        "\";\"},"
        "\"thinker\": {\"begin\": \"T\", \"stop\": [\"<|end|>\", \"so\"], \"paragraph\": [\"\\n\\n\"], \"sentence\": "
        "[\".\"]},"
        "\"writer\": {\"begin\": \"W\", \"alone\": \"A\", \"stop\": [\"<|end|>\"], \"paragraph\": [\"!\", \"?\"]},"
        "\"control\": {\"question\": \"now?\", \"yes\": [\"y\"], \"no\": [\"n\"], \"every\": 7}}",
        0, &error);
    cr_assert(file, "%s", error.text);
    return file;
}

static lode_status_t open_with(json_t *file, lode_tokenizer_h tokenizer, lode_prompts_t *prompts)
{
    cr_assert(json_dump_file(file, path_of("talk.json"), 0) == 0);
    json_decref(file);
    return lode_prompts_open(folder, tokenizer, prompts);
}

Test(talk_prompts, what_talk_json_says, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_prompts_t p;
    cr_assert(open_with(good(), tokenizer, &p) == LODE_OK, "%s", lode_error_message());
    cr_expect(strcmp(p.prompt, "Think.") == 0 && strcmp(p.input_first, "<|begin|>") == 0);
    cr_expect(strcmp(p.input_next, "+") == 0 && strcmp(p.input_end, ";") == 0);
    cr_expect(strcmp(p.thinker_begin, "T") == 0 && strcmp(p.writer_begin, "W") == 0);
    cr_expect(strcmp(p.writer_alone, "A") == 0 && strcmp(p.control_question, "now?") == 0);
    cr_expect(p.thinker_stops.count == 2 && strcmp(p.thinker_stops.texts[1], "so") == 0);
    cr_expect(p.writer_stops.count == 1 && p.thinker_paragraphs.count == 1 && p.sentences.count == 1);
    cr_expect(p.writer_paragraphs.count == 2 && strcmp(p.writer_paragraphs.texts[0], "!") == 0);
    cr_expect(p.yes.count == 1 && p.no.count == 1 && p.probe_every == 7);
    lode_prompts_free(&p);
    cr_expect(p.prompt == NULL && p.yes.count == 0);
    cr_assert(lode_prompts_open(path_of("talk.json"), tokenizer, &p) == LODE_OK); /* by its own name */
    lode_prompts_free(&p);
    json_t *file = good(); /* what may be left out */
    json_object_del(file, "prompt");
    json_object_del(json_object_get(file, "control"), "every");
    json_object_del(json_object_get(file, "control"), "question");
    json_object_del(json_object_get(file, "thinker"), "paragraph");
    cr_assert(open_with(file, tokenizer, &p) == LODE_OK, "%s", lode_error_message());
    cr_expect(*p.prompt == 0 && *p.control_question == 0 && p.probe_every == 20 && !p.thinker_paragraphs.count);
    lode_prompts_free(&p);
    lode_tokenizer_close(&tokenizer);
}

/* A part's key (NULL: of the file) with another value (NULL: without it). */
static void expect_refused(const char *part, const char *key, json_t *value, lode_status_t status, const char *says)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_prompts_t p;
    json_t *file = good(), *object = part ? json_object_get(file, part) : file;
    if (value)
        json_object_set_new(object, key, value);
    else
        json_object_del(object, key);
    lode_status_t got = open_with(file, tokenizer, &p);
    cr_assert(got == status, "%s: %s, not %s", key, lode_status_string(got), lode_status_string(status));
    cr_assert(strstr(lode_error_message(), says), "%s", lode_error_message());
    cr_assert(strstr(lode_error_message(), folder), "%s", lode_error_message());
    lode_tokenizer_close(&tokenizer);
}

Test(talk_prompts, what_is_wrong_is_refused_by_name, .init = make_folder, .fini = remove_folder)
{
    const lode_status_t wrong = LODE_ERR_FORMAT;
    expect_refused(NULL, "version", json_integer(2), LODE_ERR_UNSUPPORTED, "\"version\"");
    expect_refused(NULL, "version", NULL, LODE_ERR_UNSUPPORTED, "\"version\"");
    expect_refused(NULL, "wirter", json_object(), wrong, "is \"writer\" meant?");
    expect_refused("thinker", "paragraphs", json_array(), wrong, "is \"paragraph\" meant?");
    expect_refused("control", "evry", json_integer(3), wrong, "\"control\": it has \"evry\"");
    expect_refused(NULL, "input", NULL, wrong, "\"input\" is missing");
    expect_refused(NULL, "writer", json_string("W"), wrong, "\"writer\" is missing or not an object");
    expect_refused(NULL, "prompt", json_integer(3), wrong, "\"prompt\" is not a text");
    expect_refused(NULL, "prompt", json_string("a <|nope|> b"), wrong, "<|nope|>");
    expect_refused("input", "end", json_array(), wrong, "\"input.end\" is not a text");
    expect_refused("thinker", "stop", json_string("x"), wrong, "\"thinker.stop\" is not a list of texts");
    expect_refused("thinker", "stop", json_pack("[i]", 1), wrong, "\"thinker.stop\" is not a list of texts");
    expect_refused("thinker", "stop", json_array(), wrong, "\"thinker.stop\" has no text");
    expect_refused("writer", "stop", NULL, wrong, "\"writer.stop\" has no text");
    expect_refused("writer", "stop", json_pack("[s]", "<|stop|>"), wrong, "<|stop|>");
    expect_refused("writer", "paragraph", json_pack("[s]", ""), wrong, "\"writer.paragraph\" has a text of 0 bytes");
    expect_refused("control", "yes", NULL, wrong, "\"control.yes\"");
    expect_refused("control", "no", json_array(), wrong, "\"control.no\"");
    expect_refused("control", "every", json_integer(0), wrong, "\"control.every\"");
    expect_refused("control", "every", json_string("3"), wrong, "\"control.every\"");
    char long_text[400] = "";
    memset(long_text, 'x', sizeof long_text - 1);
    expect_refused("control", "no", json_pack("[s]", long_text), wrong, "399 bytes");
    json_t *many = json_array();
    for (int i = 0; i < 100; i++)
        json_array_append_new(many, json_string("x"));
    expect_refused("control", "yes", many, LODE_ERR_UNSUPPORTED, "more than 64");
}

Test(talk_prompts, files_that_are_none_are_refused, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_prompts_t p;
    cr_assert(lode_prompts_open(path_of("absent.json"), tokenizer, &p) == LODE_ERR_IO);
    cr_assert(strstr(lode_error_message(), "absent.json"));
    static const char *const torn[] = {"", "{", "[]", "{\"version\": 1", "null", "{\"version\": 1} {"};
    for (size_t i = 0; i < sizeof torn / sizeof *torn; i++) {
        write_text("talk.json", torn[i]);
        cr_assert(lode_prompts_open(folder, tokenizer, &p) == LODE_ERR_FORMAT, "%s", torn[i]);
        cr_assert(strstr(lode_error_message(), "talk.json"), "%s", lode_error_message());
    }
    lode_tokenizer_close(&tokenizer);
}

/* ----------------------------------------------------------------- defaults */

static bool has(const lode_texts_t *texts, const char *text)
{
    for (uint32_t i = 0; i < texts->count; i++)
        if (strcmp(texts->texts[i], text) == 0)
            return true;
    return false;
}

Test(talk_prompts, a_folder_without_one_has_plain_prompts, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_prompts_t p, q;
    write_text("generation_config.json", "{\"eos_token_id\": 379}");
    cr_assert(lode_prompts_open(folder, tokenizer, &p) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_prompts_open(NULL, tokenizer, &q) == LODE_OK, "%s", lode_error_message());
    cr_expect(!strstr(p.input_first, "<|") && !strstr(p.thinker_begin, "<think>"));
    cr_expect(strcmp(p.thinker_begin, q.thinker_begin) == 0);
    cr_expect(has(&p.writer_stops, "<|end|>") && has(&p.thinker_stops, "<|end|>") && !has(&q.writer_stops, "<|end|>"));
    cr_expect(p.probe_every && p.yes.count && p.no.count && p.sentences.count);
    lode_prompts_free(&p);
    lode_prompts_free(&q);
    lode_tokenizer_close(&tokenizer);
}

static lode_tokenizer_h open_chat(void)
{
    static const char *const added[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"};
    lode_tokenizer_h tokenizer;
    json_error_t error;
    json_t *file = json_load_file(LODE_TEST_READER_VECTORS "/qwen/tokenizer.json", 0, &error);
    for (int i = 0; i < 4; i++)
        json_array_append_new(json_object_get(file, "added_tokens"),
                              json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", 378 + i, "content", added[i],
                                        "special", 1, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0));
    cr_assert(json_dump_file(file, path_of("tokenizer.json"), 0) == 0);
    json_decref(file);
    cr_assert(lode_tokenizer_open(folder, &tokenizer) == LODE_OK, "%s", lode_error_message());
    return tokenizer;
}

Test(talk_prompts, chats_think_between_their_own_tokens, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_chat();
    lode_prompts_t p;
    lode_tokens_t tokens = {0};
    cr_assert(lode_prompts_open(NULL, tokenizer, &p) == LODE_OK, "%s", lode_error_message());
    cr_expect(has(&p.thinker_stops, "</think>") && has(&p.writer_stops, "<|im_end|>"));
    cr_assert(lode_tokenizer_encode(tokenizer, p.writer_begin, strlen(p.writer_begin), true, &tokens) == LODE_OK);
    cr_expect(tokens.ids[0] == 381, "%u", tokens.ids[0]);
    tokens.count = 0;
    cr_assert(lode_tokenizer_encode(tokenizer, p.thinker_begin, strlen(p.thinker_begin), true, &tokens) == LODE_OK);
    cr_expect(tokens.ids[0] == 378 && tokens.ids[tokens.count - 2] == 380, "%u", tokens.ids[tokens.count - 2]);
    lode_tokens_free(&tokens);
    lode_prompts_free(&p);
    lode_tokenizer_close(&tokenizer);
}

/* The shipped model was trained on "Documents 3 7: 3 Ada; 7 Bo↵[{"document": …}, {…}]<|end|>", cut at these places. */
Test(talk_prompts, the_shipped_models_are_the_tokens_it_was_trained_on)
{
    static const char *const pieces[] = {"Documents",           " 3", ";", "\n[", "{\"document\": \"", "3", "\"}",
                                         ", {\"document\": \"", "]"};
    lode_tokenizer_h tokenizer;
    lode_prompts_t p;
    lode_tokens_t at[9] = {0}, begin = {0};
    lode_talk_answers_t yes = {0}, no = {0};
    cr_assert(lode_tokenizer_open(LODE_SHIPPED_MODEL, &tokenizer) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_prompts_open(LODE_SHIPPED_MODEL, tokenizer, &p) == LODE_OK, "%s", lode_error_message());
    for (int i = 0; i < 9; i++)
        cr_assert(lode_tokenizer_encode(tokenizer, pieces[i], strlen(pieces[i]), false, &at[i]) == LODE_OK);
    cr_assert(lode_tokenizer_encode(tokenizer, p.writer_begin, strlen(p.writer_begin), true, &begin) == LODE_OK);
    cr_assert(begin.count == at[3].count && memcmp(begin.ids, at[3].ids, begin.count * sizeof *begin.ids) == 0);
    size_t bytes;
    const char *stop = lode_tokenizer_bytes(tokenizer, at[3].ids[0], &bytes); /* the thinker's is one token */
    cr_assert(has(&p.thinker_stops, stop) && strlen(stop) == bytes);
    cr_assert(lode_answers_of(tokenizer, &p.yes, &yes) == LODE_OK && lode_answers_of(tokenizer, &p.no, &no) == LODE_OK);
    cr_assert(yes.count == 2 && yes.ids[0] == at[4].ids[0] && yes.ids[1] == at[7].ids[0]);
    cr_assert(no.count == 2 && no.ids[0] == at[8].ids[0] &&
              (int64_t)no.ids[1] == lode_tokenizer_special(tokenizer, "<|end|>"));
    lode_talk_tail_t tail = {0};
    const char *semicolon = lode_tokenizer_bytes(tokenizer, at[2].ids[0], &bytes);
    lode_tail_add(&tail, "Documents 3: 3 Ada", 18);
    cr_assert(at[2].count == 1 && lode_tail_ends(&tail, &p.thinker_paragraphs, semicolon, bytes));
    cr_assert(lode_tail_ends(&tail, &p.writer_paragraphs, "\"}", 2));
    for (int i = 0; i < 9; i++)
        lode_tokens_free(&at[i]);
    lode_tokens_free(&begin);
    lode_tokens_free(&yes);
    lode_tokens_free(&no);
    lode_prompts_free(&p);
    lode_tokenizer_close(&tokenizer);
}

/* -------------------------------------------------------------------- words */

Test(talk_words, paragraphs_end_with_a_token_or_before_it)
{
    static char *both[] = {"\n\n", "END."};
    const lode_texts_t texts = {both, 2};
    lode_talk_tail_t tail = {0};
    cr_assert(!lode_tail_ends(&tail, &texts, "a", 1) && !lode_tail_ends(&tail, &texts, "", 0));
    cr_assert(lode_tail_ends(&tail, &texts, "a\n\n", 3));
    cr_assert(!lode_tail_ends(&tail, &texts, "\n\na", 3)); /* nothing was before it */
    lode_tail_add(&tail, "a", 1);
    cr_assert(lode_tail_ends(&tail, &texts, "\n\na", 3) && lode_tail_ends(&tail, &texts, "\n\n", 2));
    cr_assert(!lode_tail_ends(&tail, &texts, "\n", 1));
    lode_tail_add(&tail, "\n", 1);
    cr_assert(lode_tail_ends(&tail, &texts, "\n", 1) && !lode_tail_ends(&tail, &texts, "a", 1));
    lode_tail_add(&tail, "EN", 2);
    cr_assert(!lode_tail_ends(&tail, &texts, "D", 1));
    lode_tail_add(&tail, "D", 1);
    cr_assert(lode_tail_ends(&tail, &texts, ".", 1) && !lode_tail_ends(&tail, &texts, ". ", 2));
    cr_assert(!lode_tail_ends(&tail, &texts, "", 0));
    const lode_texts_t none = {0};
    cr_assert(!lode_tail_ends(&tail, &none, ".", 1));
}

/* However tokens cut a text, the end is seen with the token that completes it; and long texts push old ones out. */
Test(talk_words, a_tail_keeps_the_last_bytes)
{
    static char *one[] = {"abcdefghij"};
    const lode_texts_t texts = {one, 1};
    for (uint64_t seed = 0; seed < 200; seed++) {
        lode_talk_tail_t tail = {0};
        char text[2048];
        size_t bytes = 600 + lode_mix(seed, 1) % 900;
        memset(text, '.', bytes);
        memcpy(text + bytes - 10, one[0], 10);
        for (size_t at = 0, width; at < bytes; at += width) {
            width = 1 + lode_mix(seed, at + 2) % (seed % 7 == 0 ? 700 : 6);
            width = width > bytes - at ? bytes - at : width;
            cr_assert(lode_tail_ends(&tail, &texts, text + at, width) == (at + width == bytes), "seed %d at %zu",
                      (int)seed, at);
            lode_tail_add(&tail, text + at, width);
        }
    }
}

Test(talk_words, answers_are_their_distinct_first_tokens)
{
    static char *several[] = {"the list", "the price", "price"};
    const lode_texts_t texts = {several, 3};
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_talk_answers_t answers = {0};
    lode_tokens_t the = {0};
    cr_assert(lode_answers_of(tokenizer, &texts, &answers) == LODE_OK);
    cr_assert(lode_tokenizer_encode(tokenizer, "the list", 8, true, &the) == LODE_OK);
    cr_assert(answers.count == 2 && answers.ids[0] == the.ids[0] && answers.ids[1] != the.ids[0]);
    float *logits = calloc(400, sizeof *logits);
    cr_assert(fabs(lode_answers_share(&answers, logits, 400) - 2.0 / 400) < 1e-9);
    logits[answers.ids[0]] = logits[answers.ids[1]] = 100;
    cr_assert(fabs(lode_answers_share(&answers, logits, 400) - 1) < 1e-9);
    logits[399] = 100;
    cr_assert(fabs(lode_answers_share(&answers, logits, 400) - 2.0 / 3) < 1e-9);
    free(logits);
    lode_tokens_free(&answers);
    lode_tokens_free(&the);
    lode_tokenizer_close(&tokenizer);
}
