/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens are those of Hugging Face's tokenizers (tests/reader/make_tokenizers.py made the vectors); wrong files. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reader/tokenizer_inside.h"
#include "tests/unit/reader_family.h"

TestSuite(tokenizer, .timeout = 60);

static const char *const families[] = {"llama3", "qwen", "gpt2", "pieces"};
enum { FAMILIES = 4 };

static json_t *load(const char *name)
{
    char path[1024];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s", LODE_TEST_READER_VECTORS, name);
    json_t *file = json_load_file(path, JSON_ALLOW_NUL, &error);
    cr_assert(file != NULL, "%s: %s", path, error.text);
    return file;
}

static void encode(lode_tokenizer_h tokenizer, const char *text, size_t bytes, bool special, lode_tokens_t *tokens)
{
    tokens->count = 0;
    cr_assert(lode_tokenizer_encode(tokenizer, text, bytes, special, tokens) == LODE_OK, "%s", lode_error_message());
}

/* ------------------------------------------------------------------- vectors */

static void expect_tokens(const char *family, const char *text, const lode_tokens_t *tokens, const json_t *ids)
{
    cr_assert(tokens->count == json_array_size(ids), "%s: \"%s\" has %zu tokens, not %zu", family, text, tokens->count,
              json_array_size(ids));
    for (size_t i = 0; i < tokens->count; i++)
        cr_assert(tokens->ids[i] == json_integer_value(json_array_get(ids, i)), "%s: \"%s\": token %zu is %u", family,
                  text, i, tokens->ids[i]);
}

Test(tokenizer, tokens_are_those_of_hugging_face)
{
    json_t *vectors = load("tokens.json"), *texts = json_object_get(vectors, "texts"), *text;
    size_t i, checked = 0;
    for (int f = 0; f < FAMILIES; f++) {
        lode_tokenizer_h tokenizer = open_family(families[f]);
        lode_tokens_t tokens = {0};
        json_array_foreach(texts, i, text)
        {
            json_t *ids = json_array_get(json_object_get(vectors, families[f]), i);
            for (int again = 0; again < 2; again++) { /* words are remembered */
                encode(tokenizer, json_string_value(text), json_string_length(text), true, &tokens);
                expect_tokens(families[f], json_string_value(text), &tokens, json_array_get(ids, 0));
                encode(tokenizer, json_string_value(text), json_string_length(text), false, &tokens);
                expect_tokens(families[f], json_string_value(text), &tokens,
                              json_array_get(ids, json_array_size(ids) - 1));
                checked++;
            }
        }
        lode_tokens_free(&tokens);
        lode_tokenizer_close(&tokenizer);
        cr_assert(tokenizer == NULL);
    }
    cr_assert(checked == 2 * FAMILIES * json_array_size(texts) && checked > 400);
    json_decref(vectors);
}

/* ---------------------------------------------------------------- round trips */

static uint64_t random_state = 11;

static uint32_t below(uint32_t limit)
{
    random_state++;
    return (uint32_t)(lode_mix(random_state, 5) % limit);
}

/* Characters that composing leaves alone. */
static size_t random_text(char *text, size_t characters)
{
    size_t n = 0;
    for (size_t i = 0; i < characters; i++) {
        uint32_t c = below(3) ? below(0x300) : below(2) ? 0x4e00 + below(0x5000) : 0x1f600 + below(0x40);
        if (below(2))
            c = (uint32_t) " \n\tetaoinshr.,"[below(14)];
        if (c < 0x80) {
            text[n++] = (char)c;
        } else if (c < 0x800) {
            text[n++] = (char)(0xc0 | c >> 6);
            text[n++] = (char)(0x80 | (c & 0x3f));
        } else {
            if (c >= 0x10000)
                text[n++] = (char)(0xf0 | c >> 18);
            text[n++] = (char)(c >= 0x10000 ? 0x80 | (c >> 12 & 0x3f) : 0xe0 | c >> 12);
            text[n++] = (char)(0x80 | (c >> 6 & 0x3f));
            text[n++] = (char)(0x80 | (c & 0x3f));
        }
    }
    return n;
}

static void expect_same_text(lode_tokenizer_h tokenizer, const lode_tokens_t *tokens, const char *text, size_t bytes)
{
    size_t at = 0;
    for (size_t i = 0; i < tokens->count; i++) {
        size_t count = 0;
        const char *part = lode_tokenizer_bytes(tokenizer, tokens->ids[i], &count);
        cr_assert(part && at + count <= bytes && memcmp(text + at, part, count) == 0, "at byte %zu of \"%s\"", at,
                  text);
        at += count;
    }
    cr_assert(at == bytes);
}

Test(tokenizer, tokens_give_the_text_back)
{
    char text[4 * 200 + 1];
    for (int f = 0; f < 3; f++) { /* the fourth leaves out what it removes */
        lode_tokenizer_h tokenizer = open_family(families[f]);
        lode_tokens_t tokens = {0};
        for (int i = 0; i < 300; i++) {
            size_t bytes = random_text(text, 1 + below(200));
            text[bytes] = 0;
            encode(tokenizer, text, bytes, i % 2, &tokens);
            expect_same_text(tokenizer, &tokens, text, bytes);
        }
        lode_tokens_free(&tokens);
        lode_tokenizer_close(&tokenizer);
    }
}

Test(tokenizer, long_words_and_long_runs)
{
    enum { BYTES = 1 << 16 };
    static const char *const units[] = {"the", "a", " ", "\n", "\xe4\xbb\xb7", "7"};
    char *text = malloc(BYTES + 4);
    for (int f = 0; f < 3; f++) {
        lode_tokenizer_h tokenizer = open_family(families[f]);
        lode_tokens_t tokens = {0};
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t bytes = 0, width = strlen(units[u]);
            for (; bytes + width <= BYTES; bytes += width)
                memcpy(text + bytes, units[u], width);
            encode(tokenizer, text, bytes, true, &tokens);
            expect_same_text(tokenizer, &tokens, text, bytes);
        }
        lode_tokens_free(&tokens);
        lode_tokenizer_close(&tokenizer);
    }
    free(text);
}

Test(tokenizer, what_is_no_utf8_is_refused_with_its_offset)
{
    static const struct {
        const char *text;
        size_t bytes, offset;
    } wrong[] = {{"ab\xff", 3, 2},
                 {"\x80", 1, 0},
                 {"x\xc3", 2, 1},
                 {"\xc0\xaf", 2, 0},
                 {"\xed\xa0\x80", 3, 0},
                 {"\xe0\x9f\xbf", 3, 0},
                 {"\xf4\x90\x80\x80", 4, 0},
                 {"\xf0\x8f\xbf\xbf", 4, 0},
                 {"\xe4\xbb\xb7\xe4\xbb", 5, 3},
                 {"a\xf5", 2, 1}};
    lode_tokenizer_h tokenizer = open_family("qwen");
    lode_tokens_t tokens = {0};
    encode(tokenizer, "before", 6, true, &tokens);
    size_t before = tokens.count;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char offset[32];
        snprintf(offset, sizeof offset, "byte %zu,", wrong[i].offset);
        cr_expect(lode_tokenizer_encode(tokenizer, wrong[i].text, wrong[i].bytes, true, &tokens) == LODE_ERR_FORMAT);
        cr_expect(strstr(lode_error_message(), offset) != NULL, "%zu: %s", i, lode_error_message());
        cr_expect(tokens.count == before);
    }
    cr_assert(lode_tokenizer_encode(tokenizer, "\xf4\x8f\xbf\xbf\xee\x80\x80", 7, true, &tokens) == LODE_OK);
    lode_tokens_free(&tokens);
    lode_tokenizer_close(&tokenizer);
}

Test(tokenizer, tokens_are_appended)
{
    lode_tokenizer_h tokenizer = open_family("gpt2");
    lode_tokens_t one = {0}, both = {0};
    encode(tokenizer, "the end", 7, false, &one);
    cr_assert(lode_tokenizer_encode(tokenizer, "the end", 7, false, &both) == LODE_OK);
    cr_assert(lode_tokenizer_encode(tokenizer, "the end", 7, false, &both) == LODE_OK);
    cr_assert(both.count == 2 * one.count && one.count > 0);
    cr_assert(memcmp(both.ids, one.ids, one.count * sizeof *one.ids) == 0);
    cr_assert(memcmp(both.ids + one.count, one.ids, one.count * sizeof *one.ids) == 0);
    lode_tokens_free(&one);
    cr_assert(one.ids == NULL && one.count == 0);
    lode_tokens_free(&both);
    lode_tokenizer_close(&tokenizer);
}

Test(tokenizer, added_tokens_by_name)
{
    lode_tokenizer_h llama3 = open_family("llama3"), qwen = open_family("qwen");
    size_t bytes = 0;
    int64_t end = lode_tokenizer_special(llama3, "<|end|>");
    cr_assert(end > 0 && end < lode_tokenizer_size(llama3));
    const char *text = lode_tokenizer_bytes(llama3, (uint32_t)end, &bytes);
    cr_assert(bytes == 7 && strcmp(text, "<|end|>") == 0);
    cr_assert(lode_tokenizer_special(llama3, "<|en") == -1);
    cr_assert(lode_tokenizer_special(llama3, "the") == -1);
    cr_assert(lode_tokenizer_special(llama3, "") == -1);
    cr_assert(lode_tokenizer_begin(llama3) == lode_tokenizer_special(llama3, "<|begin|>"));
    cr_assert(lode_tokenizer_begin(qwen) == -1);
    cr_assert(lode_tokenizer_special(qwen, "<|tool|>") > 0);
    cr_assert(lode_tokenizer_bytes(llama3, lode_tokenizer_size(llama3), &bytes) == NULL);
    cr_assert(lode_tokenizer_bytes(llama3, UINT32_MAX, &bytes) == NULL);
    lode_tokenizer_close(&llama3);
    lode_tokenizer_close(&qwen);
}

/* --------------------------------------------------------------------- wrong files */

/* Set a part of a file by its path; a NULL value takes it out. */
static void change(json_t *file, const char *path, const char *value)
{
    char copy[256], *rest = copy, *key;
    snprintf(copy, sizeof copy, "%s", path);
    while ((key = strsep(&rest, "/")) && rest)
        file = json_is_array(file) ? json_array_get(file, (size_t)atoi(key)) : json_object_get(file, key);
    json_t *made = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    cr_assert(file && (made || !value), "%s: %s", path, value);
    if (!value)
        cr_assert(json_object_del(file, key) == 0, "%s", path);
    else if (json_is_array(file))
        cr_assert(json_array_set_new(file, (size_t)atoi(key), made) == 0, "%s", path);
    else
        cr_assert(json_object_set_new(file, key, made) == 0, "%s", path);
}

#define SPLIT(pattern) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"},\"behavior\":\"Isolated\"}"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define IN_SEQUENCE(entries) "{\"type\":\"Sequence\",\"pretokenizers\":[" entries "]}"

static const struct wrong_file {
    const char *path, *value;
    lode_status_t status;
    const char *says;
} wrong_files[] = {
    {"model", "null", LODE_ERR_FORMAT, "no \"model\""},
    {"model/type", "\"WordPiece\"", LODE_ERR_UNSUPPORTED, "WordPiece"},
    {"model/dropout", "0.1", LODE_ERR_UNSUPPORTED, "dropout"},
    {"model/byte_fallback", "true", LODE_ERR_UNSUPPORTED, "byte_fallback"},
    {"model/end_of_word_suffix", "\"</w>\"", LODE_ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"model/vocab", "[]", LODE_ERR_FORMAT, "\"vocab\""},
    {"model/vocab/a", "-1", LODE_ERR_FORMAT, "id of \"a\""},
    {"model/vocab/a", "16777216", LODE_ERR_FORMAT, "id of \"a\""},
    {"model/vocab/a", "1.5", LODE_ERR_FORMAT, "id of \"a\""},
    {"model/vocab/a", "1", LODE_ERR_FORMAT, "same id 1"},
    {"model/vocab/a", NULL, LODE_ERR_UNSUPPORTED, "byte 0x61"},
    {"model/merges", "{}", LODE_ERR_FORMAT, "\"merges\""},
    {"model/merges/3", "\"a b c\"", LODE_ERR_FORMAT, "merge 3"},
    {"model/merges/3", "\"ab\"", LODE_ERR_FORMAT, "merge 3"},
    {"model/merges/3", "[\"a\"]", LODE_ERR_FORMAT, "merge 3"},
    {"model/merges/3", "[\"a\", 1]", LODE_ERR_FORMAT, "merge 3"},
    {"model/merges/3", "[\"a\", \"zqz\"]", LODE_ERR_FORMAT, "the second is no token"},
    {"model/merges/3", "[\"zqz\", \"a\"]", LODE_ERR_FORMAT, "the first is no token"},
    {"model/merges/3", "[\"z\", \"q\"]", LODE_ERR_FORMAT, "what they make is no token"},
    {"model/merges/3", "[\"z\", \"\"]", LODE_ERR_FORMAT, "merge 3"},
    {"model/merges/3", "[\"z\", \"\\u706f\"]", LODE_ERR_FORMAT, "merge 3"},
    {"normalizer", "{\"type\": \"NFKC\"}", LODE_ERR_UNSUPPORTED, "NFKC"},
    {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}", LODE_ERR_UNSUPPORTED,
     "Lowercase"},
    {"pre_tokenizer", "null", LODE_ERR_UNSUPPORTED, "ByteLevel"},
    {"pre_tokenizer", "{\"type\": \"Metaspace\"}", LODE_ERR_UNSUPPORTED, "Metaspace"},
    {"pre_tokenizer", SPLIT("a"), LODE_ERR_UNSUPPORTED, "ByteLevel"},
    {"pre_tokenizer", "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", LODE_ERR_UNSUPPORTED, "space before"},
    {"pre_tokenizer", IN_SEQUENCE(BYTES "," SPLIT("a")), LODE_ERR_UNSUPPORTED, "after \"ByteLevel\""},
    {"pre_tokenizer", IN_SEQUENCE(IN_SEQUENCE(IN_SEQUENCE(IN_SEQUENCE(IN_SEQUENCE(BYTES))))), LODE_ERR_UNSUPPORTED,
     "Sequence"},
    {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}",
     LODE_ERR_UNSUPPORTED, "MergedWithNext"},
    {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Removed\"}", LODE_ERR_FORMAT, "no pattern"},
    {"pre_tokenizer", SPLIT("(a"), LODE_ERR_FORMAT, "\"(a\""},
    {"pre_tokenizer", SPLIT("a\\\\"), LODE_ERR_UNSUPPORTED, "an escape"},
    {"pre_tokenizer", SPLIT("\\\\w+"), LODE_ERR_UNSUPPORTED, "\"\\w+\""},
    {"pre_tokenizer", SPLIT("\\\\h"), LODE_ERR_UNSUPPORTED, "an escape"},
    {"pre_tokenizer", SPLIT("(a)\\\\1"), LODE_ERR_UNSUPPORTED, "an escape"},
    {"pre_tokenizer", SPLIT("\\\\p{Han}"), LODE_ERR_UNSUPPORTED, "a property"},
    {"pre_tokenizer", SPLIT("\\\\pL"), LODE_ERR_UNSUPPORTED, "a property"},
    {"pre_tokenizer", SPLIT("\\\\p{L"), LODE_ERR_UNSUPPORTED, "a property"},
    {"pre_tokenizer", SPLIT("\\\\p"), LODE_ERR_UNSUPPORTED, "a property"},
    {"pre_tokenizer", SPLIT("[a[b]]"), LODE_ERR_UNSUPPORTED, "a class"},
    {"pre_tokenizer", SPLIT("[a-z&&b]"), LODE_ERR_UNSUPPORTED, "a class"},
    {"pre_tokenizer", SPLIT("[]a]"), LODE_ERR_UNSUPPORTED, "an empty class"},
    {"pre_tokenizer", SPLIT("^a"), LODE_ERR_UNSUPPORTED, "an anchor"},
    {"pre_tokenizer", SPLIT("a$"), LODE_ERR_UNSUPPORTED, "an anchor"},
    {"pre_tokenizer", SPLIT("a{2}+"), LODE_ERR_UNSUPPORTED, "a repetition"},
    {"pre_tokenizer", SPLIT("a{2}?"), LODE_ERR_UNSUPPORTED, "a repetition"},
    {"pre_tokenizer", SPLIT("a{,2}"), LODE_ERR_UNSUPPORTED, "a repetition"},
    {"pre_tokenizer", SPLIT("(?<n>a)"), LODE_ERR_UNSUPPORTED, "a group"},
    {"pre_tokenizer", SPLIT("(*UCP)a"), LODE_ERR_UNSUPPORTED, "a group"},
    {"post_processor", "{\"type\": \"BertProcessing\"}", LODE_ERR_UNSUPPORTED, "BertProcessing"},
    {"post_processor/processors/1/single/0/SpecialToken/id", "\"<s>\"", LODE_ERR_FORMAT, "\"<s>\""},
    {"post_processor/processors/1/single/1", "{\"SpecialToken\": {\"id\": \"<|end|>\"}}", LODE_ERR_UNSUPPORTED,
     "more than one token"},
    {"decoder/type", "\"WordPiece\"", LODE_ERR_UNSUPPORTED, "WordPiece"},
    {"added_tokens/0/content", "\"\"", LODE_ERR_FORMAT, "no text"},
    {"added_tokens/0/id", "-7", LODE_ERR_FORMAT, "<|begin|>"},
    {"added_tokens/0/id", "5", LODE_ERR_FORMAT, "which is \"&\""},
    {"added_tokens/0/content", "\"<|end|>\"", LODE_ERR_FORMAT, "two ids"},
    {"added_tokens/1/id", "378", LODE_ERR_FORMAT, "id 378"},
    {"added_tokens/0/lstrip", "true", LODE_ERR_UNSUPPORTED, "lstrip"},
    {"added_tokens/0/rstrip", "true", LODE_ERR_UNSUPPORTED, "rstrip"},
    {"added_tokens/0/single_word", "true", LODE_ERR_UNSUPPORTED, "single_word"},
};

Test(tokenizer, what_is_not_known_or_wrong_is_named)
{
    for (size_t i = 0; i < sizeof wrong_files / sizeof *wrong_files; i++) {
        const struct wrong_file *wrong = &wrong_files[i];
        lode_tokenizer_h tokenizer = NULL;
        json_t *file = load("llama3/tokenizer.json");
        change(file, wrong->path, wrong->value);
        lode_status_t status = lode_tokenizer_read(file, &tokenizer);
        cr_expect(status == wrong->status, "%s = %s: %s, \"%s\"", wrong->path, wrong->value, lode_status_string(status),
                  lode_error_message());
        cr_expect(strstr(lode_error_message(), wrong->says) != NULL, "%s = %s: \"%s\" does not say \"%s\"", wrong->path,
                  wrong->value, lode_error_message(), wrong->says);
        cr_expect(tokenizer == NULL);
        json_decref(file);
    }
}

Test(tokenizer, what_says_nothing_is_accepted)
{
    static const char *const fine[][2] = {
        {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}"},
        {"decoder", "null"},
        {"post_processor", "null"},
        {"added_tokens/0/single_word", "false"},
        {"model/dropout", "0"},
        {"model/continuing_subword_prefix", "\"\""},
        {"model/type", "\"BPE\""},
        {"model/vocab/an odd \\u706f", "500"},
        {"pre_tokenizer", IN_SEQUENCE(SPLIT("\\\\p{^Lu}|[\\\\S\\\\D]\\\\-") "," BYTES)},
    };
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        lode_tokenizer_h tokenizer = NULL;
        json_t *file = load("llama3/tokenizer.json");
        if (strcmp(fine[i][0], "post_processor") == 0)
            change(file, "truncation", "{\"max_length\": 5}"); /* whoever asks for tokens wants all of them */
        change(file, fine[i][0], fine[i][1]);
        cr_expect(lode_tokenizer_read(file, &tokenizer) == LODE_OK, "%s: %s", fine[i][0], lode_error_message());
        lode_tokenizer_close(&tokenizer);
        json_decref(file);
    }
}

static void write_file(const char *path, const char *text, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    cr_assert(file && fwrite(text, 1, bytes, file) == bytes && fclose(file) == 0);
}

static void expect_not_open(const char *folder, lode_status_t status, const char *says)
{
    lode_tokenizer_h tokenizer = NULL;
    cr_expect(lode_tokenizer_open(folder, &tokenizer) == status, "%s", lode_error_message());
    cr_expect(strstr(lode_error_message(), says) && strstr(lode_error_message(), "tokenizer.json"), "%s",
              lode_error_message());
    cr_expect(tokenizer == NULL);
}

Test(tokenizer, files_that_are_missing_torn_or_too_large)
{
    char folder[] = "/tmp/lode-tokenizer-XXXXXX", path[64];
    cr_assert(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    json_t *file = load("gpt2/tokenizer.json");
    char *text = json_dumps(file, 0);
    size_t bytes = strlen(text);

    expect_not_open(folder, LODE_ERR_IO, "No such file");
    cr_assert(mkdir(path, 0700) == 0);
    expect_not_open(folder, LODE_ERR_IO, "not a file");
    cr_assert(rmdir(path) == 0);
    for (size_t cut = 0; cut < bytes; cut += bytes / 40) {
        write_file(path, text, cut);
        expect_not_open(folder, LODE_ERR_FORMAT, "line 1, column");
    }
    write_file(path, "{\"model\": {\"vocab\": {\"a\": 1, \"a\": 2}}}", 38);
    expect_not_open(folder, LODE_ERR_FORMAT, "duplicate");
    write_file(path, "[]", 2);
    expect_not_open(folder, LODE_ERR_FORMAT, "not a JSON object");
    cr_assert(truncate(path, (off_t)LODE_TOKENIZER_FILE_MAX + 1) == 0);
    expect_not_open(folder, LODE_ERR_UNSUPPORTED, "the most");
    write_file(path, text, bytes);
    lode_tokenizer_h tokenizer = NULL;
    cr_assert(lode_tokenizer_open(folder, &tokenizer) == LODE_OK);
    lode_tokenizer_close(&tokenizer);

    free(text);
    json_decref(file);
    unlink(path);
    rmdir(folder);
}

/* A pattern that tries everything is stopped. */
Test(tokenizer, patterns_that_never_end_are_given_up)
{
    static const char text[] =
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac";
    lode_tokenizer_h tokenizer = NULL;
    lode_tokens_t tokens = {0};
    json_t *file = load("llama3/tokenizer.json");
    change(file, "pre_tokenizer", IN_SEQUENCE(SPLIT("(?:(?:a|a)+)+[bd]") "," BYTES));
    cr_assert(lode_tokenizer_read(file, &tokenizer) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_tokenizer_encode(tokenizer, text, sizeof text - 1, false, &tokens) == LODE_ERR_UNSUPPORTED);
    cr_assert(strstr(lode_error_message(), "gives up") != NULL, "%s", lode_error_message());
    cr_assert(tokens.count == 0);
    lode_tokens_free(&tokens);
    lode_tokenizer_close(&tokenizer);
    json_decref(file);
}
