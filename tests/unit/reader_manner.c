/* SPDX-License-Identifier: Apache-2.0 */
/* reader.json, templates, pieces of long documents, and how an answer is written down. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader/manner_inside.h"
#include "reader/utf8.h"
#include "tests/unit/reader_family.h"

TestSuite(manner, .timeout = 60);
TestSuite(scribe, .timeout = 60);

/* ------------------------------------------------------------------ reader.json */

static char folder[] = "/tmp/lode-manner-XXXXXX";

static void write_file(const char *name, const char *text)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    cr_assert(file && fwrite(text, 1, strlen(text), file) == strlen(text) && fclose(file) == 0);
}

static void make_folder(void)
{
    cr_assert(mkdtemp(folder) != NULL);
}

static void remove_folder(void)
{
    static const char *const names[] = {"reader.json", "config.json", "generation_config.json"};
    char path[64];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static lode_manner_t open_manner(lode_tokenizer_h tokenizer, uint32_t context)
{
    lode_manner_t manner;
    cr_assert(lode_manner_open(folder, tokenizer, context, &manner) == LODE_OK, "%s", lode_error_message());
    return manner;
}

#define READER                                                                                                 \
    "{\"version\": 1, \"document\": \"<|begin|>{text}<|end|>\", \"question\": \"<|tool|>{question}<|end|>\", " \
    "\"stop\": [\"<|end|>\", \"\\n\\n\"], \"positions\": \"shared\", \"range\": 64, \"heads\": [[2, 0], [3, 1]]}"

Test(manner, what_reader_json_says, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    write_file("reader.json", READER);
    lode_manner_t manner = open_manner(tokenizer, 128);
    cr_expect(strcmp(manner.document[0], "<|begin|>") == 0 && strcmp(manner.document[1], "<|end|>") == 0);
    cr_expect(strcmp(manner.question[0], "<|tool|>") == 0 && strcmp(manner.question[1], "<|end|>") == 0);
    cr_expect(manner.stop_count == 2 && strcmp(manner.stops[0], "<|end|>") == 0 &&
              strcmp(manner.stops[1], "\n\n") == 0);
    cr_expect(manner.shared_positions && manner.range == 64);
    cr_expect(manner.head_count == 2 && manner.heads[0][0] == 2 && manner.heads[0][1] == 0 && manner.heads[1][0] == 3 &&
              manner.heads[1][1] == 1);
    lode_manner_free(&manner);
    cr_expect(manner.stops == NULL && manner.document[0] == NULL);
    lode_tokenizer_close(&tokenizer);
}

Test(manner, any_checkpoint_without_reader_json, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h llama3 = open_family("llama3"), qwen = open_family("qwen");
    char config[64];
    lode_manner_t manner = open_manner(qwen, 99);
    cr_expect(strcmp(manner.document[0], "") == 0 && strcmp(manner.document[1], "\n\n") == 0);
    cr_expect(strcmp(manner.question[0], "") == 0 && strcmp(manner.question[1], "\nAnswer:") == 0);
    cr_expect(manner.stop_count == 1 && strcmp(manner.stops[0], "\n") == 0);
    cr_expect(manner.shared_positions == false && manner.range == 99 && manner.head_count == 0);
    lode_manner_free(&manner);

    snprintf(config, sizeof config, "{\"eos_token_id\": %d}", (int)lode_tokenizer_special(llama3, "<|end|>"));
    write_file("config.json", config);
    snprintf(config, sizeof config, "{\"eos_token_id\": [%d, %d, 99999999, \"x\"]}",
             (int)lode_tokenizer_special(llama3, "<|end|>"), (int)lode_tokenizer_special(llama3, "<|tool|>"));
    write_file("generation_config.json", config);
    manner = open_manner(llama3, 99);
    cr_expect(strcmp(manner.document[0], "<|begin|>") == 0);
    cr_expect(manner.stop_count == 3 && strcmp(manner.stops[1], "<|end|>") == 0 &&
              strcmp(manner.stops[2], "<|tool|>") == 0);
    lode_manner_free(&manner);
    lode_tokenizer_close(&llama3);
    lode_tokenizer_close(&qwen);
}

Test(manner, a_stop_text_with_a_zero_byte_is_refused, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_tokens_t zero = {0};
    lode_manner_t manner;
    char config[64];
    cr_assert(lode_tokenizer_encode(tokenizer, "", 1, false, &zero) == LODE_OK && zero.count == 1);
    snprintf(config, sizeof config, "{\"eos_token_id\": %d}", (int)zero.ids[0]);
    write_file("config.json", config);
    cr_expect(lode_manner_open(folder, tokenizer, 99, &manner) == LODE_ERR_UNSUPPORTED);
    cr_expect(strstr(lode_error_message(), "zero byte") != NULL, "%s", lode_error_message());
    lode_tokens_free(&zero);
    lode_tokenizer_close(&tokenizer);
}

static const struct wrong_manner {
    const char *json;
    lode_status_t status;
    const char *says;
} wrong_manners[] = {
    {"", LODE_ERR_FORMAT, "line 1"},
    {"{\"version\": 1", LODE_ERR_FORMAT, "line 1"},
    {"[]", LODE_ERR_FORMAT, "not a JSON object"},
    {"{}", LODE_ERR_UNSUPPORTED, "version"},
    {"{\"version\": 2}", LODE_ERR_UNSUPPORTED, "version"},
    {"{\"version\": 1, \"documents\": \"{text}\"}", LODE_ERR_FORMAT, "is \"document\" meant?"},
    {"{\"version\": 1, \"xyzzy\": 1}", LODE_ERR_FORMAT, "\"xyzzy\", which is not known here"},
    {"{\"version\": 1, \"document\": 5}", LODE_ERR_FORMAT, "\"document\" is not a text"},
    {"{\"version\": 1, \"document\": \"{question}\"}", LODE_ERR_FORMAT, "{text}"},
    {"{\"version\": 1, \"document\": \"{text}{text}\"}", LODE_ERR_FORMAT, "{text}"},
    {"{\"version\": 1, \"question\": \"{text}\"}", LODE_ERR_FORMAT, "{question}"},
    {"{\"version\": 1, \"question\": \"<|aks|>{question}\"}", LODE_ERR_FORMAT, "\"<|aks|>\", which is no token"},
    {"{\"version\": 1, \"stop\": \"x\"}", LODE_ERR_FORMAT, "\"stop\""},
    {"{\"version\": 1, \"stop\": [1]}", LODE_ERR_FORMAT, "\"stop\""},
    {"{\"version\": 1, \"stop\": [\"\"]}", LODE_ERR_FORMAT, "0 bytes"},
    {"{\"version\": 1, \"stop\": [\"<|stop|>\"]}", LODE_ERR_FORMAT, "<|stop|>"},
    {"{\"version\": 1, \"stop\": [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\","
     "\"f\",\"g\",\"h\"]}",
     LODE_ERR_UNSUPPORTED, "more than 16"},
    {"{\"version\": 1, \"positions\": \"share\"}", LODE_ERR_FORMAT, "\"positions\""},
    {"{\"version\": 1, \"positions\": 1}", LODE_ERR_FORMAT, "\"positions\""},
    {"{\"version\": 1, \"heads\": 3}", LODE_ERR_FORMAT, "\"heads\""},
    {"{\"version\": 1, \"heads\": [[1, 2], [3]]}", LODE_ERR_FORMAT, "\"heads\""},
    {"{\"version\": 1, \"heads\": [[1, -2]]}", LODE_ERR_FORMAT, "\"heads\""},
    {"{\"version\": 1, \"range\": 0}", LODE_ERR_FORMAT, "\"range\""},
    {"{\"version\": 1, \"range\": 129}", LODE_ERR_FORMAT, "from 1 to 128"},
    {"{\"version\": 1, \"range\": 12}", LODE_ERR_FORMAT, "too few"},
};

Test(manner, what_is_wrong_is_named, .init = make_folder, .fini = remove_folder)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    for (size_t i = 0; i < sizeof wrong_manners / sizeof *wrong_manners; i++) {
        const struct wrong_manner *wrong = &wrong_manners[i];
        lode_manner_t manner = {0};
        write_file("reader.json", wrong->json);
        lode_status_t status = lode_manner_open(folder, tokenizer, 128, &manner);
        cr_expect(status == wrong->status, "%s: %s", wrong->json, lode_error_message());
        cr_expect(strstr(lode_error_message(), wrong->says) && strstr(lode_error_message(), "/reader.json"), "%s: %s",
                  wrong->json, lode_error_message());
        cr_expect(manner.stops == NULL && manner.document[0] == NULL && manner.question[0] == NULL);
    }
    lode_tokenizer_close(&tokenizer);
}

/* ------------------------------------------------------------------- templates */

static char open_angle[] = "<|begin|>", close_angle[] = "<|end|>", ask_mark[] = "<|tool|>", nothing[] = "";

static lode_manner_t plain_manner(uint32_t range)
{
    return (lode_manner_t){.document = {open_angle, close_angle}, .question = {ask_mark, nothing}, .range = range};
}

Test(manner, names_in_texts_are_texts)
{
    static const char text[] = "a <|end|> b <|tool|>";
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_manner_t manner = plain_manner(64);
    lode_tokens_t whole = {0}, question = {0}, inner = {0};
    size_t *ends = NULL, pieces = 0;
    cr_assert(lode_tokenizer_encode(tokenizer, text, sizeof text - 1, false, &inner) == LODE_OK);
    cr_assert(lode_manner_document(&manner, tokenizer, text, sizeof text - 1, &whole, &ends, &pieces) == LODE_OK);
    cr_assert(pieces == 1 && ends[0] == whole.count && whole.count == inner.count + 2);
    cr_assert(memcmp(whole.ids + 1, inner.ids, inner.count * sizeof *inner.ids) == 0);
    cr_assert(whole.ids[0] == lode_tokenizer_special(tokenizer, "<|begin|>"));
    cr_assert(whole.ids[whole.count - 1] == lode_tokenizer_special(tokenizer, "<|end|>"));
    cr_assert(lode_manner_question(&manner, tokenizer, text, sizeof text - 1, &question) == LODE_OK);
    cr_assert(question.count == inner.count + 1);
    cr_assert(question.ids[0] == lode_tokenizer_special(tokenizer, "<|tool|>"));
    free(ends);
    lode_tokens_free(&whole);
    lode_tokens_free(&question);
    lode_tokens_free(&inner);
    lode_tokenizer_close(&tokenizer);
}

Test(manner, a_question_beyond_the_range_and_texts_that_are_no_utf8_change_nothing)
{
    char text[400];
    lode_tokenizer_h tokenizer = open_family("qwen");
    lode_manner_t manner = plain_manner(64);
    manner.question[0] = manner.document[0] = nothing;
    lode_tokens_t tokens = {0};
    size_t *ends = NULL, pieces = 0;
    memset(text, '7', sizeof text);
    cr_assert(lode_manner_question(&manner, tokenizer, text, 64, &tokens) == LODE_OK && tokens.count == 64);
    cr_assert(lode_manner_question(&manner, tokenizer, text, 65, &tokens) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "65 tokens") && strstr(lode_error_message(), "is 64"));
    text[7] = (char)0xff;
    cr_assert(lode_manner_question(&manner, tokenizer, text, 20, &tokens) == LODE_ERR_FORMAT);
    cr_assert(lode_manner_document(&manner, tokenizer, text, 20, &tokens, &ends, &pieces) == LODE_ERR_FORMAT);
    cr_assert(strstr(lode_error_message(), "byte 7") && ends == NULL && pieces == 0 && tokens.count == 64);
    lode_tokens_free(&tokens);
    lode_tokenizer_close(&tokenizer);
}

Test(manner, an_empty_document_is_its_template)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_manner_t manner = plain_manner(64);
    lode_tokens_t tokens = {0};
    size_t *ends = NULL, pieces = 0;
    cr_assert(lode_manner_document(&manner, tokenizer, "", 0, &tokens, &ends, &pieces) == LODE_OK);
    cr_assert(pieces == 1 && ends[0] == 2 && tokens.count == 2);
    free(ends);
    lode_tokens_free(&tokens);
    lode_tokenizer_close(&tokenizer);
}

/* ---------------------------------------------------------------- pieces */

typedef struct cut {
    lode_tokens_t tokens;
    size_t *ends, pieces;
    char *text; /* of the piece asked for last */
} cut_t;

static cut_t cut(lode_tokenizer_h tokenizer, const lode_manner_t *manner, const char *text)
{
    cut_t made = {0};
    cr_assert(lode_manner_document(manner, tokenizer, text, strlen(text), &made.tokens, &made.ends, &made.pieces) ==
                  LODE_OK,
              "%s", lode_error_message());
    made.text = malloc(strlen(text) + 64);
    return made;
}

/* The text of a piece without its template, which is one token on either side. */
static const char *piece_text(lode_tokenizer_h tokenizer, const cut_t *cut, size_t piece)
{
    size_t at = 0, bytes = 0;
    for (size_t i = (piece ? cut->ends[piece - 1] : 0) + 1; i < cut->ends[piece] - 1; i++) {
        const char *part = lode_tokenizer_bytes(tokenizer, cut->tokens.ids[i], &bytes);
        memcpy(cut->text + at, part, bytes);
        at += bytes;
    }
    cut->text[at] = 0;
    return cut->text;
}

static void free_cut(cut_t *cut)
{
    lode_tokens_free(&cut->tokens);
    free(cut->ends);
    free(cut->text);
}

/* Within the range, each with its template, whole characters, and together the text. */
static void expect_whole(lode_tokenizer_h tokenizer, const lode_manner_t *manner, const cut_t *cut, const char *text)
{
    size_t before = 0, at = 0;
    for (size_t i = 0; i < cut->pieces; before = cut->ends[i++]) {
        cr_assert(cut->ends[i] > before + 2 && cut->ends[i] - before <= manner->range);
        cr_assert(cut->tokens.ids[before] == lode_tokenizer_special(tokenizer, "<|begin|>"));
        cr_assert(cut->tokens.ids[cut->ends[i] - 1] == lode_tokenizer_special(tokenizer, "<|end|>"));
        const char *part = piece_text(tokenizer, cut, i);
        cr_assert(lode_utf8_valid(part, strlen(part)) == strlen(part));
        cr_assert(strncmp(text + at, part, strlen(part)) == 0, "piece %zu: \"%s\"", i, part);
        at += strlen(part);
    }
    cr_assert(before == cut->tokens.count && at == strlen(text));
}

static void expect_ends(const char *text, const char *first_piece)
{
    lode_tokenizer_h tokenizer = open_family("llama3");
    lode_manner_t manner = plain_manner(42); /* 40 for the text; the last quarter begins behind 30 */
    cut_t made = cut(tokenizer, &manner, text);
    expect_whole(tokenizer, &manner, &made, text);
    cr_expect(strcmp(piece_text(tokenizer, &made, 0), first_piece) == 0, "\"%s\"", piece_text(tokenizer, &made, 0));
    free_cut(&made);
    lode_tokenizer_close(&tokenizer);
}

/* z, q and x merge with nothing: a token each. */
#define TEN "zqxzqxzqxz"
#define THIRTY TEN TEN TEN
#define FORTY THIRTY TEN

Test(manner, pieces_end_with_a_paragraph_line_sentence_or_word)
{
    expect_ends(THIRTY "zz\n\nzz\nzz. zz zz" FORTY, THIRTY "zz\n\n");
    expect_ends(THIRTY "zz\nzz. zz zz zz" FORTY, THIRTY "zz\n");
    expect_ends(THIRTY "zz. zz zz zz zz" FORTY, THIRTY "zz.");
    expect_ends(THIRTY "zz?) zz zz zz zz" FORTY, THIRTY "zz?)");
    expect_ends(THIRTY "z.z z,z zzzzzzzz" FORTY, THIRTY "z.z z,z");
    expect_ends(FORTY "z\n\n", FORTY);
    expect_ends("zz\n\nzz. " FORTY, "zz\n\nzz. " THIRTY "zq");              /* not before the last quarter */
    expect_ends(THIRTY "z\xe3\x80\x82zzzzz" FORTY, THIRTY "z\xe3\x80\x82"); /* no space behind a Chinese full stop */
}

Test(manner, pieces_are_whole_characters_and_make_the_text)
{
    static const char *const units[] = {
        "the keeper lists. ", "\xe2\x98\x83", "\xf0\x9f\x98\x80", "q", "\n", " ", "\xd0\x81\xd0\xbb\xd0\xba\xd0\xb0 ",
        "price, price;\n\n"};
    lode_tokenizer_h llama3 = open_family("llama3");
    char text[8192];
    for (size_t seed = 0; seed < 60; seed++) {
        size_t bytes = 0;
        for (size_t i = 0; bytes + 32 < sizeof text && i < 40 + 10 * seed; i++) {
            const char *unit = units[seed < 8 ? seed : lode_mix(seed, i) % 8];
            bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "%s", unit);
        }
        lode_manner_t manner = plain_manner(18 + (uint32_t)(seed * 7) % 100);
        cut_t made = cut(llama3, &manner, text), again = cut(llama3, &manner, text);
        expect_whole(llama3, &manner, &made, text);
        cr_assert(again.pieces == made.pieces && again.tokens.count == made.tokens.count);
        cr_assert(memcmp(again.ends, made.ends, made.pieces * sizeof *made.ends) == 0);
        free_cut(&made);
        free_cut(&again);
    }
    lode_tokenizer_close(&llama3);
}

/* ----------------------------------------------------------------------- scribe */

static char stop_end[] = "<|end|>", stop_line[] = "\n\n", stop_aab[] = "aab", stop_snow[] = "\xe2\x98\x83";
static char *some_stops[] = {stop_end, stop_line, stop_aab, stop_snow};
static const lode_manner_t stopping = {.stops = some_stops, .stop_count = 4};

static void write_text(lode_scribe_t *scribe, const char *text)
{
    cr_assert(lode_scribe_write(scribe, text, strlen(text)) == LODE_OK);
}

static void expect_text(const lode_scribe_t *scribe, const char *text, bool stopped)
{
    cr_expect(scribe->bytes == strlen(text) && strcmp(scribe->text ? scribe->text : "", text) == 0,
              "\"%s\", not \"%s\"", scribe->text, text);
    cr_expect(scribe->stopped == stopped, "\"%s\"", text);
}

Test(scribe, stop_texts_over_several_tokens)
{
    lode_scribe_t scribe = {.manner = &stopping};
    write_text(&scribe, "one");
    expect_text(&scribe, "one", false);
    write_text(&scribe, " two<|e");
    expect_text(&scribe, "one two", false);
    write_text(&scribe, "nd");
    expect_text(&scribe, "one two", false);
    write_text(&scribe, "> <|");
    expect_text(&scribe, "one two<|end> ", false);
    write_text(&scribe, "end|>three");
    expect_text(&scribe, "one two<|end> ", true);
    write_text(&scribe, "four");
    expect_text(&scribe, "one two<|end> ", true);
    cr_assert(lode_scribe_finish(&scribe) == LODE_OK);
    expect_text(&scribe, "one two<|end> ", true);
    lode_scribe_free(&scribe);
}

Test(scribe, a_stop_text_that_begins_again_within_itself)
{
    lode_scribe_t scribe = {.manner = &stopping};
    write_text(&scribe, "xaaa");
    expect_text(&scribe, "xa", false);
    write_text(&scribe, "b");
    expect_text(&scribe, "xa", true);
    lode_scribe_free(&scribe);
}

Test(scribe, a_stop_text_may_begin_before_another_that_is_shorter)
{
    static char shorter[] = "bcd", longer[] = "abce";
    static char *both[] = {shorter, longer};
    const lode_manner_t manner = {.stops = both, .stop_count = 2};
    lode_scribe_t scribe = {.manner = &manner};
    write_text(&scribe, "abc");
    expect_text(&scribe, "", false);
    write_text(&scribe, "e");
    expect_text(&scribe, "", true);
    lode_scribe_free(&scribe);
}

Test(scribe, characters_come_whole)
{
    lode_scribe_t scribe = {.manner = &stopping};
    write_text(&scribe, "a\xf0\x9f");
    expect_text(&scribe, "a", false);
    write_text(&scribe, "\x98");
    expect_text(&scribe, "a", false);
    write_text(&scribe, "\x80z\xe2");
    expect_text(&scribe, "a\xf0\x9f\x98\x80z", false);
    write_text(&scribe, "\x98");
    write_text(&scribe, "\x84");
    expect_text(&scribe, "a\xf0\x9f\x98\x80z\xe2\x98\x84", false);
    write_text(&scribe, "\xe2\x98\x83");
    expect_text(&scribe, "a\xf0\x9f\x98\x80z\xe2\x98\x84", true);
    lode_scribe_free(&scribe);
}

Test(scribe, what_is_no_utf8_is_marked)
{
    lode_scribe_t scribe = {.manner = &stopping};
    write_text(&scribe, "a\xff\xc3(\xe4\xbb");
    expect_text(&scribe, "a\xef\xbf\xbd\xef\xbf\xbd(", false);
    cr_assert(lode_scribe_finish(&scribe) == LODE_OK);
    expect_text(&scribe, "a\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd", false);
    lode_scribe_free(&scribe);
}

Test(scribe, the_end_gives_out_what_was_held)
{
    lode_scribe_t scribe = {.manner = &stopping};
    cr_assert(lode_scribe_finish(&scribe) == LODE_OK);
    cr_assert(scribe.text && scribe.text[0] == 0);
    write_text(&scribe, "a<|en");
    expect_text(&scribe, "a", false);
    cr_assert(lode_scribe_finish(&scribe) == LODE_OK);
    expect_text(&scribe, "a<|en", false);
    lode_scribe_free(&scribe);
    cr_assert(scribe.text == NULL && scribe.held == NULL);
    scribe = (lode_scribe_t){.manner = &stopping};
    write_text(&scribe, "\n\n");
    cr_assert(lode_scribe_finish(&scribe) == LODE_OK);
    cr_assert(scribe.stopped && scribe.text && scribe.bytes == 0);
    lode_scribe_free(&scribe);
}

/* However the bytes come, the text is the same, and what was given out stays. */
Test(scribe, the_text_does_not_depend_on_where_tokens_end)
{
    static const char *const units[] = {"<|end",    "|>",   "\n",   "a", "a",       "b",
                                        "\xe2\x98", "\x83", "\xe2", "x", "\xf0\x9f"};
    char bytes[64];
    for (uint64_t seed = 0; seed < 3000; seed++) {
        size_t count = 0;
        for (uint64_t i = 0; i < 8; i++)
            count += (size_t)snprintf(bytes + count, sizeof bytes - count, "%s",
                                      units[lode_mix(seed, i) % (sizeof units / sizeof *units)]);
        lode_scribe_t whole = {.manner = &stopping}, parts = {.manner = &stopping};
        cr_assert(lode_scribe_write(&whole, bytes, count) == LODE_OK && lode_scribe_finish(&whole) == LODE_OK);
        for (size_t at = 0, width; at < count; at += width) {
            size_t given = parts.bytes;
            width = 1 + lode_mix(seed, 100 + at) % 4;
            width = width > count - at ? count - at : width;
            cr_assert(lode_scribe_write(&parts, bytes + at, width) == LODE_OK);
            cr_assert(parts.bytes >= given && parts.bytes <= whole.bytes);
            cr_assert(parts.bytes == 0 || memcmp(parts.text, whole.text, parts.bytes) == 0);
        }
        cr_assert(lode_scribe_finish(&parts) == LODE_OK);
        expect_text(&parts, whole.text, whole.stopped);
        for (uint32_t i = 0; i < stopping.stop_count; i++)
            cr_assert(strstr(whole.text, stopping.stops[i]) == NULL, "seed %d", (int)seed);
        lode_scribe_free(&whole);
        lode_scribe_free(&parts);
    }
}
