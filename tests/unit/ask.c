/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of `lodemark ask` that need no cluster: files to documents, who reads what, digests, what a terminal is shown.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/client.h"
#include "launch/corpus.h"
#include "reader/reader_inside.h"

static char folder[] = "/tmp/lodemark-ask-XXXXXX", path[128];
static lode_corpus_t corpus;
static int warnings;
static char last_warning[512];

static const char *at(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void put(const char *name, const char *text, size_t bytes)
{
    FILE *file = fopen(at(name), "w");
    cr_assert(file && fwrite(text, 1, bytes, file) == bytes && fclose(file) == 0);
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

static void warn(const char *sentence)
{
    warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", sentence);
}

static void begin(void)
{
    cr_assert(mkdtemp(folder) != NULL);
    corpus.warn = warn;
}

static void end(void)
{
    char command[128];
    lode_corpus_free(&corpus);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert(system(command) == 0);
}

TestSuite(ask, .init = begin, .fini = end);

static bool is_document(uint32_t i, const char *name, const char *text)
{
    const lode_document_t *d = &corpus.documents[i];
    return strcmp(d->name + strlen(folder) + 1, name) == 0 && d->bytes == strlen(text) &&
           memcmp(d->text, text, d->bytes) == 0;
}

Test(ask, folders_are_walked_in_the_order_of_names)
{
    cr_assert(mkdir(at("b"), 0700) == 0 && mkdir(at(".hidden"), 0700) == 0);
    put_text("c.txt", "third\n");
    put_text("b/2", "second");
    put_text("a", "\xef\xbb\xbf"
                  "first");
    put_text(".hidden/x", "no");
    put_text(".no", "no");
    cr_assert(symlink(folder, at("b/loop")) == 0);
    cr_assert(lode_corpus_add(&corpus, folder, LODE_SPLIT_FILE) == LODE_OK, "%s", lode_error_message());
    cr_assert(corpus.count == 3 && corpus.files == 3 && corpus.skipped == 0 && warnings == 0);
    cr_assert(is_document(0, "a", "first"));
    cr_assert(is_document(1, "b/2", "second"));
    cr_assert(is_document(2, "c.txt", "third\n"));
}

Test(ask, what_is_no_text_is_refused_by_name_and_left_out_of_folders)
{
    static const struct {
        const char *name, *text;
        size_t bytes;
        lode_status_t status;
        const char *says;
    } wrong[] = {
        {"1-binary", "ab\0c", 4, LODE_ERR_FORMAT, "zero at byte 2"},
        {"2-latin", "na\xefve", 5, LODE_ERR_FORMAT, "UTF-8 at byte 2"},
        {"3-cut", "x\xe2\x82", 3, LODE_ERR_FORMAT, "UTF-8 at byte 1"},
        {"4-empty", "", 0, LODE_ERR_INVALID, "empty"},
        {"5-blank", " \n\t\r\n", 5, LODE_ERR_INVALID, "empty"},
    };
    enum { WRONG = sizeof wrong / sizeof *wrong };
    for (int i = 0; i < WRONG; i++) {
        put(wrong[i].name, wrong[i].text, wrong[i].bytes);
        cr_assert(lode_corpus_add(&corpus, at(wrong[i].name), LODE_SPLIT_FILE) == wrong[i].status, "%s", wrong[i].name);
        cr_assert(strstr(lode_error_message(), wrong[i].says) && strstr(lode_error_message(), wrong[i].name), "%s",
                  lode_error_message());
    }
    cr_assert(corpus.count == 0 && warnings == 0);
    cr_assert(lode_corpus_add(&corpus, folder, LODE_SPLIT_FILE) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "no documents") != NULL);
    cr_assert(corpus.skipped == WRONG && warnings == WRONG && strstr(last_warning, "5-blank"));
    put_text("6", "text");
    cr_assert(lode_corpus_add(&corpus, folder, LODE_SPLIT_FILE) == LODE_OK);
    cr_assert(corpus.count == 1 && corpus.skipped == 2 * WRONG);
}

Test(ask, what_is_not_there_is_refused)
{
    cr_assert(lode_corpus_add(&corpus, at("none"), LODE_SPLIT_FILE) == LODE_ERR_IO);
    cr_assert(strstr(lode_error_message(), "none") != NULL);
    cr_assert(lode_corpus_add(&corpus, "", LODE_SPLIT_FILE) == LODE_ERR_IO);
    cr_assert(mkfifo(at("pipe"), 0600) == 0);
    cr_assert(lode_corpus_add(&corpus, at("pipe"), LODE_SPLIT_FILE) == LODE_ERR_FORMAT);
    cr_assert(lode_corpus_add(&corpus, "/dev/null", LODE_SPLIT_FILE) == LODE_ERR_FORMAT);
}

Test(ask, paragraphs_and_lines_are_documents_named_by_their_line)
{
    put_text("f", "\n \none\ntwo  \n\n\t\nthree\n");
    cr_assert(lode_corpus_add(&corpus, at("f"), LODE_SPLIT_PARAGRAPH) == LODE_OK);
    cr_assert(corpus.count == 2);
    cr_assert(is_document(0, "f:3", "one\ntwo"));
    cr_assert(is_document(1, "f:7", "three"));
    cr_assert(lode_corpus_add(&corpus, at("f"), LODE_SPLIT_LINE) == LODE_OK);
    cr_assert(corpus.count == 5 && corpus.files == 2);
    cr_assert(is_document(2, "f:3", "one"));
    cr_assert(is_document(3, "f:4", "two"));
    cr_assert(is_document(4, "f:7", "three"));
}

Test(ask, many_documents)
{
    FILE *file = fopen(at("many"), "w");
    cr_assert(file != NULL);
    for (int i = 0; i < 5000; i++)
        cr_assert(fprintf(file, "line %d\n", i) > 0);
    cr_assert(fclose(file) == 0);
    cr_assert(lode_corpus_add(&corpus, at("many"), LODE_SPLIT_LINE) == LODE_OK);
    cr_assert(corpus.count == 5000 && is_document(4999, "many:5000", "line 4999"));
}

Test(ask, digests_tell_corpora_apart)
{
    uint64_t digests[4];
    static const char *const texts[] = {"abcdefgh one", "abcdefgh onf", "abcdefgi one", "abcdefgh one "};
    for (int i = 0; i < 4; i++) {
        put_text("x", texts[i]);
        lode_corpus_free(&corpus);
        cr_assert(lode_corpus_add(&corpus, at("x"), LODE_SPLIT_FILE) == LODE_OK);
        digests[i] = lode_corpus_digest(&corpus);
        cr_assert(digests[i] == lode_corpus_digest(&corpus));
        for (int j = 0; j < i; j++)
            cr_assert(digests[i] != digests[j], "%d and %d", i, j);
    }
}

Test(ask, every_document_is_read_by_one_rank_and_ranks_have_about_as_much)
{
    enum { COUNT = 500, RANKS = 3 };
    lode_document_t documents[COUNT];
    uint32_t of[COUNT], again[COUNT];
    uint64_t loads[RANKS] = {0}, all = 0, largest = 0;
    for (int i = 0; i < COUNT; i++) {
        documents[i] = (lode_document_t){.bytes = lode_mix((uint64_t)i, 3) % 1000};
        all += documents[i].bytes;
        largest = documents[i].bytes > largest ? documents[i].bytes : largest;
    }
    cr_assert(lode_corpus_share(documents, COUNT, RANKS, of) == LODE_OK);
    cr_assert(lode_corpus_share(documents, COUNT, RANKS, again) == LODE_OK && memcmp(of, again, sizeof of) == 0);
    for (int i = 0; i < COUNT; i++) {
        cr_assert(of[i] < RANKS);
        loads[of[i]] += documents[i].bytes;
    }
    for (int r = 0; r < RANKS; r++)
        cr_assert(loads[r] <= all / RANKS + largest && loads[r] + largest >= all / RANKS, "rank %d has %lu of %lu", r,
                  (unsigned long)loads[r], (unsigned long)all);
    cr_assert(lode_corpus_share(documents, 0, RANKS, of) == LODE_OK);
    cr_assert(lode_corpus_share(documents, 2, 8, of) == LODE_OK && of[0] != of[1]);
}

Test(ask, a_set_of_digests_has_each_once)
{
    lode_piece_set_t set = {0};
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t digest[2] = {lode_mix(i, 1) | 1, i % 1500}; /* the first decides the place, both what it is */
        cr_assert(lode_piece_set_add(&set, digest), "%lu", (unsigned long)i);
    }
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t digest[2] = {lode_mix(i, 1) | 1, i % 1500};
        cr_assert(lode_piece_set_add(&set, digest) == false, "%lu again", (unsigned long)i);
        digest[1] += 1500;
        cr_assert(lode_piece_set_add(&set, digest), "%lu, other", (unsigned long)i);
    }
    cr_assert(set.count == 6000);
    lode_piece_set_free(&set);
    cr_assert(set.room == 0 && set.digests == NULL);
}

Test(ask, a_terminal_is_shown_no_control_characters)
{
    char *shown = NULL;
    size_t bytes = 0;
    static const char text[] = "a\x1b[2Jb\n\tc\x7f\xc2\x9b"
                               "d \xc3\xa9 \xc2\xa9";
    FILE *out = open_memstream(&shown, &bytes);
    lode_text_print(out, text, sizeof text - 1);
    fclose(out);
    cr_assert(strcmp(shown, "a?[2Jb\n\tc??d \xc3\xa9 \xc2\xa9") == 0, "%s", shown);
    free(shown);
}
