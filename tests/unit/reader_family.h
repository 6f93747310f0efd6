/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader_family.h
 * @brief Opens a tokenizer of tests/vectors/reader: "llama3", "qwen" …
 */
#ifndef LODE_TESTS_READER_FAMILY_H
#define LODE_TESTS_READER_FAMILY_H

#include <criterion/criterion.h>
#include <stdio.h>

#include "reader/reader.h"

static lode_tokenizer_h open_family(const char *name)
{
    char folder[1024];
    lode_tokenizer_h tokenizer = NULL;
    snprintf(folder, sizeof folder, "%s/%s", LODE_TEST_READER_VECTORS, name);
    cr_assert(lode_tokenizer_open(folder, &tokenizer) == LODE_OK, "%s", lode_error_message());
    return tokenizer;
}

#endif
