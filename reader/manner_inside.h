/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file manner_inside.h
 * @brief Reading reader.json and talk.json.
 */
#ifndef LODE_READER_MANNER_INSIDE_H
#define LODE_READER_MANNER_INSIDE_H

#include "reader/talk.h"
#include "reader/tokenizer_inside.h"

/** LODE_ERR_FORMAT if @p object has a key that is not in the table (ends with NULL): the nearest one is named. */
lode_status_t lode_manner_check_keys(const json_t *object, const lode_option_t *known);
/** LODE_ERR_FORMAT if a text has a name like <|end|> that is no token of the tokenizer. */
lode_status_t lode_manner_check_names(const char *key, const char *text, lode_tokenizer_h tokenizer);
/** Add the texts of the tokens that config.json and generation_config.json of a folder say end a text. */
lode_status_t lode_manner_add_ends(const char *folder, lode_tokenizer_h tokenizer, lode_manner_t *manner);
/**
 * A manner from reader.json.
 * @param[in] file    NULL: there is none
 * @param[in] folder  whose config.json and generation_config.json name the tokens that end an answer, if @p file names
 *                    no stops
 */
lode_status_t lode_manner_read(const json_t *file, const char *folder, lode_tokenizer_h tokenizer, uint32_t context,
                               lode_manner_t *manner);

/** Prompts from talk.json. */
lode_status_t lode_prompts_read(const json_t *file, lode_tokenizer_h tokenizer, lode_prompts_t *prompts);

#endif
